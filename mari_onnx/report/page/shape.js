// ---- shape: a level as rows and columns that fill a pane
//
// A level that is tall is cut into columns, read like those of a newspaper; rows of one that is wide become two or more.
const COLUMN_GAP = 34, LANE = 5, LANES = 8;
// A level lower, or narrower, than this stays as it is. The price of a line from column to column, as a share.
const TALL = 560, WIDE = 900, MOST_COLUMNS = 6, LINE_PRICE = 0.06;

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
  squeeze(layout, shape);
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

/** Makes a level narrower that is far wider than the shape: rows become two or more, one below the other. */
function squeeze(layout, shape) {
  const rows = ranks(layout);
  const whole = rows.length ? extent(rows, layout) : { left: 0, right: 0 };
  if (whole.right - whole.left < WIDE) return;
  const middle = (whole.left + whole.right) / 2;
  let best = null;
  for (let by = 1; by <= MOST_COLUMNS; by++) {
    const packed = rows.map((row) => packRow(row, layout, (x) => middle + (x - middle) / by));
    const height = sum(packed.map((row) => row.height)) + sum(rows.slice(1).map((row, k) => row.top - rows[k].bottom));
    const needed = Math.max((whole.right - whole.left) / by / shape, height);
    if (!best || needed < 0.9 * best.needed) best = { by, packed, needed };
  }
  if (best.by === 1) return;
  // From the old to the new heights, row by row.
  const stops = [];
  let y = rows[0].top;
  rows.forEach((row, k) => {
    if (k) y += row.top - rows[k - 1].bottom;
    stops.push([row.top, y], [row.bottom, y + best.packed[k].height]);
    for (const [id, place] of best.packed[k].at) Object.assign(layout.node(id), { x: place.x, y: y + place.y });
    y += best.packed[k].height;
  });
  const newY = (old) => {
    const k = Math.max(1, stops.findIndex(([from]) => old <= from));
    const [[a, to], [b, next]] = [stops[k - 1], stops[k]];
    return b > a ? to + (next - to) * (old - a) / (b - a) : to;
  };
  for (const edge of layout.edges()) {
    for (const point of layout.edge(edge).points) { point.x = middle + (point.x - middle) / best.by; point.y = newY(point.y); }
  }
}
/** The boxes of a row at new places; those that would cover each other one below the other. */
function packRow(row, layout, place) {
  const lines = [], at = new Map();
  for (const id of [...row.ids].sort((a, b) => layout.node(a).x - layout.node(b).x)) {
    const { x, width, height } = layout.node(id), left = place(x) - width / 2;
    let line = lines.find((each) => each.right + 14 <= left);
    if (!line) lines.push(line = { ids: [], height: 0 });
    line.ids.push(id);
    line.right = left + width;
    line.height = Math.max(line.height, height);
  }
  let y = 0;
  for (const line of lines) {
    for (const id of line.ids) at.set(id, { x: place(layout.node(id).x), y: y + line.height / 2 });
    y += line.height + 14;
  }
  return { at, height: y - 14 };
}

/** The rows of a level as columns, so many that they fill the shape best. */
function cut(rows, layout, shape) {
  if (!rows.length) return [];
  const whole = extent(rows, layout);
  let best = [whole], least = need([whole], shape, layout);
  for (let count = 2; count <= MOST_COLUMNS && whole.bottom - whole.top > TALL; count++) {
    const columns = inColumns(rows, count, whole.bottom - whole.top).map((some) => extent(some, layout));
    const needed = need(columns, shape, layout);
    if (needed < 0.9 * least) { best = columns; least = needed; }
  }
  return best;
}
/** How large a pane of this shape has to be for columns beside each other; lines from column to column have their price. */
function need(columns, shape, layout) {
  const width = sum(columns.map(({ left, right }) => right - left + COLUMN_GAP + LANE));
  const columnOf = new Map(columns.flatMap(({ rows }, k) => rows.flatMap(({ ids }) => ids.map((id) => [id, k]))));
  const lines = layout.edges().filter(({ v, w }) => columnOf.has(v) && columnOf.has(w) && columnOf.get(v) !== columnOf.get(w));
  return Math.max(width / shape, ...columns.map(({ top, bottom }) => bottom - top)) * (1 + LINE_PRICE * lines.length);
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

