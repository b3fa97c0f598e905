// Where boxes, the texts in them and frames of a graph are, in pixels of the window.
const graph = document.getElementById(arguments[0]), list = [];
const scale = graph.querySelector(".root").transform.baseVal.consolidate().matrix.a;
for (const one of graph.querySelectorAll(".box:not(.head)")) {
  const r = one.querySelector(".body").getBoundingClientRect();
  const texts = [...one.querySelectorAll("text")].filter((t) => t.textContent).map((t) => t.getBoundingClientRect())
    .map((t) => [t.left - r.left, r.right - t.right, t.top - r.top, r.bottom - t.bottom]);
  list.push({ id: one.dataset.id, box: [r.left, r.top, r.right, r.bottom], texts });
}
const frames = [...graph.querySelectorAll(".frame > rect")].map((f) => f.getBoundingClientRect()).map((r) => [r.left, r.top, r.right, r.bottom]);
return { list, frames, scale };
