// ---- layout: each open group by itself, from the inside out
//
// A level is one open group: its boxes (nodes, folded groups), and the frames of open groups within it, which are laid
// out before. So a level has few boxes, however large the graph is. A line between boxes of different levels is drawn
// in pieces: it leaves a frame at the bottom and enters one at the top, at points that are places in the inner layout.
// A tall level is cut into columns, read like those of a newspaper.
const SIZES = { node: [170, 42], group: [196, 58], end: [170, 28] };
const HEAD = 26, PAD = 14, COLUMN_GAP = 34, LANE = 5, LANES = 8;
// Lines from so many places enter a frame each by itself; more are joined, as those that leave it are.
const FEW_DOORS = 5;
// A level lower than this is not cut into columns, and none into more than a few.
const TALL = 560, MOST_COLUMNS = 6;

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

/** Boxes that no line joins, in rows; lines end at the frame. */
function grid(sizes) {
  const gap = 14, at = new Map();
  const area = sum([...sizes.values()].map(([w, h]) => (w + gap) * (h + gap)));
  const most = Math.max(Math.sqrt(area * 2.4), ...[...sizes.values()].map(([w]) => w));
  let x = PAD, y = HEAD + 10, tall = 0, wide = 0;
  for (const [id, [width, height]] of sizes) {
    if (x > PAD && x + width - PAD > most) { x = PAD; y += tall + gap; tall = 0; }
    at.set(id, { x: x + width / 2, y: y + height / 2, width, height });
    x += width + gap;
    tall = Math.max(tall, height);
    wide = Math.max(wide, x - gap);
  }
  return { width: wide + PAD, height: y + tall + PAD, at, routes: [] };
}

/** What dagre found, cut into columns where it is tall, with the frame around it. */
function place(layout, sizes, lines, shape) {
  const rows = ranks(layout);
  // Doors are in the frame itself: rows of them take no room.
  const inner = rows.filter(({ ids }) => !ids.every(isDoor));
  const columns = cut(inner, layout, shape);
  for (const row of rows.filter(({ ids }) => ids.every(isDoor))) columns.at(row.ids[0].startsWith("in:") ? 0 : -1).rows.push(row);
  const columnOf = new Map();
  columns.forEach((column, k) => column.rows.forEach((row) => row.ids.forEach((id) => columnOf.set(id, { k, row }))));
  const long = lines.filter(({ from, to }) => columnOf.has(from) && columnOf.has(to) && columnOf.get(from).k !== columnOf.get(to).k);
  const far = long.filter(({ from, to }) => columnOf.get(to).k !== columnOf.get(from).k + 1).length;
  const roof = far ? 12 + LANE * Math.min(far, LANES) : 0;
  let x = PAD;
  columns.forEach((column, k) => {
    column.dx = x - column.left;
    column.dy = HEAD + 10 + roof - column.top;
    x += column.right - column.left;
    const leaving = long.filter(({ from }) => columnOf.get(from).k === k).length;
    column.gutter = x + 12;
    x += k + 1 < columns.length || leaving ? COLUMN_GAP + LANE * Math.min(leaving, LANES) : 0;
  });
  const at = new Map();
  for (const [id, { k }] of columnOf) {
    const box = layout.node(id), column = columns[k];
    at.set(id, { x: box.x + column.dx, y: box.y + column.dy, width: box.width, height: box.height });
  }
  const bottom = Math.max(...columns.map((column) => column.bottom + column.dy), HEAD + 20) + PAD;
  let lane = 0;
  const routes = lines.map(({ from, to, rate }) => {
    const a = columnOf.get(from), b = columnOf.get(to);
    if (a.k !== b.k) return { from, to, rate, square: true, points: around(a, b, at.get(from), at.get(to), columns, lane++ % LANES, HEAD + 10 + roof) };
    const { dx, dy } = columns[a.k];
    const edge = layout.edge(from, to);
    return { from, to, rate, square: false, points: edge.points.map((p) => ({ x: p.x + dx, y: p.y + dy })) };
  });
  return { width: x + PAD, height: bottom, at, routes };
}

const isDoor = (id) => id.startsWith("in:") || id.startsWith("out:");
function ranks(layout) {
  const rows = new Map();
  for (const id of layout.nodes()) {
    if (id.startsWith("wall:")) continue;
    const { y, height } = layout.node(id), key = Math.round(y);
    if (!rows.has(key)) rows.set(key, { y, ids: [], top: Infinity, bottom: -Infinity });
    const row = rows.get(key);
    row.ids.push(id);
    row.top = Math.min(row.top, y - height / 2);
    row.bottom = Math.max(row.bottom, y + height / 2);
  }
  return [...rows.values()].sort((a, b) => a.y - b.y);
}

/** The rows of a level as columns, so many that they fill the shape best. */
function cut(rows, layout, shape) {
  if (!rows.length) return [];
  const whole = extent(rows, layout);
  let best = [whole], least = need([whole], shape);
  for (let count = 2; count <= MOST_COLUMNS && whole.bottom - whole.top > TALL; count++) {
    const columns = inColumns(rows, count, whole.bottom - whole.top).map((some) => extent(some, layout));
    // Lines from column to column have their price.
    if (need(columns, shape) < 0.85 * least) { best = columns; least = need(columns, shape); }
  }
  return best;
}
/** How large a pane of this shape has to be for columns beside each other. */
function need(columns, shape) {
  const width = sum(columns.map(({ left, right }) => right - left + COLUMN_GAP + LANE));
  return Math.max(width / shape, ...columns.map(({ top, bottom }) => bottom - top));
}
function inColumns(rows, count, height) {
  const columns = [[]];
  let start = rows[0].top;
  for (const row of rows) {
    if (row.bottom - start > height / count * 1.05 && columns.at(-1).length && columns.length < count) { columns.push([]); start = row.top; }
    columns.at(-1).push(row);
  }
  return columns;
}
/** Some rows, and what room they and the lines between them take. */
function extent(rows, layout) {
  let left = Infinity, right = -Infinity;
  const ids = new Set(rows.flatMap((row) => row.ids));
  for (const id of ids) {
    const { x, width } = layout.node(id);
    left = Math.min(left, x - width / 2);
    right = Math.max(right, x + width / 2);
  }
  for (const edge of layout.edges()) {
    if (!ids.has(edge.v) || !ids.has(edge.w)) continue;
    for (const { x } of layout.edge(edge).points) { left = Math.min(left, x - 4); right = Math.max(right, x + 4); }
  }
  return { rows: [...rows], left, right, top: rows[0].top, bottom: rows.at(-1).bottom };
}

/** A line to another column: down, through the gap beside its column, and down into its target. */
function around(a, b, from, to, columns, lane, roof) {
  const low = a.row.bottom + columns[a.k].dy + 7 + lane * 2, high = b.row.top + columns[b.k].dy - 8 - lane * 2;
  const out = columns[a.k].gutter + lane * LANE;
  const points = [{ x: from.x, y: from.y + from.height / 2 }, { x: from.x, y: low }, { x: out, y: low }];
  if (b.k !== a.k + 1) {
    const into = b.k ? columns[b.k - 1].gutter + lane * LANE : PAD / 2, top = roof - 10 - lane * LANE;
    points.push({ x: out, y: top }, { x: into, y: top }, { x: into, y: high });
  } else points.push({ x: out, y: high });
  return [...points, { x: to.x, y: high }, { x: to.x, y: to.y - to.height / 2 }];
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
