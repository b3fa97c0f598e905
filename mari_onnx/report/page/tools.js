// ---- tools: elements, numbers, texts
const byId = (id) => document.getElementById(id);
const SVG = new Set(["svg", "g", "rect", "text", "tspan", "path", "title", "defs", "marker", "circle"]);

/** An element with attributes and children; what is null or undefined is left out. */
function make(tag, attributes = {}, ...children) {
  const one = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) one.setAttribute(name, value);
  }
  one.append(...children.filter((child) => child !== null && child !== undefined));
  return one;
}

/** `1234567` as `1.23 M`. */
function quantity(value) {
  for (const [limit, unit] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (Math.abs(value) >= limit) return Number((value / limit).toPrecision(3)) + unit;
  }
  return String(Number(value.toPrecision(3)));
}
/** Microseconds as `1.23 ms`. */
function duration(micros) {
  for (const [limit, unit] of [[1e6, " s"], [1e3, " ms"]]) {
    if (micros >= limit) return Number((micros / limit).toPrecision(3)) + unit;
  }
  return Number(micros.toPrecision(3)) + " µs";
}
const percent = (share) => (share > 0 && share < 0.01 ? "<1%" : `${Math.round(100 * share)}%`);
/** `−73%`, `+3%`, `×12`, `same`. */
function change(before, after) {
  if (!before) return "";
  const by = Math.round(100 * (after / before - 1));
  if (by > 300) return `×${quantity(after / before)}`;
  return by === 0 ? "same" : by < 0 ? `−${-by}%` : `+${by}%`;
}
const plural = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
const sum = (numbers) => numbers.reduce((total, each) => total + each, 0);

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const pen = document.createElement("canvas").getContext("2d");
const widths = new Map();
function textWidth(text, size, weight = 400) {
  const key = `${weight} ${size} ${text}`;
  if (!widths.has(key)) {
    pen.font = `${weight} ${size}px ${FONT}`;
    widths.set(key, pen.measureText(text).width);
  }
  return widths.get(key);
}
/** As much of a text as fits into `room` pixels; its end where `tail`, for the ends of names tell most. */
function fitted(text, room, size, weight = 400, tail = false) {
  if (textWidth(text, size, weight) <= room) return text;
  let low = 0, high = text.length;
  const cut = (count) => (tail ? "…" + text.slice(text.length - count) : text.slice(0, count) + "…");
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (textWidth(cut(middle), size, weight) <= room) low = middle; else high = middle - 1;
  }
  return cut(low);
}
