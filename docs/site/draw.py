"""The drawings of the docs: `python docs/site/draw.py` writes docs/images/{before-after,identity,rates}.svg.

`before-after` is drawn from a real model: made here, optimized by mari-onnx, laid out from the nodes of both graphs.
A drawing has its own background, and colours for light and dark, so it is legible wherever it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

import mari_onnx

IMAGES = Path(__file__).resolve().parents[1] / "images"
USER, ITEM, HIDDEN = 512, 128, 128

STYLE = """
text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--text); }
.title { font-size: 17px; font-weight: 600 } .op { font-weight: 600 } .small { font-size: 12.5px; fill: var(--muted) }
.mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 13px }
.panel { fill: var(--panel); stroke: var(--line) } .edge { fill: none; stroke: var(--muted); stroke-width: 1.6 }
.head { fill: var(--muted) } .box { stroke-width: 1.5 }
.candidate { fill: var(--candidate); stroke: var(--candidate-line) }
.request { fill: var(--request); stroke: var(--request-line) }
.item { fill: var(--item); stroke: var(--item-line) } .build { fill: var(--build); stroke: var(--build-line) }
svg { --panel: #f8f9fb; --line: #d3d9e2; --text: #17202b; --muted: #4a5768;
 --candidate: #ffe2c4; --candidate-line: #c9660a; --request: #d5e5ff; --request-line: #2b67cf;
 --item: #d8f1dc; --item-line: #28793b; --build: #e4e6ea; --build-line: #69727f }
@media (prefers-color-scheme: dark) { svg { --panel: #1b2230; --line: #3b4658; --text: #e8edf4; --muted: #aeb9c8;
 --candidate: #5b3a1a; --candidate-line: #f2a65e; --request: #1e3c69; --request-line: #86b4ff;
 --item: #1d4629; --item-line: #74d08a; --build: #394150; --build-line: #a3adbb } }
"""


@dataclass
class Drawing:
    """An SVG that is put together."""

    width: float
    height: float
    title: str
    parts: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, w: float, h: float, kind: str, radius: float = 7) -> None:
        self.parts.append(f'<rect class="box {kind}" x="{x}" y="{y}" width="{w}" height="{h}" rx="{radius}"/>')

    def text(self, x: float, y: float, what: str, kind: str = "", anchor: str = "middle") -> None:
        self.parts.append(f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(what)}</text>')

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """Down from one box to another."""
        middle = (y + to_y) / 2
        self.parts.append(f'<path class="edge" d="M{x},{y} C{x},{middle} {to_x},{middle} {to_x},{to_y - 7}"/>')
        self.parts.append(f'<path class="head" d="M{to_x},{to_y} l-5,-9 h10 z"/>')

    def save(self, name: str) -> None:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" role="img"'
        size = f' width="{self.width:g}" height="{self.height:g}"><title>{escape(self.title)}</title>'
        text = "\n".join([head + size, f"<style>{STYLE}</style>", *self.parts, "</svg>"])
        (IMAGES / name).write_text(text + "\n", encoding="utf-8")


# ---- before and after, of a real model --------------------------------------------------------------------------
def small_model() -> onnx.ModelProto:
    """`hidden = Relu([user | item] W + b)`: the first layer of a ranking model."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) / 10).astype(np.float32), name)

    def value(name: str, columns: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", columns])

    nodes = [
        helper.make_node("Concat", ["user", "item"], ["both"], "concat", axis=1),
        helper.make_node("MatMul", ["both", "W"], ["p"], "fc"),
        helper.make_node("Add", ["p", "b"], ["q"], "bias"),
        helper.make_node("Relu", ["q"], ["hidden"], "relu"),
    ]
    weights = [weight("W", USER + ITEM, HIDDEN), weight("b", HIDDEN)]
    inputs = [value("user", USER), value("item", ITEM)]
    graph = helper.make_graph(nodes, "small", inputs, [value("hidden", HIDDEN)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@dataclass
class Box:
    """A node, or an input, of a graph that is drawn."""

    title: str
    lines: list[str]
    kind: str
    reads: list[str]
    rank: int = 0
    column: float = 0


def boxes(model: onnx.ModelProto) -> dict[str, Box]:
    """Output tensor -> box; inputs first."""
    graph = shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.value_info, *graph.output]
    }
    weights = {each.name: list(each.dims) for each in graph.initializer}

    def kind(name: str) -> str:
        return "candidate" if "N" in shapes[name] else "request"

    def dims(name: str) -> str:
        return "[" + ", ".join(map(str, shapes[name])) + "]"

    found = {each.name: Box(each.name, [dims(each.name)], kind(each.name), []) for each in graph.input}
    for node in graph.node:
        out = node.output[0]
        constants = [weights[name] for name in node.input if name in weights]
        lines = [dims(out)]
        if node.op_type in ("MatMul", "Gemm"):
            rows, columns = constants[0]
            often = "per candidate" if kind(out) == "candidate" else "once per request"
            lines.append(f"{2 * rows * columns:,} FLOPs {often}")
        found[out] = Box(node.op_type, lines, kind(out), [name for name in node.input if name in found])
        found[out].rank = 1 + max(found[name].rank for name in found[out].reads)
    return found


def place(found: dict[str, Box]) -> int:
    """Columns, so that what reads one box stands below it; answers the number of ranks."""
    ranks = 1 + max(box.rank for box in found.values())
    for box in found.values():  # an input stands right above its reader
        readers = [each.rank for each in found.values() if box in [found[name] for name in each.reads]]
        if not box.reads:
            box.rank = min(readers) - 1
            box.column = 0 if box.title == "user" else 1
        else:
            columns = [found[name].column for name in box.reads]
            lone = {found[name].kind for name in box.reads} == {"request"}
            box.column = 0 if lone else (sum(columns) / len(columns) if box.title == "Concat" else max(columns))
    return ranks


WIDE, TALL, STEP = 226, 62, 92


def panel(drawing: Drawing, model: onnx.ModelProto, x: float, title: str, note: str) -> None:
    """One graph with its title."""
    found = boxes(model)
    ranks = place(found)
    width = 2 * WIDE + 60
    drawing.text(x + width / 2, 40, title, "title")
    drawing.text(x + width / 2, 62, note, "small")
    top = 84 + (5 - ranks) * STEP / 2

    def corner(box: Box) -> tuple[float, float]:
        return x + 20 + box.column * (WIDE + 20), top + box.rank * STEP

    for box in found.values():
        for each in (found[name] for name in box.reads):
            (ax, ay), (bx, by) = corner(each), corner(box)
            towards = WIDE / 2 if each.column == box.column else WIDE / 2 + (each.column - box.column) * 60
            drawing.arrow(ax + WIDE / 2, ay + TALL, bx + towards, by)
    for box in found.values():
        left, up = corner(box)
        drawing.box(left, up, WIDE, TALL, box.kind)
        more = box.lines[1] if len(box.lines) > 1 else _said(box)
        drawing.text(left + WIDE / 2, up + (26 if more else 36), f"{box.title} {box.lines[0]}", "op")
        drawing.text(left + WIDE / 2, up + 46, more, "small")


def _said(box: Box) -> str:
    if box.reads:
        return ""
    if box.title == "user":
        return "one row" if box.kind == "request" else "the same row, N times"
    return "a row per candidate"


def before_after() -> None:
    source = small_model()
    done = mari_onnx.optimize(source, user=["user"], item=["item"])
    width = 2 * (2 * WIDE + 60) + 60
    drawing = Drawing(width, 600, "The same model before and after")
    drawing.box(10, 10, width - 20, drawing.height - 20, "panel", 12)
    drawing.parts.append(f'<path class="edge" style="stroke:var(--line)" d="M{width / 2},34 v{drawing.height - 110}"/>')
    panel(drawing, source, 20, "Before", "every box runs for each of the N candidates")
    panel(drawing, done.model, 40 + 2 * WIDE + 60, "After", "the user's product runs once, on one row")
    y = drawing.height - 36
    for aside, kind, what in ((-210, "request", "once per request"), (40, "candidate", "per candidate")):
        x = width / 2 + aside
        drawing.box(x, y - 12, 26, 18, kind, 4)
        drawing.text(x + 36, y + 3, what, anchor="start")
    drawing.save("before-after.svg")


# ---- the identity -------------------------------------------------------------------------------------------------
def identity() -> None:
    drawing = Drawing(1000, 350, "[u | x] W = u W_u + x W_x")
    drawing.box(10, 10, 980, 330, "panel", 12)
    unit, rows, left, top = 17, 7, 40, 84

    def grid(x: float, y: float, w: float, h: float, kind: str, lines: int = 0) -> None:
        drawing.box(x, y, w, h, kind, 2)
        for i in range(1, lines):
            drawing.parts.append(f'<path class="edge" style="stroke-width:.6" d="M{x},{y + i * h / lines} h{w}"/>')

    drawing.text(215, 44, "N equal rows of the user", "title")
    grid(left, top, 8 * unit, rows * unit, "request", rows)
    grid(left + 8 * unit, top, 3 * unit, rows * unit, "candidate", rows)
    drawing.text(left + 4 * unit, top + rows * unit + 22, "u", "mono")
    drawing.text(left + 9.5 * unit, top + rows * unit + 22, "x", "mono")
    drawing.text(left + 11 * unit + 24, top + 66, "×", "title")
    grid(left + 11 * unit + 48, top - 18, 5 * unit, 8 * unit, "build")
    grid(left + 11 * unit + 48, top - 18 + 8 * unit, 5 * unit, 3 * unit, "build")
    drawing.text(left + 13.5 * unit + 48, top + 55, "W_u", "mono")
    drawing.text(left + 13.5 * unit + 48, top + 148, "W_x", "mono")
    drawing.text(410, top + 66, "=", "title")
    drawing.text(560, 44, "one row of the user", "title")
    grid(440, top + 50, 8 * unit, unit, "request")
    drawing.text(594, top + 64, "×", "title")
    grid(614, top - 8, 5 * unit, 8 * unit, "build")
    drawing.text(614 + 2.5 * unit, top + 60, "W_u", "mono")
    drawing.text(440 + 4 * unit, top + 92, "u", "mono")
    drawing.text(722, top + 66, "+", "title")
    drawing.text(845, 44, "the items' rows", "title")
    grid(750, top, 3 * unit, rows * unit, "candidate", rows)
    drawing.text(750 + 1.5 * unit, top + rows * unit + 22, "x", "mono")
    drawing.text(822, top + 66, "×", "title")
    grid(842, top + 34, 5 * unit, 3 * unit, "build")
    drawing.text(842 + 2.5 * unit, top + 65, "W_x", "mono")
    drawing.text(500, 300, "The user's term is one row: computed once per request, added to every candidate's row.")
    drawing.text(500, 322, "Features may stand in any order: rows of W are picked by position.", "small")
    drawing.save("identity.svg")


# ---- rates ----------------------------------------------------------------------------------------------------------
def rates() -> None:
    drawing = Drawing(1000, 352, "Four rates")
    drawing.box(10, 10, 980, 332, "panel", 12)
    lanes = (
        ("build", "build", "weights alone", "once, when the model is converted", [0]),
        ("item", "item", "the item alone", "once per item and model version", [0, 270]),
        ("request", "request", "the user alone", "once per request", [0, 135, 270, 405]),
        ("candidate", "candidate", "user and item", "for every candidate of every request", range(0, 520, 20)),
    )
    for i, (name, kind, depends, often, at) in enumerate(lanes):
        y = 34 + i * 72
        drawing.text(36, y + 24, name, "title", "start")
        drawing.text(36, y + 44, depends, "small", "start")
        drawing.parts.append(f'<path class="edge" style="stroke-width:1;stroke-dasharray:2 5" d="M170,{y + 24} h520"/>')
        for x in at:
            drawing.box(170 + x, y + 8, 14 if kind == "candidate" else 34, 32, kind, 4)
        drawing.text(704, y + 28, often, "", "start")
    drawing.text(690, 326, "time →", "small", "end")
    drawing.save("rates.svg")


if __name__ == "__main__":
    before_after()
    identity()
    rates()
