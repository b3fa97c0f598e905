"""What a graph computes from lengths and from N."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.model.nodes import graphs, reads
from mari_onnx.model.ops import MICROSOFT, Fact, having, row
from mari_onnx.parity.domains.local import Locals

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.layout import Layout

_WHAT = "the part of the model that computes sizes"


def varying(model: onnx.ModelProto, layout: Layout) -> set[str]:
    """Tensors that no input moves, but that hold something else for other lengths of free dimensions or another N."""
    from mari_onnx.model.functions import inlined

    model, n = inlined(model), layout.fixed_n or 2
    before, after = (
        _static(Locals(model, layout.concrete(n if layout.fixed_n else n + step, dict.fromkeys(layout.free, 5 + step))))
        for step in (0, 3)
    )
    return {name for name in before if name not in after or not np.array_equal(before[name], after[name])}


def deciding(model: onnx.ModelProto) -> set[str]:
    """Inputs whose numbers decide on sizes, on trips of a loop, or on where in memory something is read: large ones
    would take all memory, or time."""
    from mari_onnx.model.functions import inlined

    graph = inlined(model).graph
    safe = having(Fact.ELEMENT) | having(Fact.PLACEWISE) | having(Fact.ROWS) | having(Fact.POOL) | having(Fact.PRODUCT)
    found: set[str] = set()
    for node in reversed(graph.node):
        facts, given = row(node.op_type), list(node.input)
        if found & set(node.output) and node.op_type not in having(Fact.SIZES):
            found.update(reads(node))
        if node.op_type in having(Fact.GROWS) | having(Fact.FILLS):
            found.update(given if node.op_type not in having(Fact.MOVES) else given[1:])
        elif facts.shape_input is not None:
            found.update(given[facts.shape_input :])
        elif list(graphs(node)) or facts.gates:
            found.update(reads(node) if not facts.gates else given[4:5])
        elif node.domain == MICROSOFT or node.op_type in having(Fact.DOUBTFUL):
            found.update(() if node.op_type in safe else given)
    return found & {i.name for i in graph.input}


def _static(parts: Locals) -> dict[str, np.ndarray]:
    """Small tensors that no input moves."""
    from mari_onnx.runtime import run, session

    names = sorted({t for n in parts.nodes for t in n.input if t in parts.computed and parts.small(t)})
    if not names:
        return {}
    cut = parts.cut(names)
    fed = {i.name for i in cut.graph.input}
    try:
        made = session(cut, optimize=False, what=_WHAT)
        found = run(made, {k: v for k, v in parts.zeros().items() if k in fed}, _WHAT)
    except MariError:
        return {}
    return dict(zip(names, map(np.asarray, found), strict=True))
