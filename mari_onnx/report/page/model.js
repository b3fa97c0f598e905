// ---- model: the graphs, their items and groups, and which groups are open
const data = JSON.parse(byId("data").textContent);
const string = (index) => (index < 0 ? null : data.strings[index]);
const RATES = [
  { name: "build", letter: "B", text: "no input: weights and sizes alone" },
  { name: "request", letter: "R", text: "the user alone" },
  { name: "item", letter: "I", text: "the item alone" },
  { name: "candidate", letter: "C", text: "user and item together" },
];
// Where there are more inputs than this, or outputs, those of a rate that has more than a few are folded.
const FEW_ENDS = 5, FEW_OF_RATE = 2;
const ROOT = "g0";

// Both graphs share their groups, so that what is open on the left is open on the right.
const groups = new Map(data.groups.map((each, key) => ["g" + key, { ...each, key: "g" + key }]));
const ends = (key, name) => groups.set(key, { key, name, title: "", kind: "ends", times: 0 });
RATES.forEach((rate, k) => ends("in" + k, `${rate.name} inputs`));
ends("in1", "user inputs");
ends("in3", "other inputs");
ends("out", "outputs");
const open = new Set([ROOT]);

const graphs = ["before", "after"].filter((name) => data[name]).map((name) => readGraph(name, data[name]));
const allItems = graphs.flatMap((graph) => graph.items);
const graphOf = (item) => graphs.find((graph) => graph.name === item.graph);

function readGraph(name, told) {
  const tensors = told.tensors.map((tensor, k) => ({ name: tensor, shape: string(told.shapes[k]), weight: false, maker: null }));
  for (const k of told.weights) tensors[k].weight = true;
  const items = told.names.map((node, i) => ({
    id: "n" + i, index: i, type: "node", graph: name, name: node, op: string(told.ops[i]), rate: Number(told.rates[i]),
    flops: told.flops[i], bytes: told.bytes[i], micros: told.micros[i], source: told.sources[i],
    reads: told.reads[i].map((k) => tensors[k]), makes: told.makes[i].map((k) => tensors[k]), group: "g" + told.around[i],
  }));
  const end = (type, k, rate, folded) => ({ id: type + k, type, graph: name, name: tensors[k].name, op: type, rate,
    flops: 0, bytes: 0, micros: 0, source: -1, reads: [], makes: [], group: folded ? (type === "input" ? "in" + rate : "out") : ROOT });
  const many = (rate) => told.inputs.length > FEW_ENDS && told.inputs.filter((each) => each[1] === rate).length > FEW_OF_RATE;
  const starts = told.inputs.map(([k, rate]) => ({ ...end("input", k, rate, many(rate)), makes: [tensors[k]] }));
  for (const item of [...items, ...starts]) for (const tensor of item.makes) tensor.maker = item;
  const stops = told.outputs.map((k) => ({ ...end("output", k, tensors[k].maker?.rate ?? 3, told.outputs.length > FEW_ENDS),
    reads: [tensors[k]] }));
  items.push(...starts, ...stops);
  const parents = new Map(told.parents.map(([key, parent]) => ["g" + key, "g" + parent]));
  for (const key of new Set(items.map((item) => item.group))) if (key !== ROOT && !parents.has(key)) parents.set(key, ROOT);
  const chains = new Map();
  const chain = (key) => {
    if (!chains.has(key)) chains.set(key, key === ROOT ? [ROOT] : [...chain(parents.get(key)), key]);
    return chains.get(key);
  };
  const members = new Map(); // of each group: what is directly in it, ids of items and keys of groups
  const inside = new Map(); // of each group: all items in it, however deep
  const flopsOf = new Map();
  for (const item of items) {
    item.chain = chain(item.group);
    item.chain.forEach((key, depth) => {
      if (!inside.has(key)) { inside.set(key, []); members.set(key, new Set()); }
      inside.get(key).push(item);
      members.get(key).add(item.chain[depth + 1] ?? item.id);
      flopsOf.set(key, (flopsOf.get(key) ?? 0) + item.flops);
    });
  }
  const flops = sum(told.flops);
  return { name, told, items, members, inside, flopsOf, parents, flops, count: told.names.length,
    byName: new Map(items.filter((item) => item.type === "node").map((item) => [item.name, item])),
    byTensor: new Map(tensors.map((tensor) => [tensor.name, tensor])), byId: new Map(items.map((item) => [item.id, item])),
    section: byId(name), svg: byId(name).querySelector("svg"), view: null, drawn: null, levels: new Map() };
}

/** What is visible of an item: the open groups around it, outermost first, then itself or a folded group. */
function spot(item) {
  const { chain } = item;
  const folded = chain.findIndex((key) => !open.has(key));
  return folded < 0 ? [...chain, item.id] : chain.slice(0, folded + 1);
}
const standIn = (item) => spot(item).at(-1);

/** Opens groups from the outside in, costly ones first, while no more than `most` boxes are visible in a graph, and while
    what is visible then passes `good`; where a few do not, others will hardly. Sisters of one size open together. */
function openUpTo(most, pick = () => true, good = () => true) {
  const counts = graphs.map((graph) => new Set(graph.items.map(standIn)).size);
  const cost = (key) => Math.max(...graphs.map((graph) => (graph.flopsOf.get(key) ?? 0) / (graph.flops || 1)));
  const size = (key) => graphs[0].inside.get(key)?.length ?? 0;
  const ready = new Map(); // name of some folded sisters in an open group -> their keys and cost
  const enter = (key) => {
    for (const graph of graphs) {
      for (const each of graph.members.get(key) ?? []) {
        if (!groups.has(each) || open.has(each) || !pick(groups.get(each))) continue;
        const name = `${key} ${size(each) || each}`, sisters = ready.get(name) ?? { keys: new Set(), cost: 0 };
        ready.set(name, { keys: sisters.keys.add(each), cost: Math.max(sisters.cost, cost(each)) });
      }
    }
  };
  open.forEach(enter);
  let refused = 0;
  while (ready.size && refused < 4) {
    const [name, { keys }] = [...ready].reduce((a, b) => (b[1].cost > a[1].cost ? b : a));
    ready.delete(name);
    const more = graphs.map((graph) => sum([...keys].map((key) => Math.max((graph.members.get(key)?.size ?? 1) - 1, 0))));
    if (counts.some((count, k) => count + more[k] > most)) continue;
    for (const key of keys) open.add(key);
    if (good()) {
      more.forEach((each, k) => { counts[k] += each; });
      keys.forEach(enter);
    } else {
      for (const key of keys) open.delete(key);
      refused += 1;
    }
  }
}
function reveal(item) {
  for (const key of item.chain) open.add(key);
}
/** Folds a group and all in it. */
function close(key) {
  open.delete(key);
  for (const graph of graphs) for (const [child, parent] of graph.parents) if (parent === key && open.has(child)) close(child);
}
/** The nodes of the other graph that compute the same. */
function counterparts(item) {
  const other = graphs.find((graph) => graph.name !== item.graph);
  if (!other) return [];
  if (item.type !== "node") return other.items.filter((each) => each.type === item.type && each.name === item.name);
  if (item.graph === "after") return item.source < 0 ? [] : [other.items[item.source]];
  other.bySource ??= Map.groupBy(other.items.filter((each) => each.type === "node"), (each) => each.source);
  return other.bySource.get(item.index) ?? [];
}
