// ---- the page around it
// Boxes of a graph that are visible at first, and at most by "Open groups".
const AT_FIRST = 48, AT_MOST = 320;
// Groups of members that are alike stay folded at first, from so many members on.
const ALIKE = 4;
// A window from so wide on has both graphs beside each other.
const BESIDE = 1100;

const KEYS = [["/", "search"], ["Tab", "to a graph, then"], ["arrows", "to the next box"], ["Enter", "open a group, or tell of a node"],
  ["Backspace", "fold the group around"], ["+ − 0", "zoom, and show all"], ["f", "whole window"], ["Esc", "close what is told"]];

function pickGraphs(which) {
  for (const graph of graphs) graph.section.hidden = which !== "both" && which !== graph.name;
  for (const button of byId("which").children) button.setAttribute("aria-pressed", button.dataset.which === which);
  refit();
}
function refit() {
  for (const graph of graphs) graph.view = null;
  drawAll();
}
function setTheme(theme) {
  const root = document.documentElement;
  if (theme) root.dataset.theme = theme;
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  byId("theme").textContent = dark ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", dark ? "Change to light colours" : "Change to dark colours");
  byId("theme").onclick = () => setTheme(dark ? "light" : "dark");
}
function setWhole(whole) {
  document.body.classList.toggle("whole", whole);
  byId("whole").setAttribute("aria-pressed", whole);
  refit();
}
/** The node that the address names: `#after/NAME`. */
function fromHash() {
  const [, name, node] = location.hash.match(/^#(before|after)\/(.+)$/) ?? [];
  const graph = graphs.find((each) => each.name === name);
  let wanted = node;
  try { wanted = decodeURIComponent(node ?? ""); } catch { /* not one of ours */ }
  const item = graph?.byName.get(wanted) ?? graph?.items.find((each) => each.name === wanted);
  if (item && item !== chosen) show(item);
  return Boolean(item);
}

overview();
for (const graph of graphs) {
  graph.section.querySelector("h2").append(make("b", {}, graph.name === "before" ? "Before" : "After"),
    ` ${graph.name === "before" ? "the source" : "the output"}, ${plural(graph.count, "node")}`);
  graph.svg.setAttribute("aria-label", graph.name === "before" ? "Graph of the source" : "Graph of the output");
  handle(graph);
}
if (!data.after) {
  byId("after").hidden = true;
  byId("which").hidden = true;
}
for (const [which, text] of [["before", "Before"], ["both", "Both"], ["after", "After"]]) {
  const button = make("button", { type: "button", "data-which": which }, text);
  button.addEventListener("click", () => pickGraphs(which));
  byId("which").append(button);
}
handleSearch();
setTheme(null);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  if (!document.documentElement.dataset.theme) setTheme(null);
});
byId("keys").append(make("dl", {}, ...KEYS.flatMap(([key, text]) => [make("dt", {}, make("kbd", {}, key)), make("dd", {}, text)])));
const setKeys = (shown) => { byId("keys").hidden = !shown; byId("help").setAttribute("aria-expanded", shown); };
byId("help").addEventListener("click", () => setKeys(byId("keys").hidden));
byId("open").addEventListener("click", () => { openUpTo(AT_MOST); refit(); });
byId("fold").addEventListener("click", () => { open.clear(); open.add(ROOT); refit(); });
byId("fit").addEventListener("click", () => fitAll(true));
byId("in").addEventListener("click", () => graphs.forEach((graph) => { if (graph.view) zoom(graph, 1.25); }));
byId("out").addEventListener("click", () => graphs.forEach((graph) => { if (graph.view) zoom(graph, 0.8); }));
byId("whole").addEventListener("click", () => setWhole(!document.body.classList.contains("whole")));
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); byId("search").focus(); }
  if (event.key === "?") setKeys(byId("keys").hidden);
  if (event.key === "f") setWhole(!document.body.classList.contains("whole"));
  if (event.key === "Escape") {
    if (!byId("keys").hidden) setKeys(false);
    else if (chosen) forget();
    else if (document.body.classList.contains("whole")) setWhole(false);
  }
});
window.addEventListener("resize", () => graphs.forEach((graph) => fit(graph)));
window.addEventListener("hashchange", fromHash);
// On paper both graphs are drawn whole, each on its own page.
function onPaper(graph) {
  graph.off = graph.section.hidden;
  graph.section.hidden = false;
  if (!graph.drawn) draw(graph);
  graph.svg.setAttribute("viewBox", `0 0 ${graph.drawn.width} ${graph.drawn.height}`);
  graph.svg.style.aspectRatio = `${graph.drawn.width} / ${graph.drawn.height}`;
  graph.svg.querySelector(".root").removeAttribute("transform");
}
function onScreen(graph) {
  graph.section.hidden = graph.off;
  graph.svg.removeAttribute("viewBox");
  graph.svg.style.aspectRatio = "";
  move(graph);
}
window.addEventListener("beforeprint", () => { byId("more").open = true; graphs.forEach(onPaper); });
window.addEventListener("afterprint", () => graphs.forEach(onScreen));

const first = !data.after ? "before" : innerWidth >= BESIDE ? "both" : "after";
for (const graph of graphs) graph.section.hidden = first !== "both" && first !== graph.name;
openUpTo(AT_FIRST, (group) => group.kind !== "ends" && group.times < ALIKE, () => graphs.every(readable));
pickGraphs(first);
fromHash();
// When the first graph was there, in milliseconds since the page was asked for.
document.documentElement.dataset.drawn = performance.now().toFixed(0);
