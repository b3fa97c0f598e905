// ---- overview: what it gained, work by layer, and what is left
const UNITS = { flops: { name: "FLOPs", text: quantity, note: "FLOPs per candidate" },
  micros: { name: "Time", text: duration, note: "predicted time of a run, by measured prices of kernels on one CPU thread" } };
const short = data.title.split(/[\\/]/).pop();

function headline() {
  if (!data.changed) return `Nothing to lift: ${data.reason ?? "see the reasons"}`;
  const measured = data.speed?.ratios?.[data.candidates];
  const predicted = data.seconds && data.seconds[0] / data.seconds[1];
  const fewer = 1 - data.flops[1] / data.flops[0];
  const work = fewer > 0.005 ? `${percent(fewer)} fewer FLOPs per candidate` : "";
  const ratio = measured ?? predicted;
  if (!ratio) return work;
  if (ratio > 0.95 && ratio < 1.05) return `About as fast as before at ${data.candidates} candidates (${measured ? "measured" : "predicted"}${work ? `), with ${work}` : ")"}`;
  const times = `${ratio >= 10 ? ratio.toFixed(0) : ratio.toFixed(1)} times as fast at ${data.candidates} candidates`;
  return `${times} (${measured ? "measured" : "predicted"}${work ? `), with ${work}` : ")"}`;
}
function figure(name, before, after, by, note) {
  return make("li", {}, make("span", { class: "what" }, name),
    make("span", { class: "value" }, data.changed ? make("span", { class: "was" }, before, " → ") : null, make("strong", {}, after)),
    make("span", { class: "by" }, [by, note].filter(Boolean).join(" · ")));
}
function figures() {
  const found = [figure("FLOPs per candidate", ...data.flops.map(quantity), change(...data.flops))];
  if (data.seconds) {
    found.push(figure(`Predicted time at ${data.candidates} candidates`, ...data.seconds.map((s) => duration(1e6 * s)),
      change(...data.seconds), "one CPU thread"));
  }
  found.push(figure("Bytes moved per candidate", ...data.bytes.map(quantity), change(...data.bytes)));
  found.push(figure("Nodes", ...data.nodes.map((n) => n.toLocaleString("en")), change(...data.nodes),
    data.changed ? `${data.once[1].toLocaleString("en")} run once per request` : ""));
  return found;
}
function facts() {
  const found = [];
  if (data.speed) found.push(["Measured", data.speed.text]);
  for (const text of data.check ?? []) found.push(text.startsWith("note: ") ? ["Note", text.slice(6)] : ["Checked", text]);
  for (const line of data.caller) found.push(["For the caller", line.replace(/^for the caller: /, "")]);
  for (const line of data.undone) found.push(["Undone", line]);
  for (const line of data.notes) found.push(["Note", line]);
  for (const line of data.assumed) found.push(["Assumed", line.replace(/^assumed /, "")]);
  if (data.residual) {
    const { before, after } = data.residual;
    found.push(["Equal for all candidates", `${(100 * before.share).toFixed(1)}% of FLOPs before${after ? `, ${(100 * after.share).toFixed(1)}% after` : ""}`]);
  }
  return found.map(([name, ...lines]) => make("li", {}, make("b", {}, name), " ", lines.join("; ")));
}

// ---- work by layer
let unit = "flops";
const TINY = 0.005;
/** A bar of parts by rate, `whole` long at most. */
function strip(parts, whole, what) {
  const text = RATES.map((rate, k) => (parts[k] ? `${rate.name} ${UNITS[unit].text(parts[k])}` : null)).filter(Boolean).join(", ");
  const bar = make("div", { class: "strip", title: `${what}: ${text || "nothing"}` });
  for (const [k, part] of parts.entries()) {
    if (part > 0) bar.append(make("i", { class: `rate-${k}`, style: `width:${(100 * part / whole).toFixed(3)}%` }));
  }
  return bar;
}
function line(name, before, after, whole) {
  const text = UNITS[unit].text;
  const bars = make("div", { class: "strips" }, strip(before, whole, "before"), data.after ? strip(after, whole, "after") : null);
  const [a, b] = [sum(before), sum(after)];
  const numbers = data.after ? [text(a), " → ", make("strong", {}, text(b))] : [make("strong", {}, text(a))];
  return make("div", { class: "line" }, make("div", { class: "layer" }, name), bars,
    make("div", { class: "numbers" }, ...numbers), make("div", { class: "by" }, data.after ? change(a, b) : ""));
}
/** The groups around a layer, innermost first. */
function layersIn(layer) {
  if (layer.node !== null) return source.items[layer.node].chain;
  const found = [];
  for (let at = source.parents.get("g" + layer.group); at; at = source.parents.get(at)) found.push(at);
  return found;
}
function chart() {
  const layers = data.layers.map((layer) => ({ ...layer, old: layer.before[unit], new: data.after ? layer.after[unit] : [0, 0, 0, 0] }));
  const total = (some, which) => RATES.map((_, k) => sum(some.map((layer) => layer[which][k])));
  const all = [total(layers, "old"), total(layers, "new")];
  // What takes next to nothing, and what is in no group, is told in one line.
  const own = layers.filter((layer) => layer.group !== 0 && (sum(layer.old) > TINY * sum(all[0]) || sum(layer.new) > TINY * sum(all[1])));
  const most = Math.max(...own.map((layer) => Math.max(sum(layer.old), sum(layer.new))), 1e-9);
  const whole = line("Whole model", ...all, Math.max(...all.map(sum), 1e-9));
  whole.classList.add("total");
  const inside = (layer) => own.some((each) => each !== layer && layer.group !== null && layersIn(each).includes("g" + layer.group));
  const lines = own.map((layer) => {
    const name = layer.name + (inside(layer) ? ", the rest" : "");
    const button = make("button", { type: "button", class: "link", title: name }, fitted(name, 200, 13, 400, !name.includes(" ")));
    button.addEventListener("click", () => (layer.node === null ? showGroup("g" + layer.group) : show(source.items[layer.node])));
    return line(button, layer.old, layer.new, most);
  });
  const rest = layers.filter((layer) => !own.includes(layer)), parts = [total(rest, "old"), total(rest, "new")];
  if (sum(parts.map(sum))) lines.push(line(own.length ? "everything else" : "all of it", ...parts, Math.max(most, ...parts.map(sum))));
  byId("chart").replaceChildren(whole, ...lines);
  byId("chart-note").textContent = `${data.after ? "The upper bar is the source, the lower one the output: " : ""}${UNITS[unit].note}. `
    + "Colours say whom the work depends on; the source does all of it for each candidate"
    + `${data.after ? ", the output the user's once per request" : ""}. Layers are drawn against the largest one.`;
  for (const button of byId("unit").children) button.setAttribute("aria-pressed", button.dataset.unit === unit);
}
function legend() {
  return RATES.map((rate, k) => make("li", {}, make("b", { class: `badge rate-${k}` }, rate.letter), make("span", {}, rate.name), ` ${rate.text}`));
}

// ---- still per candidate, and why: a row for each reason, whatever names are in it
const FIRST = 6, MANY = 200, NAMED = 3;
function reasons() {
  const found = new Map();
  for (const each of data.left) {
    const key = `${each.rate} ${each.why.replace(/'[^']+'/g, "''")}`;
    if (!found.has(key)) found.set(key, { why: each.why, rate: each.rate === "item" ? 2 : 3, share: 0, nodes: [] });
    const one = found.get(key);
    one.share += each.share;
    one.nodes.push(each);
  }
  return [...found.values()].sort((a, b) => b.share - a.share);
}
function whyRow(each) {
  const { nodes, rate, share } = each;
  const name = ({ node, share: own }) => make("li", {}, source.byName.has(node)
    ? link(source.byName.get(node), fitted(node, 190, 13, 400, true), node) : node, nodes.length > 1 ? make("small", {}, percent(own)) : null);
  const list = make("ul", {}, ...nodes.slice(0, NAMED).map(name));
  if (nodes.length > NAMED) {
    const more = make("button", { type: "button", class: "link" }, `and ${(nodes.length - NAMED).toLocaleString("en")} more`);
    more.addEventListener("click", () => list.replaceChildren(...nodes.slice(0, MANY).map(name)));
    list.append(make("li", {}, more));
  }
  const ops = [...Map.groupBy(nodes, (node) => node.op).keys()];
  const head = ops.length === 1 ? [make("b", {}, nodes.length > 1 ? `${nodes.length} × ${ops[0]}` : ops[0])]
    : [make("b", {}, plural(nodes.length, "node")), make("small", {}, ops.slice(0, 3).join(", ") + (ops.length > 3 ? ", …" : ""))];
  const others = new Set(nodes.map((node) => node.why)).size > 1;
  return make("tr", {},
    make("td", { class: "portion" }, make("b", {}, percent(share)),
      make("span", { class: "gauge" }, make("i", { class: `rate-${rate}`, style: `width:${Math.max(2, 100 * share).toFixed(1)}%` })), chip(rate)),
    make("td", { class: "nodes" }, ...head, list),
    make("td", { class: "text" }, ...linked(each.why), others ? make("small", {}, " The others likewise, with their own names.") : null));
}
function whyTable(count) {
  const all = reasons(), rows = all.slice(0, count).map(whyRow);
  byId("why").replaceChildren(make("thead", {}, make("tr", {}, ...["FLOPs", "Nodes of the source", "Why they are left"]
    .map((text) => make("th", { scope: "col" }, text)))), make("tbody", {}, ...rows));
  if (!rows.length) byId("why").replaceChildren(make("caption", {}, "Nothing: no node of the output works per candidate."));
  const rest = all.slice(count), button = byId("all");
  button.hidden = !rest.length;
  button.textContent = `Show ${plural(rest.length, "more reason")}, ${percent(sum(rest.map((x) => x.share)))} of FLOPs`;
  button.onclick = () => whyTable(MANY);
}

function overview() {
  byId("title").textContent = short;
  byId("title").title = data.title;
  document.title = `mari-onnx: ${short}`;
  byId("headline").textContent = headline();
  byId("figures").append(...figures());
  byId("facts").append(...facts());
  byId("summary").textContent = data.summary;
  byId("totals").append(make("tr", {}, ...["", "before", "after", ""].map((x) => make("th", {}, x))),
    ...data.totals.map(([name, ...cells]) => make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((x) => make("td", {}, x)))));
  byId("legend").append(...legend());
  for (const [name, each] of Object.entries(UNITS)) {
    if (name === "micros" && !data.seconds) continue;
    const button = make("button", { type: "button", "data-unit": name }, each.name);
    button.addEventListener("click", () => { unit = name; chart(); });
    byId("unit").append(button);
  }
  chart();
  whyTable(FIRST);
}
