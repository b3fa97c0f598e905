// ---- draw: boxes, frames and lines as SVG
let chosen = null; // an item
let hits = new Set();
let twins = new Set();

/** Places of all that is visible, for the pane as it is now. */
function arranged(graph) {
  const { width, height } = graph.svg.getBoundingClientRect();
  return layOut(graph, Math.max(0.5, Math.min(2.4, width && height ? width / height : 1)));
}
function draw(graph) {
  const drawn = arranged(graph);
  const root = make("g", { class: "root" });
  const arrows = [...RATES.map((_, k) => k), "x"].map((rate) => make("marker", { id: `arrow-${graph.name}-${rate}`,
    viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto", markerUnits: "userSpaceOnUse" },
  make("path", { d: "M0 0L8 4L0 8z", class: `arrow rate-${rate}` })));
  for (const [key, frame] of drawn.frames) root.append(paintFrame(graph, key, frame));
  const lines = make("g", { class: "lines" });
  for (const line of drawn.lines) {
    const rate = line.rate ?? "x";
    lines.append(make("path", { class: `flow rate-${rate}`, d: line.square ? squarePath(line.points) : smoothPath(line.points),
      "marker-end": line.last ? `url(#arrow-${graph.name}-${rate})` : null }));
  }
  root.append(lines, make("g", { class: "wires" }));
  for (const [key, frame] of drawn.frames) root.append(paintHead(graph, key, frame));
  for (const [id, box] of drawn.boxes) root.append(groups.has(id) ? paintGroup(graph, id, box) : paintItem(graph, box));
  const focused = graph.svg.contains(document.activeElement) ? document.activeElement.dataset.id : null;
  graph.svg.replaceChildren(make("defs", {}, ...arrows), root);
  graph.drawn = drawn;
  mark(graph);
  move(graph);
  rove(graph, focused);
}
const drawAll = () => graphs.forEach((graph) => { if (!graph.section.hidden) draw(graph); });

/** Through points from top to bottom, vertical at each of them. */
function smoothPath(points) {
  const n = (value) => value.toFixed(1);
  let path = `M${n(points[0].x)} ${n(points[0].y)}`;
  for (let k = 1; k < points.length; k++) {
    const a = points[k - 1], b = points[k], middle = (a.y + b.y) / 2;
    path += Math.abs(a.x - b.x) < 0.5 ? `L${n(b.x)} ${n(b.y)}` : `C${n(a.x)} ${n(middle)} ${n(b.x)} ${n(middle)} ${n(b.x)} ${n(b.y)}`;
  }
  return path;
}
/** Through points with rounded corners. */
function squarePath(points) {
  let path = `M${points[0].x} ${points[0].y}`;
  for (let k = 1; k + 1 < points.length; k++) {
    const [a, b, c] = [points[k - 1], points[k], points[k + 1]];
    const before = Math.hypot(b.x - a.x, b.y - a.y), after = Math.hypot(c.x - b.x, c.y - b.y);
    const r = Math.min(6, before / 2, after / 2);
    if (!r) continue;
    const p = { x: b.x + (a.x - b.x) * r / before, y: b.y + (a.y - b.y) * r / before };
    const q = { x: b.x + (c.x - b.x) * r / after, y: b.y + (c.y - b.y) * r / after };
    path += `L${p.x} ${p.y}Q${b.x} ${b.y} ${q.x} ${q.y}`;
  }
  return `${path}L${points.at(-1).x} ${points.at(-1).y}`;
}

function paintItem(graph, box) {
  const [item] = box.list;
  const { x, y, width, height } = box, rate = RATES[item.rate];
  const share = graph.flops ? item.flops / graph.flops : 0;
  const one = make("g", { class: `box item rate-${item.rate}${item.type === "node" ? "" : " end"}`, "data-id": item.id, tabindex: -1,
    role: "button", transform: `translate(${x} ${y})`, "aria-label":
    `${item.op} ${item.name}, ${rate.name}${share >= 0.005 ? `, ${percent(share)} of FLOPs` : ""}` },
  make("title", {}, item.name),
  make("rect", { class: "body", width, height, rx: item.type === "node" ? 6 : height / 2 }));
  if (item.type !== "node") {
    one.append(make("text", { class: "small strong", x: 13, y: height / 2 + 4 }, rate.letter),
      make("text", { class: "small", x: 28, y: height / 2 + 4 }, fitted(item.name, width - 40, 11)));
    return one;
  }
  const told = share >= 0.005 ? percent(share) : "";
  one.append(make("rect", { class: "plate", x: 7, y: 7, width: 15, height: 15, rx: 4 }),
    make("text", { class: "letter", x: 14.5, y: 18.5 }, rate.letter),
    make("text", { class: "name", x: 28, y: 18.5 }, fitted(item.op, width - 40 - (told ? 34 : 0), 12, 600)),
    make("text", { class: "share", x: width - 9, y: 18.5 }, told),
    make("text", { class: "small dim", x: 9, y: 34 }, fitted(shortName(item), width - 18, 10.5, 400, true)));
  return one;
}

/** The end of a name; without the operator that is written above it. */
function shortName(item) {
  const name = item.source >= 0 ? graphs[0].items[item.source].name : item.name;
  const parts = name.split("/").filter(Boolean);
  const last = parts.at(-1) ?? "";
  return last === item.op && parts.length > 1 ? parts.slice(-2).join("/") : last;
}

function paintGroup(graph, key, box) {
  const { x, y, width, height, list } = box, group = groups.get(key);
  const flops = graph.flopsOf.get(key) ?? 0, share = graph.flops ? flops / graph.flops : 0;
  const times = group.times > 1 ? `${group.times} × ` : "";
  const nodes = list.filter((item) => item.type === "node").length;
  const each = nodes / (group.times || 1), alone = times && each === 1;
  const sub = group.kind === "ends" ? `${list.length} of them` : times && !alone && Number.isInteger(each) ? times + plural(each, "node")
    : plural(nodes, "node");
  const one = make("g", { class: "box group", "data-id": key, tabindex: -1, role: "button", "aria-expanded": "false",
    transform: `translate(${x} ${y})`, "aria-label":
    `${times}${group.name}, folded, ${sub}${share >= 0.005 ? `, ${percent(share)} of FLOPs` : ""}` },
  make("title", {}, `open ${group.title || group.name}`));
  for (const shift of times ? [6, 3] : []) {
    one.append(make("rect", { class: "back", x: shift, y: shift, width: width - 6, height: height - 6, rx: 7 }));
  }
  const [w, h] = times ? [width - 6, height - 6] : [width, height];
  one.append(make("rect", { class: "body", width: w, height: h, rx: 7 }),
    make("text", { class: "name", x: 11, y: 21 }, "▸ " + fitted((alone ? times : "") + group.name, w - 36, 12, 600)),
    make("text", { class: "small dim", x: 11, y: 37 }, sub),
    make("text", { class: "share", x: w - 10, y: 37 }, share >= 0.005 ? percent(share) : ""));
  // By FLOPs; by nodes where none has any.
  const by = RATES.map((_, rate) => sum(list.filter((item) => item.rate === rate).map((item) => (flops ? item.flops : 1))));
  let left = 11;
  for (const [rate, part] of by.entries()) {
    const length = (w - 22) * part / (sum(by) || 1);
    if (length >= 0.5) one.append(make("rect", { class: `meter rate-${rate}`, x: left, y: h - 9, width: Math.max(length - 1, 0.5), height: 4 }));
    left += length;
  }
  return one;
}

function paintFrame(graph, key, { x, y, width, height }) {
  return make("g", { class: "frame", "data-fold": key }, make("rect", { x, y, width, height, rx: 9 }));
}
function paintHead(graph, key, { x, y, width }) {
  const group = groups.get(key), share = graph.flops ? (graph.flopsOf.get(key) ?? 0) / graph.flops : 0;
  const told = share >= 0.005 ? percent(share) : "";
  const text = `${group.times > 1 ? `${group.times} × ` : ""}${group.name}`;
  return make("g", { class: "head box", "data-fold": key, "data-id": key, tabindex: -1, role: "button", "aria-expanded": "true",
    "aria-label": `${text}, open`, transform: `translate(${x} ${y})` },
  make("title", {}, `fold ${group.title || group.name}`),
  make("rect", { class: "body", x: 5, y: 4, width: Math.min(width - 10, textWidth(text, 11.5, 600) + 34), height: HEAD - 6, rx: 5 }),
  make("text", { class: "name", x: 11, y: 18 }, "▾ " + fitted(text, width - (told ? 76 : 44), 11.5, 600)),
  make("text", { class: "share", x: width - 10, y: 18 }, told));
}

function mark(graph) {
  if (!graph.drawn) return;
  const here = chosen?.graph === graph.name ? standIn(chosen) : null;
  for (const one of graph.svg.querySelectorAll(".box:not(.head)")) {
    const { list } = graph.drawn.boxes.get(one.dataset.id);
    one.classList.toggle("chosen", one.dataset.id === here);
    one.classList.toggle("hit", hits.size > 0 && list.some((item) => hits.has(item)));
    one.classList.toggle("twin", twins.size > 0 && list.some((item) => twins.has(item)));
  }
  paintWires(graph, here);
}
const markAll = () => graphs.forEach((graph) => { if (!graph.section.hidden) mark(graph); });

/** Straight from what the chosen node reads, and to its readers, over all frames. */
function paintWires(graph, here) {
  const wires = graph.svg.querySelector(".wires");
  wires?.replaceChildren();
  if (!wires || !here || chosen.type !== "node") return;
  const pairs = new Map();
  const pair = (from, to) => {
    const [a, b] = [standIn(from), standIn(to)];
    if (a !== b) pairs.set(`${a} ${b}`, [graph.drawn.boxes.get(a), graph.drawn.boxes.get(b)]);
  };
  for (const { maker } of chosen.reads) if (maker) pair(maker, chosen);
  graph.readers ??= Map.groupBy(graph.items.flatMap((item) => item.reads.map((tensor) => [tensor, item])), ([tensor]) => tensor);
  for (const tensor of chosen.makes) for (const [, reader] of graph.readers.get(tensor) ?? []) pair(chosen, reader);
  for (const [a, b] of pairs.values()) {
    wires.append(make("path", { class: "wire", d: smoothPath([{ x: a.x + a.width / 2, y: a.y + a.height }, { x: b.x + b.width / 2, y: b.y }]) }));
  }
}
