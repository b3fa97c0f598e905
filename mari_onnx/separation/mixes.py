"""Where user and candidate mix for good: a node whose operand has tokens or columns of the user's own, and whose result
has none left there.

That is where what a layer computed from all tokens comes back to those of the user: an attention's product with the
values, a residual, a gate, the product of a cross layer, a norm over columns. Of two operands one is computed from the
other then. Where it is not, as for products of pairs of fields, or where the item's own tokens are added to what they
get of the user, there is nothing that the user's part could do without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from mari_onnx.engine.dependence import CANDIDATE, USER
from mari_onnx.model.nodes import producers, reads
from mari_onnx.model.ops import Fact, having

BY_ELEMENT, ROWS = having(Fact.ELEMENT), having(Fact.ROWS) - having(Fact.SOFTMAX)
SOFTMAX, MATMUL = having(Fact.SOFTMAX), having(Fact.MATMUL)
MOVES = having(Fact.MOVES) - having(Fact.VIEW)


@dataclass(frozen=True)
class Mix:
    """Positions of a tensor that would be the user's own if its node did not read the candidate there.

    Attributes:
        node: its name, or its first output. op: its operator. tensor: its result.
        axis: the dimension that has the positions. positions: which. size: of how many.
    """

    node: str
    op: str
    tensor: str
    axis: int
    positions: tuple[int, ...]
    size: int


def mixes(nodes: Sequence[NodeProto], depends: Mapping[str, np.ndarray]) -> Iterator[list[Mix]]:
    """For each node at which user and candidate mix for good, in order, the ways to keep the user's part apart.

    depends: of each tensor, what its elements depend on (`engine.dependence`).
    """
    made = producers(nodes)
    queries: dict[str, tuple[int, ...]] = {}
    """Weights of an attention -> the rows of the user's own queries, which weigh the candidate too."""
    for node in nodes:
        result = depends.get(next(iter(node.output), ""))
        if result is None:
            continue
        ways: list[tuple[int, tuple[int, ...]]] = []
        if node.op_type in SOFTMAX:
            queries[node.output[0]] = _queries(depends.get(node.input[0]))
        elif node.op_type in MATMUL:
            rows, after = queries.get(node.input[0], ()), _by_position(result, max(0, result.ndim - 2))
            if rows and len(after) > max(rows) and (after[list(rows)] & CANDIDATE).any():
                ways = [(result.ndim - 2, rows)]
        elif node.op_type in BY_ELEMENT | ROWS:
            queries[node.output[0]] = next((queries[x] for x in node.input if queries.get(x)), ())
            ways = _kept_apart(node, result, made, depends)
        if ways:
            what = (node.name or node.output[0], node.op_type, node.output[0])
            yield [Mix(*what, axis, positions, result.shape[axis]) for axis, positions in dict.fromkeys(ways)]


def _kept_apart(
    node: NodeProto, result: np.ndarray, made: Mapping[str, NodeProto], depends: Mapping[str, np.ndarray]
) -> list[tuple[int, tuple[int, ...]]]:
    """Of an element-wise operator or a norm: axes, and positions that an operand has to the user alone, and the result
    has not.
    """
    found = []
    for name in node.input if node.op_type in BY_ELEMENT else node.input[:1]:
        operand = depends.get(name)
        if operand is None:
            continue
        more = result.ndim - operand.ndim
        for axis in range(max(0, -more), operand.ndim):
            if operand.shape[axis] > 1 and operand.shape[axis] == result.shape[axis + more]:
                lost = _lost(_by_position(operand, axis), _by_position(result, axis + more))
                if lost and (node.op_type in ROWS or _made_from(name, node, made, depends)):
                    found.append((axis + more, lost))
    return found


def _queries(scores: np.ndarray | None) -> tuple[int, ...]:
    """Rows of scores [.., queries, keys] that have some of the user's alone and some of the candidate's, beside others
    that are all the candidate's.
    """
    if scores is None or scores.ndim < 2:
        return ()
    others = tuple(i for i in range(scores.ndim) if i != scores.ndim - 2)
    own, differs = (scores == USER).any(axis=others), (scores & CANDIDATE > 0).any(axis=others)
    rows = np.flatnonzero(own & differs)
    return tuple(rows.tolist()) if (differs & ~own).any() else ()


def _made_from(
    name: str, node: NodeProto, made: Mapping[str, NodeProto], depends: Mapping[str, np.ndarray]
) -> bool:
    """Whether another operand of the node is computed from this one, or from what this one is a map of, position by
    position (a residual may have weights).
    """
    before, others = set[str](), [x for x in node.input if x != name]
    while others:
        maker = made.get(others.pop())
        if maker is not None and not before.issuperset(inner := reads(maker)):
            others += [x for x in inner if x not in before]
            before.update(inner)
    while name not in before:
        maker = made.get(name)
        if maker is None or maker.op_type in MOVES:
            return False
        data = [x for x in maker.input if x in depends and depends[x].any()]
        if len(data) != 1:
            return False
        name = data[0]
    return True


def _by_position(bits: np.ndarray, axis: int) -> np.ndarray:
    others = tuple(i for i in range(bits.ndim) if i != axis)
    return np.bitwise_or.reduce(bits, axis=others) if others else bits


def _lost(before: np.ndarray, after: np.ndarray) -> tuple[int, ...]:
    """Positions that were the user's alone, beside others that were not, and now depend on the candidate."""
    own = before == USER
    if not (before & CANDIDATE).any():
        return ()
    return tuple(np.flatnonzero(own & (after & CANDIDATE > 0)).tolist())
