"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const KINDS = {
    Const: "no input", Shared: "user inputs only: once per request", Item: "item inputs only",
    Mixed: "user and candidate",
  };
  // Visible nodes of both graphs together: at first, and at most by "open groups"; and the ranks that their
  // edges pass, by which the time of a layout goes.
  const AT_FIRST = 70, AT_MOST = 700, MOST_RANKS = 4000, FEW_INPUTS = 8;
  const byId = (id) => document.getElementById(id);

  function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "g", "rect", "text", "path", "title", "defs", "marker"].includes(tag);
    const one = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag)
      : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== undefined && value !== null) one.setAttribute(name, value);
    }
    one.append(...children.filter((child) => child !== null && child !== undefined));
    return one;
  }

  function quantity(value) {
    for (const [limit, unit] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
      if (Math.abs(value) >= limit) return Number((value / limit).toPrecision(3)) + unit;
    }
    return String(Number(value.toPrecision(3)));
  }
  const cut = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
  const shapeText = (shape) => (shape ? "[" + shape.join(", ") + "]" : "unknown shape");

  // ---- groups: one tree for both graphs, so that what is open on the left is open on the right
  const groups = new Map(); // key -> {name, key, parent, counts}
  const keyOf = (path) => "g" + path.join(".");
  (function collect(group, path) {
    groups.set(keyOf(path), { name: group.name, key: keyOf(path), path, children: group.groups.length });
    group.groups.forEach((child, i) => collect(child, [...path, i]));
  })(data.groups, []);
  groups.set("inputs", { name: "inputs", key: "inputs", path: null, children: 0 });
  const open = new Set(["g"]);

  const graphs = ["before", "after"].filter((name) => data[name]).map((name) => {
    const told = data[name];
    const items = told.nodes.map((node, i) => ({ ...node, id: "n" + i, graph: name, type: "node" }));
    for (const input of told.inputs) {
      items.push({ ...input, op: "input", inputs: [], outputs: [input.name], id: "i" + items.length,
        graph: name, type: "input", path: null, flops: 0, bytes: 0 });
    }
    for (const output of told.outputs) {
      items.push({ name: output, op: "output", inputs: [output], outputs: [], kind: "Mixed",
        id: "o" + items.length, graph: name, type: "output", path: [], flops: 0, bytes: 0 });
    }
    const maker = new Map();
    for (const item of items) for (const x of item.outputs) maker.set(x, item);
    for (const item of items) if (item.type === "output" && maker.has(item.name)) item.kind = maker.get(item.name).kind;
    const flops = told.nodes.reduce((sum, node) => sum + node.flops, 0);
    const section = byId(name);
    return { name, items, maker, flops, weights: new Set(told.weights), shapes: told.shapes, section,
      svg: section.querySelector("svg"), view: null };
  });
  const allItems = graphs.flatMap((graph) => graph.items);
  // The groups around each item, outermost first.
  for (const item of allItems) {
    item.keys = item.path === null ? ["inputs"] : item.path.map((_, i) => keyOf(item.path.slice(0, i + 1)));
  }
  const whole = Math.max(graphs[0].flops, 1);

  /** The visible stand-in of an item: itself, or the outermost folded group around it. */
  function standIn(item) {
    return item.keys.find((key) => !open.has(key)) ?? item.id;
  }
  /** Whether more than `most` nodes would be visible, or more edges than are laid out in a moment. */
  function tooMany(most) {
    let count = 0, ranks = 0;
    for (const graph of graphs) {
      const rank = new Map(), edges = new Map();
      for (const item of graph.items) {
        const to = standIn(item);
        let at = rank.get(to) ?? 0;
        for (const input of item.inputs) {
          const maker = graph.maker.get(input), from = maker && standIn(maker);
          if (!from || from === to) continue;
          at = Math.max(at, (rank.get(from) ?? 0) + 1);
          edges.set(`${from} ${to}`, [from, to]);
        }
        rank.set(to, at);
      }
      count += rank.size;
      for (const [from, to] of edges.values()) ranks += Math.abs(rank.get(to) - rank.get(from));
    }
    return count > most || ranks > MOST_RANKS;
  }
  /** Opens groups from the outside in, costly ones first, while no more than `most` are visible. */
  function openUpTo(most) {
    const flops = new Map();
    for (const item of allItems) {
      for (const key of item.keys) flops.set(key, (flops.get(key) ?? 0) + item.flops);
    }
    const many = graphs[0].items.filter((item) => item.type === "input").length > FEW_INPUTS;
    const order = [...groups.values()].filter((group) => group.key !== "g" && !(many && group.key === "inputs"));
    const depth = (group) => group.path?.length ?? 0;
    order.sort((a, b) => depth(a) - depth(b) || (flops.get(b.key) ?? 0) - (flops.get(a.key) ?? 0));
    let failed = 0; // in a row: where ten do not fit, others will hardly
    for (const group of order) {
      const parent = group.path ? keyOf(group.path.slice(0, -1)) : "g";
      if (open.has(group.key) || !open.has(parent)) continue;
      open.add(group.key);
      failed = tooMany(most) ? failed + 1 : 0;
      if (failed) open.delete(group.key);
      if (failed === 10) break;
    }
  }
  function reveal(item) {
    for (const key of item.keys) open.add(key);
  }
  function close(key) {
    for (const one of [...open]) if (one === key || (key !== "g" && one.startsWith(key + "."))) open.delete(one);
  }

  // ---- drawing
  let chosen = null; // {graph, id} of an item or a group
  let hits = new Set();
  let twins = new Set();

  function draw(graph) {
    const members = new Map();
    const where = new Map();
    for (const item of graph.items) {
      const id = standIn(item);
      where.set(item, id);
      if (!members.has(id)) members.set(id, []);
      members.get(id).push(item);
    }
    const layout = new dagre.graphlib.Graph({ compound: true });
    layout.setGraph({ rankdir: "TB", nodesep: 14, ranksep: 30, edgesep: 6, marginx: 12, marginy: 12 });
    layout.setDefaultEdgeLabel(() => ({}));
    const clusters = new Set();
    for (const [id, list] of members) {
      const folded = groups.has(id);
      const flops = list.reduce((sum, item) => sum + item.flops, 0);
      const scale = 0.85 + 1.9 * Math.sqrt(Math.min(flops / whole, 1));
      const size = folded ? [142, 44] : list[0].type === "node" ? [104, 34] : [112, 24];
      layout.setNode(id, { width: size[0] * scale, height: size[1] * scale, scale, list, folded, flops });
      const path = folded ? groups.get(id).path : list[0].path;
      if (!path) continue;
      for (let i = folded ? path.length - 1 : path.length, child = id; i >= 1; i--) {
        const key = keyOf(path.slice(0, i));
        if (!clusters.has(key)) layout.setNode(key, { cluster: true });
        layout.setParent(child, key);
        if (clusters.has(key)) break;
        clusters.add(key);
        child = key;
      }
    }
    for (const item of graph.items) {
      for (const input of item.inputs) {
        const from = graph.maker.get(input);
        if (from && where.get(from) !== where.get(item)) layout.setEdge(where.get(from), where.get(item));
      }
    }
    dagre.layout(layout);
    paint(graph, layout, clusters);
  }

  function paint(graph, layout, clusters) {
    const marker = "arrow-" + graph.name;
    const root = make("g", { class: "root" });
    const defs = make("defs", {}, make("marker", { id: marker, viewBox: "0 0 8 8", refX: 7, refY: 4,
      markerWidth: 6, markerHeight: 6, orient: "auto" }, make("path", { d: "M0 0L8 4L0 8z", class: "arrow" })));
    const depth = (key) => key.split(".").length;
    for (const key of [...clusters].sort((a, b) => depth(a) - depth(b))) {
      const box = layout.node(key);
      root.append(make("g", { class: "cluster", "data-fold": key },
        make("rect", { x: box.x - box.width / 2, y: box.y - box.height / 2, width: box.width,
          height: box.height, rx: 6 }),
        make("text", { x: box.x - box.width / 2 + 6, y: box.y - box.height / 2 + 13 },
          "− " + cut(groups.get(key).name, Math.max(8, box.width / 6.5))),
        make("title", {}, "fold " + groups.get(key).name)));
    }
    for (const edge of layout.edges()) {
      const points = layout.edge(edge).points.map((p) => `${p.x.toFixed(1)} ${p.y.toFixed(1)}`);
      root.append(make("path", { class: "edge", d: "M" + points.join("L"), "marker-end": `url(#${marker})` }));
    }
    for (const id of layout.nodes()) {
      const box = layout.node(id);
      if (!box.cluster) root.append(box.folded ? paintGroup(id, box) : paintNode(id, box));
    }
    graph.svg.replaceChildren(defs, root);
    graph.size = layout.graph();
    graph.boxes = new Map(layout.nodes().map((id) => [id, layout.node(id)]));
    mark(graph);
    place(graph);
  }

  function paintNode(id, box) {
    const [item] = box.list;
    const { width, height, scale } = box;
    const plain = item.type === "node";
    const one = make("g", { class: `node ${item.kind}`, "data-id": id, tabindex: 0, role: "button",
      transform: `translate(${box.x - width / 2} ${box.y - height / 2})` },
    make("rect", { class: "body", width, height, rx: plain ? 4 : height / 2 }),
    make("title", {}, item.name));
    const inside = make("g", { transform: `translate(${width / 2} ${height / 2}) scale(${scale})` });
    if (plain) {
      inside.append(make("text", { y: -1 }, `${item.op} · ${item.kind[0]}`),
        make("text", { y: 11, class: "small" }, shortName(item)));
    } else {
      inside.append(make("text", { y: 4, class: "small" }, `${cut(item.name, 18)} · ${item.kind[0]}`));
    }
    one.append(inside);
    return one;
  }

  /** The end of a name; with the module before it where the end is but the operator. */
  function shortName(item) {
    const parts = (item.source ?? item.name).split("/").filter(Boolean);
    const last = parts.at(-1) ?? "";
    const short = last.startsWith(item.op) && parts.length > 1 ? parts.slice(-2).join("/") : last;
    return short.length > 18 ? "…" + short.slice(-17) : short;
  }

  function paintGroup(id, box) {
    const { width, height, scale } = box;
    const counts = Object.keys(KINDS).map((kind) => [kind, box.list.filter((x) => x.kind === kind).length]);
    const one = make("g", { class: "node group", "data-id": id, "data-open": id, tabindex: 0, role: "button",
      transform: `translate(${box.x - width / 2} ${box.y - height / 2})` },
    make("rect", { class: "back", x: 4, y: 4, width, height, rx: 4 }),
    make("rect", { class: "body", width, height, rx: 4 }),
    make("title", {}, "open " + groups.get(id).name));
    let x = 1;
    for (const [kind, count] of counts) {
      const length = (width - 2) * count / box.list.length;
      if (count) one.append(make("rect", { class: kind, x, y: height - 8 * scale, width: length, height: 8 * scale - 1 }));
      x += length;
    }
    const name = groups.get(id).name;
    one.append(make("g", { transform: `translate(${width / 2} ${height / 2 - 4 * scale}) scale(${scale})` },
      make("text", { y: -3 }, "+ " + cut(name.split(/[/.]/).slice(-2).join("."), 19)),
      make("text", { y: 9, class: "small" }, `${box.list.length} nodes · ${quantity(box.flops)} FLOPs`)));
    return one;
  }

  function mark(graph) {
    for (const one of graph.svg.querySelectorAll(".node")) {
      const { list } = graph.boxes.get(one.dataset.id);
      const here = list.length && chosen && chosen.graph === graph.name && chosen.id === one.dataset.id;
      one.classList.toggle("chosen", Boolean(here));
      one.classList.toggle("hit", list.some((item) => hits.has(item)));
      one.classList.toggle("twin", list.some((item) => twins.has(item)));
    }
  }
  const markAll = () => graphs.forEach(mark);
  const drawAll = () => graphs.forEach(draw);

  // ---- pan and zoom
  function place(graph) {
    if (!graph.view) return fit(graph);
    const { x, y, k } = graph.view;
    graph.svg.querySelector(".root").setAttribute("transform", `translate(${x} ${y}) scale(${k})`);
  }
  function fit(graph) {
    const { width, height } = graph.svg.getBoundingClientRect();
    const k = Math.min(width / graph.size.width, height / graph.size.height, 1.4) || 1;
    // A long graph is shown from its top, at a size that can be read.
    const readable = Math.max(k, Math.min(0.6, width / graph.size.width));
    graph.view = { k: readable, x: (width - graph.size.width * readable) / 2,
      y: Math.max(0, (height - graph.size.height * readable) / 2) };
    place(graph);
  }
  function centre(graph, id) {
    const box = graph.boxes.get(id);
    if (!box) return;
    const { width, height } = graph.svg.getBoundingClientRect();
    const k = Math.max(graph.view.k, 0.8);
    graph.view = { k, x: width / 2 - box.x * k, y: height / 2 - box.y * k };
    place(graph);
  }
  function handle(graph) {
    let from = null, moved = false;
    graph.svg.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = graph.svg.getBoundingClientRect();
      const [px, py] = [event.clientX - box.left, event.clientY - box.top];
      const factor = Math.exp(-event.deltaY * 0.0015);
      const k = Math.min(Math.max(graph.view.k * factor, 0.03), 5);
      const { x, y } = graph.view;
      graph.view = { k, x: px - (px - x) * k / graph.view.k, y: py - (py - y) * k / graph.view.k };
      place(graph);
    }, { passive: false });
    graph.svg.addEventListener("pointerdown", (event) => {
      from = { x: event.clientX, y: event.clientY, view: { ...graph.view } };
      moved = false;
    });
    window.addEventListener("pointermove", (event) => {
      if (!from) return;
      const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
      if (Math.abs(dx) + Math.abs(dy) > 4) moved = true;
      if (!moved) return;
      graph.view = { ...from.view, x: from.view.x + dx, y: from.view.y + dy };
      place(graph);
    });
    window.addEventListener("pointerup", () => { from = null; });
    const act = (event) => {
      const cluster = event.target.closest("[data-fold]");
      const node = event.target.closest(".node");
      if (node) choose(graph, node.dataset.id, node.dataset.open);
      else if (cluster) toggle(graph, cluster.dataset.fold);
    };
    graph.svg.addEventListener("click", (event) => { if (!moved) act(event); });
    graph.svg.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(event); }
    });
  }
  /** Folds or opens a group; what was under the pointer stays where it was. */
  function toggle(graph, key) {
    const was = graph.boxes.get(key);
    if (open.has(key)) close(key); else open.add(key);
    drawAll();
    const now = graph.boxes.get(key) ?? [...graph.boxes].find(([id]) => id.startsWith(key + "."))?.[1]
      ?? firstInside(graph, key);
    if (was && now) {
      const top = (box) => box.y - box.height / 2;
      graph.view.x += (was.x - now.x) * graph.view.k;
      graph.view.y += (top(was) - top(now)) * graph.view.k;
      place(graph);
    }
  }
  function firstInside(graph, key) {
    return [...graph.boxes.values()].find((box) => box.list?.some((item) =>
      key === "inputs" ? item.path === null : item.path && (keyOf(item.path) + ".").startsWith(key + ".")));
  }

  // ---- choosing
  function choose(graph, id, group) {
    const box = graph.boxes.get(id);
    chosen = { graph: graph.name, id };
    if (group) {
      twins = new Set();
      tellGroup(graph, id, box);
      toggle(graph, group);
    } else {
      const [item] = box.list;
      twins = new Set(counterparts(item));
      tell(graph, item);
    }
    markAll();
  }
  function show(item) {
    const graph = graphs.find((each) => each.name === item.graph);
    reveal(item);
    chosen = { graph: graph.name, id: item.id };
    twins = new Set(counterparts(item));
    drawAll();
    centre(graph, item.id);
    const other = graphs.find((each) => each !== graph);
    const [twin] = twins;
    if (other && twin) centre(other, standIn(twin));
    tell(graph, item);
  }
  function counterparts(item) {
    const other = allItems.filter((each) => each.graph !== item.graph);
    if (item.type !== "node") return other.filter((each) => each.type === item.type && each.name === item.name);
    if (item.graph === "after") return other.filter((each) => each.type === "node" && each.name === item.source);
    return other.filter((each) => each.type === "node" && each.source === item.name);
  }

  // ---- details
  function link(item, text) {
    const button = make("button", {}, text ?? item.name);
    button.addEventListener("click", () => show(item));
    return button;
  }
  const ACTIONS = {
    lifted: "lifted: runs once per request, for one row",
    split: "split: its user part runs once per request, the rest for every candidate",
    folded: "folded: computed when the model was written, or part of another node",
    kept: "kept: runs as in the source",
    barrier: "barrier: its input was computed once per request, but the node runs on all N rows, as in the source",
  };
  function reasonOf(item) {
    if (item.reason) return [item.reason];
    if (item.stopped_by) {
      const stop = graphs[0].items.find((each) => each.type === "node" && each.name === item.stopped_by);
      if (stop) return [link(stop, `${stop.op} ${stop.name}`), ` before it runs on all N rows: ${stop.reason}`];
    }
    if (item.action === "lifted") return ["nothing is left: it runs once per request"];
    if (item.action === "split") return ["nothing is left to lift: the user part runs once per request"];
    if (item.action === "folded") return ["nothing is left: it is gone from the output"];
    if (item.kind === "Shared") return ["it has one row per request already"];
    if (item.kind === "Item") return ["it depends on item inputs only"];
    if (item.kind === "Const") return ["it depends on no input"];
    return [item.why || "splitting it would not save time"];
  }
  function row(list, name, ...content) {
    list.append(make("dt", {}, name), make("dd", {}, ...content));
  }
  function tensorRow(graph, name) {
    const from = graph.maker.get(name);
    const tail = make("code", {}, " " + shapeText(graph.shapes[name]));
    return make("div", {}, from ? link(from, name) : name, graph.weights.has(name) ? " (weight)" : "", tail);
  }
  function tell(graph, item) {
    const list = make("dl");
    const panel = byId("details");
    panel.replaceChildren(make("h3", {}, item.name), list);
    row(list, "operator", item.op, graph.name === "before" ? " of the source" : " of the output");
    row(list, "kind", make("b", { class: item.kind, style: "padding:0 .4em;border-radius:3px" }, item.kind),
      " " + KINDS[item.kind]);
    if (item.type === "node") {
      if (item.action) {
        row(list, graph.name === "before" ? "what became of it" : "its source node was", ACTIONS[item.action] ?? item.action);
        row(list, "rule", item.rule);
      }
      list.append(make("dt", {}, "reason"), make("dd", { class: "reason", id: "reason" }, ...reasonOf(item)));
      const share = graph.flops ? ` (${(100 * item.flops / graph.flops).toFixed(1)}% of the graph)` : "";
      row(list, "FLOPs per candidate", quantity(item.flops) + share);
      row(list, "bytes per candidate", quantity(item.bytes));
      const measured = data.residual?.[graph.name]?.nodes.find((each) => each.name === item.name);
      if (measured) row(list, "measured", `${measured.found}; ${measured.why}`);
    }
    if (item.inputs.length) row(list, "inputs", ...item.inputs.map((x) => tensorRow(graph, x)));
    if (item.outputs.length) row(list, "outputs", ...item.outputs.map((x) => tensorRow(graph, x)));
    const others = counterparts(item);
    if (others.length) {
      row(list, graph.name === "before" ? "in the output" : "in the source",
        ...others.slice(0, 30).map((each) => make("div", {}, link(each, `${each.op} ${each.name}`))));
    }
  }
  function tellGroup(graph, id, box) {
    const list = make("dl");
    byId("details").replaceChildren(make("h3", {}, groups.get(id).name), list);
    row(list, "nodes", String(box.list.length));
    for (const kind of Object.keys(KINDS)) {
      const count = box.list.filter((item) => item.kind === kind).length;
      if (count) row(list, kind, `${count}: ${KINDS[kind]}`);
    }
    row(list, "FLOPs per candidate", quantity(box.flops));
  }

  // ---- search
  function search(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const found = !words.length ? [] : allItems.filter((item) => {
      const all = [item.name, item.op, item.kind, item.action, item.reason, ...item.outputs, ...item.inputs]
        .join(" ").toLowerCase();
      return words.every((word) => all.includes(word));
    });
    hits = new Set(found);
    const most = 40;
    byId("matches").replaceChildren(...found.slice(0, most).map((item) => {
      const button = link(item, `${item.graph}: ${item.op} ${item.name}`);
      button.addEventListener("click", () => { byId("matches").hidden = true; });
      return make("li", {}, button);
    }), ...(words.length ? [make("li", {}, make("p", {}, found.length > most
      ? `${found.length} found, ${most} shown` : `${found.length} found`))] : []));
    byId("matches").hidden = !words.length;
    markAll();
    return found;
  }

  // ---- the page around it
  byId("title").textContent = data.title;
  document.title = `mari-onnx: ${data.title.split(/[\\/]/).pop()}`;
  byId("summary").textContent = data.summary;
  const residual = data.residual;
  byId("notes").textContent = [
    ...data.incidents.map((text) => `undone: ${text}`),
    ...data.assumed,
    ...(residual ? [`equal for all candidates: ${(100 * residual.before.share).toFixed(1)}% of FLOPs before`
      + (residual.after ? `, ${(100 * residual.after.share).toFixed(1)}% after` : "")] : []),
  ].join("\n");
  byId("totals").append(make("tr", {}, ...["", "before", "after", ""].map((x) => make("th", {}, x))),
    ...data.totals.map(([name, ...cells]) => make("tr", {}, make("th", {}, name), ...cells.map((x) => make("td", {}, x)))));
  for (const [kind, text] of Object.entries(KINDS)) {
    byId("legend").append(make("li", {}, make("b", { class: kind }, kind[0]), `${kind}: ${text}`));
  }
  byId("details").append(make("p", {}, "Click a node to see its shapes, cost, rule and reason. Click a group to open it, and the frame of an open "
    + "group to fold it. Drag to move, scroll to zoom. The more FLOPs per candidate a node takes, the larger it is."));
  for (const graph of graphs) {
    const count = data[graph.name].nodes.length;
    graph.section.querySelector("h2").textContent = graph.name === "before"
      ? `before: the source, ${count} nodes` : `after: the output, ${count} nodes`;
    handle(graph);
  }
  if (!data.after) byId("after").hidden = true;
  byId("open").addEventListener("click", () => { openUpTo(AT_MOST); graphs.forEach((g) => { g.view = null; }); drawAll(); });
  byId("fold").addEventListener("click", () => {
    open.clear(); open.add("g"); graphs.forEach((g) => { g.view = null; }); drawAll();
  });
  byId("fit").addEventListener("click", () => graphs.forEach(fit));
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  const box = byId("search");
  box.addEventListener("input", () => search(box.value));
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { box.value = ""; search(""); }
    if (event.key === "Enter") {
      const [first] = search(box.value);
      byId("matches").hidden = true;
      if (first) show(first);
    }
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest(".search")) byId("matches").hidden = true;
  });
  window.addEventListener("resize", () => graphs.forEach(place));

  openUpTo(AT_FIRST);
  drawAll();
})();
