"""Bags: a flat list of ids beside an input that says where each bag begins, as an EmbeddingBag takes them.

Offsets have one entry per candidate, but their rows are not equal where the bags are: N equal bags of k ids are the
offsets 0, k, 2k, .. beside N k ids. One bag for all candidates is the offset 0 beside k ids. So what the graph computes
of the offsets and the ids alone is computed for one bag, and its results stand for N equal rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mari_onnx.model.nodes import attribute, captures
from mari_onnx.model.ops import Fact, having
from mari_onnx.model.signature import Signature
from mari_onnx.model.tensors import INDICES
from mari_onnx.sides.resolve import Sides

if TYPE_CHECKING:
    import onnx

# Results are numbers as the inputs are.
_NUMBERS = having(Fact.ELEMENT) - having(Fact.BOOLEAN) | having(Fact.VIEW) | having(Fact.JOINS) | having(Fact.SAME)
# What takes numbers without cutting or placing anything by them.
_PLAIN = having(Fact.ELEMENT) | having(Fact.VIEW) | having(Fact.JOINS) | having(Fact.SAME) | having(Fact.CONVERTS)
_PLAIN |= having(Fact.SIZES) | having(Fact.REDUCES) | having(Fact.REPEATS) | having(Fact.LOOKUP) | having(Fact.PRODUCT)


@dataclass(frozen=True)
class Region:
    """What a graph computes of one list of bags and of no other input.

    Attributes:
        nodes: places of these nodes among the graph's.
        sizes: those of them that depend on nothing but the number of bags.
        results: tensors that other nodes read, or the graph's outputs; those of `sizes` are left out.
        cuts: whether something is cut or placed by numbers that are computed from the offsets, as with bags.
    """

    nodes: frozenset[int]
    sizes: frozenset[int]
    results: tuple[str, ...]
    cuts: bool


def dependences(graph: onnx.GraphProto) -> dict[str, frozenset[str]]:
    """Tensor -> the inputs that it depends on; initializers are none."""
    constants = {p.name for p in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    found = {i.name: frozenset({i.name}) for i in graph.input if i.name not in constants}
    for node in graph.node:
        of = frozenset().union(*(found.get(name, frozenset()) for name in (*node.input, *captures(node)) if name))
        found |= dict.fromkeys((name for name in node.output if name), of)
    return found


def pairs(graph: onnx.GraphProto, signature: Signature, sides: Sides) -> dict[str, tuple[str, ...]]:
    """What may be bags: an integer per candidate -> inputs of the same side with a length of their own, which the graph
    first combines with it."""
    own = {i.name for i in signature.inputs if sides.axes.get(i.name, 0) is None and i.shape and i.shape[0] != 1}
    offsets = [
        i.name
        for i in signature.inputs
        if i.dtype.kind == "i" and len(i.shape) == 1 and i.shape[0] != 1 and sides.side(i.name)
        if sides.axis_of(i.name) == 0 and i.name not in sides.counts
    ]
    depends, found = dependences(graph), dict[str, tuple[str, ...]]()
    for node in graph.node:
        of = frozenset().union(*(depends.get(name, frozenset()) for name in (*node.input, *captures(node)) if name))
        for name in offsets:
            ids = tuple(i for i in sorted(of & own) if sides.side(i) == sides.side(name))
            if name in of and ids and name not in found:
                found[name] = ids
    return found


def region(graph: onnx.GraphProto, offsets: str, ids: tuple[str, ...]) -> Region | None:
    """The nodes that depend on these inputs alone; None where others read these inputs, or nothing combines them."""
    group, depends = frozenset({offsets, *ids}), dependences(graph)
    nodes, sizes, results, cuts = set[int](), set[int](), dict[str, None](), False
    sized, within, numbers = set[str](), set[str](), {offsets}
    for place, node in enumerate(graph.node):
        read = [name for name in (*node.input, *captures(node)) if depends.get(name)]
        if not read:
            continue
        of = frozenset().union(*(depends[name] for name in read))
        if not of <= group:
            if group & set(read):
                return None
            results |= dict.fromkeys(name for name in read if name in within and name not in sized)
            continue
        nodes.add(place)
        within.update(node.output)
        if (node.op_type in having(Fact.SIZES) and read == [offsets]) or all(name in sized for name in read):
            sizes.add(place)
            sized.update(node.output)
        elif numbers & set(read):
            cuts = cuts or node.op_type not in _PLAIN
            whole = node.op_type in having(Fact.CONVERTS) and attribute(node, "to") in INDICES
            if whole or node.op_type in _NUMBERS:
                numbers.update(node.output)
    results |= dict.fromkeys(o.name for o in graph.output if o.name in within and o.name not in sized)
    return Region(frozenset(nodes), frozenset(sizes), tuple(results), cuts) if results else None
