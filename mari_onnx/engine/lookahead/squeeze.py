"""A look ahead in the source: whether it matters that a Squeeze without axes drops the candidates' axis at N = 1.

torch's ``x.squeeze()`` of [N, 1, D] is a Squeeze without axes: [N, D], but [D] where N is 1. The new model keeps the
axis for all N. That is right where on each way from there to an output the source, run at N = 1,

    fails            Concat of [D] with [1, K], Softmax along axis 1, ..
    is as it was     Gemm takes [D] for the row [1, D]; [D] + [1, D] is [1, D]

For each tensor behind such a Squeeze `Ahead` knows two shapes at N = 1: with the axis kept, and as the source has it.
The elements are the same, in the same order (`peek` answers a shape only where an operator leaves it so). A way ends
where the two shapes are one again, or where the node must fail. A Squeeze may not keep the axis if a way gets from it
to an output of the graph or to an operator that `peek` does not know, or ends for it only together with another one.

That the source fails somewhere else is not enough: where the file claims that [D] has a row, onnxruntime runs its
MatMul and Add as a Gemm, and a Concat behind it does not fail, as it must by what is written.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import NodeProto

from mari_onnx.engine.lookahead.peek import peek
from mari_onnx.engine.lookahead.peek_axes import FAILS, Operand
from mari_onnx.engine.lookahead.shapes import Inputs, Shape, integers, shapes
from mari_onnx.model.nodes import captures, graphs, is_standard

SOME = 7
"""A number of candidates at which no dimension is 1 that is not always."""
ROUNDS = 8
"""How many such Squeezes may follow each other."""
MEETING = 8
"""How many such Squeezes may meet in one tensor."""


def bare(node: NodeProto) -> bool:
    """Whether a node is a Squeeze without axes."""
    given = (len(node.input) > 1 and node.input[1]) or any(a.name == "axes" for a in node.attribute)
    return node.op_type == "Squeeze" and is_standard(node) and not given


class Ahead:
    """What becomes of the Squeezes without axes of a graph at N = 1, looked at when first asked for."""

    def __init__(self, graph: onnx.GraphProto, inputs: Inputs, opset: int):
        self.graph, self.inputs, self.opset = graph, inputs, opset
        self._axes: dict[str, tuple[int, ...]] | None = None

    @property
    def axes(self) -> Mapping[str, tuple[int, ...]]:
        """By output, the axes that those drop at N > 1 for which it does not matter what they drop at N = 1."""
        if self._axes is None:
            self._axes = self._look()
        return self._axes

    def _look(self) -> dict[str, tuple[int, ...]]:
        self.nodes = needed(self.graph)
        self.squeezes = {node.output[0]: node.input[0] for node in self.nodes if bare(node)}
        if not self.squeezes:
            return {}
        self.constants = integers(self.graph)
        drops = self._drops()
        self.shapes = self._inferred(drops, 1)
        open_ = {o for o in drops if None not in self.shapes.get(self.squeezes[o], (None,))}
        for _ in range(ROUNDS):
            stuck = self._walk(open_)
            if not stuck:
                return {name: drops[name] for name in open_}
            open_ -= stuck
        return {}

    def _inferred(self, drops: Mapping[str, tuple[int, ...]], candidates: int) -> dict[str, Shape]:
        return shapes(self.graph, self.nodes, self.inputs, drops, candidates, self.opset)

    def _drops(self) -> dict[str, tuple[int, ...]]:
        """By output, the axes that a Squeeze drops for many candidates; the rule knows whether it does so for all N."""
        drops: dict[str, tuple[int, ...]] = {}
        for _ in range(ROUNDS):
            known = self._inferred(drops, SOME)
            more = {
                output: tuple(i for i, d in enumerate(known[x]) if d == 1)
                for output, x in self.squeezes.items()
                if output not in drops and x in known
            }
            drops |= more
            if not more or len(drops) == len(self.squeezes):
                break
        return drops

    def _walk(self, open_: set[str]) -> set[str]:
        """Squeezes of `open_` that may not keep the axis, if of the others all do or do not as they like."""
        actual: dict[str, Shape | None] = {}  # of tensors whose shape at N = 1 is not the kept one, None: not known
        origins: dict[str, frozenset[str]] = {}
        stuck: set[str] = set()
        for node in self.nodes:
            inner = captures(node) if any(graphs(node)) else []
            behind = [name for name in [*node.input, *inner] if name in actual]
            own = {node.output[0]} if bare(node) else set()
            if not behind and not own:
                continue
            mine = frozenset(own).union(*(origins[name] for name in behind))
            outs: list[Shape] | None = None
            lost = any(actual[name] is None for name in behind) or not own <= open_ or len(mine) > MEETING
            if not lost and not inner:
                operands = [self._operand(name, actual) for name in node.input]
                found = peek(node, operands, [self.shapes.get(o) for o in node.output], self.constants, self.opset)
                if found == FAILS:
                    continue
                outs = found if isinstance(found, list) else None
            if outs is None:
                stuck |= mine & open_
                mine = frozenset()  # they are settled
            for i, name in enumerate(node.output):
                shape = outs[i] if outs is not None else None
                if name and (shape is None or shape != self.shapes.get(name)):
                    actual[name], origins[name] = shape, mine
                elif len(mine) > 1:
                    stuck |= mine  # the shapes are one if all of them keep the axis, and else may differ
        return stuck.union(*(origins.get(o.name, ()) for o in self.graph.output))

    def _operand(self, name: str, actual: Mapping[str, Shape | None]) -> Operand | None:
        """Both shapes of an input at N = 1; None where it is left out or not known."""
        shape = self.shapes.get(name)
        here = actual.get(name, shape)
        return (shape, here) if shape is not None and here is not None else None


def needed(graph: onnx.GraphProto) -> list[NodeProto]:
    """Nodes that an output needs: others are not run."""
    wanted = {o.name for o in graph.output}
    found = []
    for node in reversed(graph.node):
        if any(o in wanted for o in node.output):
            found.append(node)
            wanted.update(node.input)
            if any(graphs(node)):
                wanted.update(captures(node))
    return found[::-1]
