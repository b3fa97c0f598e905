// The contrast of all texts that can be seen with what is behind them, and of bars, lines and outlines with the paper.
const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
pen.canvas.width = pen.canvas.height = 1;
const rgba = (text) => { pen.clearRect(0, 0, 1, 1); pen.fillStyle = text; pen.fillRect(0, 0, 1, 1); return [...pen.getImageData(0, 0, 1, 1).data]; };
const over = (top, below) => top.slice(0, 3).map((v, k) => v * top[3] / 255 + below[k] * (1 - top[3] / 255));
const light = (c) => c.slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((all, v, k) => all + v * [0.2126, 0.7152, 0.0722][k], 0);
const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
const behind = (one) => {
  const layers = [];
  for (let at = one; at; at = at.parentElement) {
    const style = getComputedStyle(at);
    layers.push(rgba(style.backgroundColor));
    if (at.matches("g.box")) {
      const plate = one.matches(".letter") ? at.querySelector(".plate") : null;
      layers.push(rgba(getComputedStyle(plate ?? at.querySelector(".body")).fill));
    }
  }
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
};
const found = [];
for (const one of document.querySelectorAll("body *")) {
  if (one.matches("script, style, title, summary") || !one.checkVisibility()) continue;
  const own = [...one.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join("");
  if (!own && !one.matches("input")) continue;
  const style = getComputedStyle(one), svg = one.namespaceURI.endsWith("svg"), back = behind(one);
  const text = over(rgba(svg ? style.fill : style.color), back);
  found.push([ratio(text, back), `${one.tagName}.${one.getAttribute("class")} ${own.slice(0, 30)}`]);
}
// Bars, plates and outlines against the paper: 3 is enough.
const marks = [];
for (const one of document.querySelectorAll(".strip i, .gauge i, .plate, .meter, .box .body, .flow, button, input")) {
  if (!one.checkVisibility() || one.matches(".link, .shut, #matches button, .head .body")) continue;
  const style = getComputedStyle(one), svg = one.namespaceURI.endsWith("svg");
  const colour = one.matches(".plate, .meter") ? style.fill : svg ? style.stroke : one.matches("i") ? style.backgroundColor : style.borderTopColor;
  const paper = rgba(getComputedStyle(document.body).backgroundColor);
  marks.push([ratio(over(rgba(colour), paper), paper), `${one.tagName}.${one.getAttribute("class")}`]);
}
return { found, marks };
