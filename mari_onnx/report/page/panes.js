// ---- panes: moving, zooming, the keyboard, opening and folding
const NEAREST = 2.5, FARTHEST = 0.03, READABLE = 0.6, LEAST = 0.45;

function move(graph) {
  if (!graph.view) return fit(graph);
  const { x, y, k } = graph.view;
  graph.svg.querySelector(".root").setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(${k.toFixed(4)})`);
  return undefined;
}
/** Whether all of a graph can be read at once, with what is open now. */
function readable(graph) {
  const { width, height } = graph.svg.getBoundingClientRect();
  const drawn = arranged(graph);
  return graph.section.hidden || !width || Math.min(width / drawn.width, height / drawn.height) >= READABLE - 0.04;
}
/** All of a graph, or, where that cannot be read, as much as can: its top, and what is in the middle. */
function fit(graph, all = false) {
  const { width, height } = graph.svg.getBoundingClientRect();
  if (!width || !graph.drawn) return;
  const k = Math.min(width / graph.drawn.width, height / graph.drawn.height, 1.15) || 1;
  const shown = all ? k : Math.max(k, LEAST, Math.min(READABLE, width / graph.drawn.width));
  graph.view = { k: shown, x: (width - graph.drawn.width * shown) / 2, y: Math.max(0, (height - graph.drawn.height * shown) / 2) };
  move(graph);
}
const fitAll = (all) => graphs.forEach((graph) => fit(graph, all));
function zoom(graph, factor, point = null) {
  const { width, height } = graph.svg.getBoundingClientRect();
  const { x, y } = graph.view, at = point ?? { x: width / 2, y: height / 2 };
  const k = Math.min(Math.max(graph.view.k * factor, FARTHEST), NEAREST);
  graph.view = { k, x: at.x - (at.x - x) * k / graph.view.k, y: at.y - (at.y - y) * k / graph.view.k };
  move(graph);
}
function centre(graph, id) {
  const box = graph.drawn?.boxes.get(id) ?? graph.drawn?.frames.get(id);
  if (!box) return;
  const { width, height } = graph.svg.getBoundingClientRect();
  const k = Math.max(graph.view.k, 0.85);
  graph.view = { k, x: width / 2 - (box.x + box.width / 2) * k, y: height / 2 - (box.y + Math.min(box.height, height / k) / 2) * k };
  move(graph);
}
/** Moves as little as brings a box into view. */
function keepInView(graph, box) {
  const { width, height } = graph.svg.getBoundingClientRect();
  const { k } = graph.view, edge = 30;
  const shift = (from, length, room) => (from < edge ? edge - from : from + length > room - edge ? Math.max(room - edge - from - length, edge - from) : 0);
  graph.view.x += shift(box.x * k + graph.view.x, box.width * k, width);
  graph.view.y += shift(box.y * k + graph.view.y, Math.min(box.height * k, 40), height);
  move(graph);
}

/** Opens or folds a group; its left upper corner stays where it is. */
function toggle(graph, key) {
  const corner = () => graph.drawn.boxes.get(key) ?? graph.drawn.frames.get(key);
  const was = corner();
  if (open.has(key)) close(key); else open.add(key);
  drawAll();
  const now = corner();
  if (was && now) {
    graph.view.x += (was.x - now.x) * graph.view.k;
    graph.view.y += (was.y - now.y) * graph.view.k;
    keepInView(graph, now);
  }
  rove(graph, key, document.activeElement === document.body || graph.svg.contains(document.activeElement));
}

// ---- one box of each graph can be reached by Tab, the others from there by the arrow keys
function rove(graph, id, focus = false) {
  const all = [...graph.svg.querySelectorAll(".box")];
  const one = all.find((each) => each.dataset.id === id) ?? all.find((each) => each.classList.contains("chosen")) ?? all[0];
  for (const each of all) each.setAttribute("tabindex", each === one ? 0 : -1);
  if (focus || (id && one?.dataset.id === id)) one?.focus({ preventScroll: true });
}
const ARROWS = { ArrowDown: [0, 1], ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0] };
/** The nearest box in a direction: what lies aside counts more than what lies ahead. */
function neighbour(graph, from, [dx, dy]) {
  const all = [...graph.drawn.boxes, ...[...graph.drawn.frames].map(([key, frame]) => [key, { ...frame, height: HEAD }])];
  const middle = (box) => ({ x: box.x + Math.min(box.width, 190) / 2, y: box.y + box.height / 2 });
  const here = middle(all.find(([id]) => id === from)[1]);
  let best = null, least = Infinity;
  for (const [id, box] of all) {
    const there = middle(box), ahead = (there.x - here.x) * dx + (there.y - here.y) * dy;
    if (id === from || ahead < 6) continue;
    const aside = Math.abs((there.x - here.x) * dy) + Math.abs((there.y - here.y) * dx);
    if (ahead + 2.5 * aside < least) { least = ahead + 2.5 * aside; best = id; }
  }
  return best;
}
function onKey(graph, event) {
  const id = document.activeElement?.dataset?.id;
  const box = id && (graph.drawn.boxes.get(id) ?? graph.drawn.frames.get(id));
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (box && event.key in ARROWS) {
    const next = neighbour(graph, id, ARROWS[event.key]);
    if (next) {
      rove(graph, next, true);
      keepInView(graph, graph.drawn.boxes.get(next) ?? graph.drawn.frames.get(next));
    }
  } else if (box && (event.key === "Enter" || event.key === " ")) act(graph, id);
  else if (box && (event.key === "Backspace" || event.key === "Escape")) {
    if (event.key === "Escape" && chosen) forget();
    else {
      const inner = groups.has(id) && open.has(id) ? id : graph.byId.get(id)?.group ?? graph.parents.get(id);
      if (inner && inner !== ROOT) toggle(graph, inner);
    }
  } else if (event.key === "+" || event.key === "=") zoom(graph, 1.25);
  else if (event.key === "-") zoom(graph, 0.8);
  else if (event.key === "0") fit(graph, true);
  else return;
  event.preventDefault();
}
function act(graph, id) {
  if (groups.has(id)) toggle(graph, id);
  else {
    choose(graph.byId.get(id));
    markAll();
    rove(graph, id, true);
    // What is told takes room from the graphs.
    for (const item of [chosen, ...[...twins].slice(0, 1)]) {
      const place = graphOf(item).drawn?.boxes.get(standIn(item));
      if (place && !graphOf(item).section.hidden) keepInView(graphOf(item), place);
    }
  }
}

function handle(graph) {
  let from = null, moved = false;
  graph.svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey && !document.body.classList.contains("whole")) return;
    event.preventDefault();
    const box = graph.svg.getBoundingClientRect();
    zoom(graph, Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0018)), { x: event.clientX - box.left, y: event.clientY - box.top });
  }, { passive: false });
  graph.svg.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    from = { x: event.clientX, y: event.clientY, view: { ...graph.view } };
    moved = false;
  });
  window.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
    if (Math.abs(dx) + Math.abs(dy) > 4) moved = true;
    if (!moved) return;
    graph.view = { ...from.view, x: from.view.x + dx, y: from.view.y + dy };
    move(graph);
  });
  window.addEventListener("pointerup", () => { from = null; });
  graph.svg.addEventListener("click", (event) => {
    if (moved) return;
    const box = event.target.closest(".box");
    if (box) act(graph, box.dataset.id);
  });
  graph.svg.addEventListener("keydown", (event) => onKey(graph, event));
}
