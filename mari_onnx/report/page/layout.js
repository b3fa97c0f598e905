// ---- layout: each open group by itself, from the inside out
//
// A level is one open group: its boxes (nodes, folded groups), and the frames of open groups within it, which are laid
// out before. So a level has few boxes, however large the graph is. A line between boxes of different levels is drawn
// in pieces: it leaves a frame at the bottom and enters one at the top, at points that are places in the inner layout.
const SIZES = { node: [170, 42], group: [196, 58], end: [170, 28] };
const HEAD = 26, PAD = 14;
// Lines from so many places enter a frame each by itself; more are joined, as those that leave it are.
const FEW_DOORS = 5;

/** What is visible of each item (`spot`); items of one folded group share one answer. */
function spotsOf(graph) {
  const folded = new Map(); // key of a group -> what is visible of all in it, or null where it is open
  return new Map(graph.items.map((item) => {
    if (!folded.has(item.group)) {
      const path = spot(item);
      folded.set(item.group, groups.has(path.at(-1)) ? path : null);
    }
    return [item, folded.get(item.group) ?? [...item.chain, item.id]];
  }));
}

/** Boxes, frames and lines of a graph, with what is open now; `shape` is the width over the height to fill. */
function layOut(graph, shape) {
  const levels = new Map(); // key of an open group -> {boxes: id -> an item in it, edges, ways}
  const level = (key) => {
    if (!levels.has(key)) levels.set(key, { boxes: new Map(), edges: new Map(), ways: { in: new Set(), out: new Set() } });
    return levels.get(key);
  };
  const spots = spotsOf(graph), seen = new Set();
  for (const [item, path] of spots) {
    if (seen.has(path)) continue;
    seen.add(path);
    for (let k = 0; k + 1 < path.length; k++) level(path[k]).boxes.set(path[k + 1], item);
  }
  const join = (key, from, to, rate) => {
    const { edges } = level(key), name = `${from} ${to}`, edge = edges.get(name);
    if (!edge) edges.set(name, { from, to, rate });
    else if (edge.rate !== rate) edge.rate = null;
  };
  for (const [item, path] of spots) {
    for (const { maker } of item.reads) {
      const start = maker && spots.get(maker);
      if (!maker || start === path) continue;
      let at = 0;
      while (at < path.length && path[at] === start[at]) at++;
      if (at === path.length || at === start.length) continue; // within one folded group
      join(path[at - 1], start[at], path[at], maker.rate);
      for (let k = at; k + 1 < start.length; k++) {
        level(start[k]).ways.out.add(path[at]);
        join(start[k], start[k + 1], "out:" + path[at], maker.rate);
      }
      for (let k = at; k + 1 < path.length; k++) {
        level(path[k]).ways.in.add(start[at]);
        join(path[k], "in:" + start[at], path[k + 1], maker.rate);
      }
    }
  }
  const done = new Map();
  const order = [...levels.keys()].sort((a, b) => depthOf(graph, b) - depthOf(graph, a));
  for (const key of order) done.set(key, layLevel(graph, key, levels.get(key), done, key === ROOT ? shape : 0.9));
  return assemble(spots, done);
}

function depthOf(graph, key) {
  let depth = 0;
  for (let at = key; at !== ROOT; at = graph.parents.get(at)) depth++;
  return depth;
}

/** One level: places of what is in it, and of the doors in its frame, from its left upper corner. */
function layLevel(graph, key, { boxes, edges, ways }, done, shape) {
  const merged = { in: ways.in.size > FEW_DOORS, out: true };
  const door = (name) => (name.startsWith("in:") && merged.in ? "in:*" : name.startsWith("out:") && merged.out ? "out:*" : name);
  const sizes = new Map();
  for (const [id, item] of boxes) {
    const frame = done.get(id);
    sizes.set(id, frame ? [frame.width, frame.height] : SIZES[groups.has(id) ? "group" : item.type === "node" ? "node" : "end"]);
  }
  const lines = new Map();
  for (const edge of edges.values()) {
    const from = door(edge.from), to = door(edge.to), name = `${from} ${to}`;
    const line = lines.get(name);
    if (!line) lines.set(name, { from, to, rate: edge.rate }); else if (line.rate !== edge.rate) line.rate = null;
  }
  const sign = JSON.stringify([[...sizes], [...lines], shape.toFixed(1)]);
  const before = graph.levels.get(key);
  if (before?.sign === sign) return before.level;
  if (sizes.size > 3 && ![...lines.values()].some(({ from, to }) => sizes.has(from) && sizes.has(to))) {
    const level = { ...grid(sizes), merged };
    graph.levels.set(key, { sign, level });
    return level;
  }
  const layout = new dagre.graphlib.Graph();
  layout.setGraph({ rankdir: "TB", nodesep: 18, ranksep: 32, edgesep: 10 });
  layout.setDefaultEdgeLabel(() => ({}));
  for (const [id, [width, height]] of sizes) layout.setNode(id, { width, height });
  for (const { from, to } of lines.values()) {
    for (const [end, top] of [[from, true], [to, false]]) {
      if (sizes.has(end) || layout.hasNode(end)) continue;
      layout.setNode(end, { width: 8, height: 1 });
      // Doors of one side stay in one row.
      const wall = top ? "wall:in" : "wall:out";
      if (!layout.hasNode(wall)) layout.setNode(wall, { width: 1, height: 1 });
      layout.setEdge(top ? wall : end, top ? end : wall, { weight: 20 });
    }
    layout.setEdge(from, to);
  }
  dagre.layout(layout);
  const level = place(layout, sizes, [...lines.values()], shape);
  level.merged = merged;
  graph.levels.set(key, { sign, level });
  return level;
}

/** Places from the outside in; lines meet the doors of the frames that they enter. */
function assemble(spots, done) {
  const boxes = new Map(), frames = new Map(), lines = [];
  const stack = [[ROOT, 0, 0]];
  while (stack.length) {
    const [key, left, top] = stack.pop();
    const level = done.get(key);
    frames.set(key, { x: left, y: top, width: level.width, height: level.height });
    const spotOf = (id, other, leaving) => {
      const { x, y, width, height } = level.at.get(id), inner = done.get(id);
      const centre = { x: left + x, y: top + y + (leaving ? height / 2 : -height / 2) };
      if (id.startsWith("in:")) return { x: centre.x, y: top + 1 };
      if (id.startsWith("out:")) return { x: centre.x, y: top + level.height - 1 };
      if (!inner) return { ...centre, room: width / 2 - 12 };
      const way = leaving ? "out" : "in", name = other.replace(/^(in|out):/, "");
      const door = inner.at.get(`${way}:${inner.merged[way] ? "*" : name}`);
      return { x: left + x - width / 2 + (door ? door.x : width / 2), y: centre.y };
    };
    for (const { from, to, rate, square, points } of level.routes) {
      const moved = points.map((p) => ({ x: p.x + left, y: p.y + top }));
      const start = spotOf(from, to, true), end = spotOf(to, from, false);
      moved[0] = meet(start, moved[1], square);
      moved[moved.length - 1] = meet(end, moved.at(-2), square);
      if (square) { moved[1].x = moved[0].x; moved.at(-2).x = moved.at(-1).x; }
      lines.push({ points: moved, rate, square, from, to, inner: key, last: !to.startsWith("out:") && !done.has(to) });
    }
    for (const [id, { x, y, width, height }] of level.at) {
      if (isDoor(id)) continue;
      if (done.has(id)) stack.push([id, left + x - width / 2, top + y - height / 2]);
      else boxes.set(id, { x: left + x - width / 2, y: top + y - height / 2, width, height, list: [] });
    }
  }
  for (const [item, path] of spots) boxes.get(path.at(-1)).list.push(item);
  const whole = frames.get(ROOT);
  frames.delete(ROOT);
  return { boxes, frames, lines, width: whole.width, height: whole.height };
}

/** Where a line meets a box: towards the next point, within the box's width. */
function meet(end, next, square) {
  if (end.room === undefined || square) return { x: end.x, y: end.y };
  return { x: end.x + Math.max(-end.room, Math.min(end.room, next.x - end.x)), y: end.y };
}
