// ---- details: what is known of the chosen node
const ACTIONS = {
  lifted: "lifted: runs once per request, for one row",
  split: "split: its user part runs once per request, the rest for every candidate",
  folded: "folded: computed when the model was written, or part of another node",
  kept: "kept: runs as in the source",
  barrier: "barrier: its input was computed once per request, but the node runs on all N rows, as in the source",
};
const told = data.before;
const source = graphs[0];

const addressOf = (item) => `#${item.graph}/${encodeURIComponent(item.name)}`;
/** Makes a node the chosen one; the caller draws or marks. */
function choose(item) {
  chosen = item;
  twins = new Set(counterparts(item));
  tell(graphOf(item), item);
  if (location.hash !== addressOf(item)) location.hash = addressOf(item);
}
function forget() {
  chosen = null;
  twins = new Set();
  byId("details").hidden = true;
  markAll();
}
/** Opens what is around a node, brings it into view in both graphs, and tells of it. */
function show(item) {
  const graph = graphOf(item);
  if (graph.section.hidden) pickGraphs("both");
  reveal(item);
  choose(item);
  drawAll();
  centre(graph, item.id);
  const other = graphs.find((each) => each !== graph && !each.section.hidden);
  const [twin] = twins;
  if (other && twin) centre(other, standIn(twin));
  rove(graph, item.id, true);
  byId("graphs").scrollIntoView({ block: "start" });
}
/** Opens what is around a group, and the group, and brings it into view. */
function showGroup(key) {
  for (let at = key; at && at !== ROOT; at = graphs.map((graph) => graph.parents.get(at)).find(Boolean)) open.add(at);
  drawAll();
  for (const graph of graphs) if (!graph.section.hidden) centre(graph, key);
  byId("graphs").scrollIntoView({ block: "start" });
}

function link(item, text, title) {
  const one = make("a", { class: "link", href: addressOf(item), title }, text ?? item.name);
  one.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(item);
  });
  return one;
}
/** A sentence in which quoted names of nodes and tensors lead to them. */
function linked(sentence) {
  return sentence.split(/('[^']+'|`[^`]+`)/).map((part) => {
    if (part.startsWith("`") && part.length > 1) return make("code", {}, part.slice(1, -1));
    const name = part.startsWith("'") && part.endsWith("'") ? part.slice(1, -1) : null;
    const item = name && (source.byName.get(name) ?? source.byTensor.get(name)?.maker);
    return item ? link(item, name) : part;
  });
}
function reasonOf(item) {
  const at = item.graph === "before" ? item.index : item.source;
  if (at < 0) return ["no single operator of the source computes it"];
  const [action, reason, why] = [string(told.actions[at]), string(told.reasons[at]), string(told.whys[at])];
  if (reason) return linked(reason);
  if (why) return linked(why);
  if (action === "lifted") return ["nothing is left: it runs once per request"];
  if (action === "split") return ["nothing is left to lift: the user part runs once per request"];
  if (action === "folded") return ["nothing is left: it is gone from the output"];
  return [["it depends on no input", "it has one row per request already", "it depends on item inputs only",
    "splitting it would not save time"][item.rate]];
}
function row(list, name, ...content) {
  list.append(make("dt", {}, name), make("dd", {}, ...content));
}
function tensorRow(tensor) {
  const shape = make("code", {}, ` ${tensor.shape ?? "unknown shape"}`);
  return make("div", {}, tensor.maker ? link(tensor.maker, tensor.name) : tensor.name, tensor.weight ? " (weight)" : "", shape);
}
function chip(rate) {
  return make("span", { class: `chip rate-${rate}` }, make("b", {}, RATES[rate].letter), RATES[rate].name);
}
function tell(graph, item) {
  const list = make("dl");
  const panel = byId("details");
  const shut = make("button", { type: "button", class: "shut", "aria-label": "Close" }, "×");
  shut.addEventListener("click", forget);
  panel.replaceChildren(shut, make("h3", {}, item.name), list);
  panel.hidden = false;
  row(list, "Operator", item.op, graph.name === "before" ? " of the source" : " of the output");
  row(list, graph.name === "before" ? "Depends on" : "Runs at the rate of", chip(item.rate), `: ${RATES[item.rate].text}`);
  if (item.type === "node") {
    const at = graph.name === "before" ? item.index : item.source;
    const action = at < 0 ? null : string(told.actions[at]);
    if (action) {
      row(list, graph.name === "before" ? "What became of it" : "Its source node was", ACTIONS[action] ?? action);
      row(list, "Rule", string(told.rules[at]));
    }
    list.append(make("dt", {}, "Why not more"), make("dd", { class: "reason", id: "reason" }, ...reasonOf(item)));
    const share = graph.flops ? ` (${(100 * item.flops / graph.flops).toFixed(1)}% of the graph)` : "";
    row(list, "FLOPs per candidate", quantity(item.flops) + share);
    row(list, "Bytes per candidate", quantity(item.bytes));
    if (item.micros) row(list, `Predicted time at ${data.candidates} candidates`, duration(item.micros));
    const measured = data.residual?.[graph.name]?.nodes.find((each) => each.name === item.name);
    if (measured) row(list, "Measured", `${measured.found}; ${measured.why}`);
  }
  if (item.reads.length) row(list, "Inputs", ...item.reads.map(tensorRow));
  if (item.makes.length) row(list, "Outputs", ...item.makes.map(tensorRow));
  const others = counterparts(item);
  if (others.length) {
    row(list, graph.name === "before" ? "In the output" : "In the source",
      ...others.slice(0, 30).map((each) => make("div", {}, link(each, `${each.op} ${each.name}`))),
      others.length > 30 ? `and ${others.length - 30} more` : null);
  }
  const copy = make("button", { type: "button", id: "copy" }, "Copy link to this node");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(location.href).then(() => { copy.textContent = "Copied"; }, () => { copy.textContent = "Copy it from the address bar"; });
  });
  panel.append(copy);
}
