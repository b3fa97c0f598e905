// ---- search
const MATCHES = 40;
let texts = null; // of each item what is searched, made when it is needed

function textOf(item) {
  const at = item.graph === "before" ? item.index : item.source;
  const of = (column) => (item.type === "node" && at >= 0 ? string(told[column][at]) : null);
  return [item.name, item.op, RATES[item.rate].name, of("actions"), of("reasons"), of("whys"),
    ...item.makes.map((tensor) => tensor.name), ...item.reads.map((tensor) => tensor.name)].join(" ").toLowerCase();
}
function search(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  texts ??= allItems.map(textOf);
  const found = words.length ? allItems.filter((_, k) => words.every((word) => texts[k].includes(word))) : [];
  // A name that is the text itself, then names that have it, come first.
  const rank = (item) => (item.name.toLowerCase() === text.toLowerCase().trim() ? 0 : words.every((word) => item.name.toLowerCase().includes(word)) ? 1 : 2);
  const order = new Map(found.map((item) => [item, rank(item)]));
  found.sort((a, b) => order.get(a) - order.get(b));
  hits = new Set(found);
  const list = byId("matches");
  list.replaceChildren(...found.slice(0, MATCHES).map((item) => {
    const button = make("button", { type: "button" }, make("b", { class: `badge rate-${item.rate}` }, RATES[item.rate].letter),
      make("span", {}, `${item.op} `, make("strong", {}, item.name)), make("small", {}, item.graph));
    button.addEventListener("click", () => { list.hidden = true; show(item); });
    return make("li", {}, button);
  }), ...(words.length ? [make("li", {}, make("p", {}, found.length > MATCHES
    ? `${found.length.toLocaleString("en")} found, ${MATCHES} shown` : `${found.length} found`))] : []));
  list.hidden = !words.length;
  markAll();
  return found;
}
function handleSearch() {
  const box = byId("search"), list = byId("matches");
  box.addEventListener("input", () => search(box.value));
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { box.value = ""; search(""); }
    if (event.key === "ArrowDown" && !list.hidden) { event.preventDefault(); list.querySelector("button")?.focus(); }
    if (event.key === "Enter") {
      const [first] = search(box.value);
      list.hidden = true;
      if (first) show(first);
    }
  });
  list.addEventListener("keydown", (event) => {
    const buttons = [...list.querySelectorAll("button")], at = buttons.indexOf(document.activeElement);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1 }[event.key];
    if (event.key === "Escape") { list.hidden = true; box.focus(); }
    if (next === undefined) return;
    event.preventDefault();
    (next < 0 ? box : buttons[Math.min(next, buttons.length - 1)]).focus();
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest(".search")) list.hidden = true;
  });
}
