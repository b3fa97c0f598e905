"""What each tensor of a new graph depends on, and so how often it has to be computed.

In: the engine's draft of a graph. Out: for each tensor the set of what it depends on. The number of candidates is a
dependence of its own: a shape ``[N, 4, 8]`` depends on no item, though it is read from one.
"""

from __future__ import annotations

from collections.abc import Sequence

from mari_onnx.engine.ir.value import Node, Tensor
from mari_onnx.engine.outcome import Draft
from mari_onnx.model.dims import Dim, Size, symbols
from mari_onnx.model.nodes import attribute, is_standard
from mari_onnx.model.ops import Fact, having, row

USER, ITEM, COUNT = "user", "item", "count"
EVERYTHING = frozenset({USER, ITEM})
Dependence = frozenset[str]


class Rates:
    """Dependences of all tensors of a draft.

    A tensor is the *user's* if it depends on the user alone, the *item's* if on the item, and perhaps on how many there
    are; a *count* if only on how many candidates there are.
    """

    def __init__(self, draft: Draft):
        self._of: dict[str, Dependence] = {}
        counts = {t.name for t in draft.stored.values() if not t.deps}
        for node in draft.nodes:
            inputs = [t for t in [*node.inputs, *node.captured] if t is not None]
            for t in inputs:
                if t.node is None:
                    self._of.setdefault(t.name, frozenset({COUNT}) if t.name in counts else t.deps)
            found = self._of_node(node, inputs)
            for t in node.outputs:
                known = found - {COUNT}
                # the engine may know of fewer: columns of a packed input depend on their own side alone
                self._of[t.name] = t.deps | (found & {COUNT}) if t.deps < known else found
        for t in draft.outputs:
            self._of.setdefault(t.name, t.deps)

    def _of_node(self, node: Node, inputs: Sequence[Tensor]) -> Dependence:
        if Fact.RANDOM in row(node.proto.op_type).facts:
            return EVERYTHING
        if reads_sizes(node):
            of = self._of[inputs[0].name]
            if not of:
                return of
            sizes = sizes_read(node)
            if sizes is None:
                return of | {COUNT}
            names = {s for size in sizes for s in symbols(size)}
            found = of - {COUNT} if names - {"N"} else frozenset()
            return found | {COUNT} if "N" in names else found
        return frozenset().union(*(self._of[t.name] for t in inputs))

    def of(self, t: Tensor) -> Dependence:
        """What a tensor depends on; nothing for a constant."""
        return frozenset() if t.const else self._of.get(t.name, t.deps)

    def is_user(self, t: Tensor) -> bool:
        """Whether it depends on the user alone."""
        return self.of(t) == {USER}

    def is_item(self, t: Tensor) -> bool:
        """Whether it depends on the item alone."""
        return ITEM in self.of(t) and USER not in self.of(t)

    def words(self, t: Tensor) -> str:
        """For people and the manifest: user, item, cross or constant."""
        return "user" if self.is_user(t) else "item" if self.is_item(t) else "cross" if self.of(t) else "constant"


def reads_sizes(node: Node) -> bool:
    """Whether a node reads the sizes of a tensor, and no element."""
    return is_standard(node.proto) and node.proto.op_type in having(Fact.SIZES)


def sizes_read(node: Node) -> tuple[Size, ...] | None:
    """The sizes that such a node reads; None where the rank of its input is not known."""
    t = node.inputs[0]
    if t is None or t.shape is None:
        return None
    start, end = attribute(node.proto, "start", 0), attribute(node.proto, "end", len(t.shape))
    return t.shape[start:end]


def row_axis(t: Tensor) -> int | None:
    """The axis along which a tensor has one row per candidate; None where that is not one axis with all of them."""
    if t.shape is None:
        return None
    found = [i for i, size in enumerate(t.shape) if "N" in symbols(size)]
    if len(found) != 1 or t.shape[found[0]] != Dim.symbol("N"):
        return None
    return found[0]
