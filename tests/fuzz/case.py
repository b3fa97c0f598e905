"""One case: a model, whose its inputs are, and how it is run. Drawn, or read from a kept file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from hypothesis import assume
from hypothesis import strategies as st
from onnx import printer

from tests.engine import graphs
from tests.engine.graphs import Draw, Input, N, R
from tests.fuzz.forge import Forge, Graph, Unfit
from tests.fuzz.steps import STEPS, Step

OPSETS = (11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26)
"""From the oldest that is rewritten to the newest that onnxruntime runs."""
CASES = Path(__file__).parent / "cases"


@dataclass
class Case:
    """graph: knows the inputs and makes the feeds. weighed: the engine may leave the model as it is."""

    graph: graphs.Graph
    model: onnx.ModelProto
    counts: tuple[int, ...]
    strict: bool = True
    weighed: bool = False
    candidates: int = 500

    def __repr__(self) -> str:
        how = f"N={self.counts} strict={self.strict} weighed={self.weighed} candidates={self.candidates}"
        return f"{how}\n{self.graph.sides}\n{printer.to_text(self.model)}"

    @property
    def size(self) -> int:
        """What makes one case simpler than another."""
        return len(self.model.graph.node) * 100_000 + self.model.ByteSize()

    def save(self, path: Path, why: str) -> None:
        g = self.graph
        inputs = {n: [i.side, list(i.shape), np.dtype(i.dtype).name, i.high] for n, i in g.inputs.items()}
        content = {
            "why": why,
            "axis": g.axis,
            "fixed": g.fixed,
            "apart": g.apart,
            "inputs": inputs,
            "columns": {n: {side: list(c) for side, c in cs.items()} for n, cs in g.columns.items()},
            "counts": list(self.counts),
            "weighed": self.weighed,
            "candidates": self.candidates,
            "text": printer.to_text(self.model).splitlines(),
            "model": base64.b64encode(self.model.SerializeToString(deterministic=True)).decode(),
        }
        path.write_text(json.dumps(content, indent=1) + "\n")


def load(path: Path) -> Case:
    """A kept case. It runs strictly."""
    content: dict[str, Any] = json.loads(path.read_text())
    model = onnx.ModelProto.FromString(base64.b64decode(content["model"]))
    g = graphs.Graph(axis=content["axis"], fixed=content["fixed"])
    for name, (side, shape, dtype, high) in content["inputs"].items():
        g.inputs[name] = Input(side, tuple(shape), np.dtype(dtype).type, high)
    g.columns = {n: {s: tuple(c) for s, c in cs.items()} for n, cs in content["columns"].items()}
    g.apart = content.get("apart", False)
    g.outputs = [o.name for o in model.graph.output]
    return Case(g, model, tuple(content["counts"]), True, content["weighed"], content["candidates"])


@st.composite
def cases(draw: Draw, most: int = 16, among: Sequence[Step] = STEPS) -> Case:
    """A drawn model with everything that says how it is run. among: one of its steps is one of these."""
    types, opsets = (np.float64,) * 12 + (np.float32,) * 5 + (np.float16, ml_dtypes.bfloat16), OPSETS
    if among is not STEPS:  # most of these steps are of float32, and of opsets whose DequantizeLinear can be evaluated
        types, opsets = (np.float64, np.float32, np.float32), (13, 17, 19, 19, 20, 21, 22, 23)
    dtype = draw(st.sampled_from(types))
    smooth = dtype in (np.float16, ml_dtypes.bfloat16)
    fixed = draw(st.sampled_from((None,) * 5 + (4, 1)))
    requests = not smooth and draw(st.integers(0, 9)) == 0
    if requests and fixed:
        fixed = 9  # a size that no other dimension has: [R, 4] may be a user's four values
    g = Graph(
        draw, draw(st.sampled_from(opsets)), dtype=dtype, axis=int(requests), fixed=fixed, seed=draw(st.integers(0, 3))
    )
    g.tag = not requests or draw(st.booleans())
    g.apart = not requests and draw(st.integers(0, 9)) == 0
    f = Forge(draw, g, (R, N) if requests else (N,), smooth)
    for _ in range(draw(st.integers(1, 3))):
        f.leaf(*f.own())
    steps = draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=most))
    if among is not STEPS:
        steps.insert(draw(st.integers(0, len(steps))), draw(st.sampled_from(among)))
    for step in steps:
        with suppress(Unfit):
            step(f)
    _outputs(draw, f, g)
    try:
        model = g.model()
    except Exception:
        assume(False)
        raise
    # a packed input tells the user's values in its rows
    few = (1, 1, 7) if g.columns or g.some else (0, 1, 1, 7)
    counts = (fixed,) if fixed else (draw(st.sampled_from((2, 3, 5))), draw(st.sampled_from(few)))
    return Case(
        g, model, counts, draw(st.booleans()), draw(st.integers(0, 3)) == 0, draw(st.sampled_from((1, 32, 500)))
    )


def _outputs(draw: Draw, f: Forge, g: graphs.Graph) -> None:
    """The last tensor, and others that are read further on; an input at times."""
    made = {o for node in g.nodes for o in node.output}
    ready = [n for n, _ in f.pool if n in made] or [g.Identity(f.pool[0][0])]
    last: Sequence[str] = ready[-1:]
    others = draw(st.lists(st.sampled_from(ready), max_size=3))
    if draw(st.integers(0, 19)) == 0:
        others.append(f.pool[0][0])
    names = list(dict.fromkeys([*last, *others]))
    g.output(*names)
