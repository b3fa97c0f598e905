"""Which dimensions of the source's tensors count candidates, and in which segments.

A dimension of size N counts candidates alone. One of size ``T + N`` is a sequence that a Concat joined of history and
candidates: its segments are ``(T, N)``. So is one of size ``T + 1``, of a history of free length and one more position
for each candidate, with segments ``(T, 1)``. All tensors with a dimension of such a size are laid out alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import product as combinations

from onnx import NodeProto

from mari_onnx.engine.ir.value import Decline
from mari_onnx.model.dims import Dim, Size, symbols
from mari_onnx.model.nodes import attribute

N = Dim.symbol("N")
Segments = tuple[Size, ...]
Key = tuple[int, ...]
"""Which segment of each dimension that counts candidates, in the order of the dimensions."""


class Layouts:
    """The segments of each size that counts candidates or is such a sequence, by size; those of N are ``(N,)``.

    once: tensors that depend on the user alone.
    """

    def __init__(
        self, nodes: Iterable[NodeProto], shapes: Mapping[str, tuple[Size, ...]], once: Collection[str] = ()
    ):
        self.known: dict[Size, Segments] = {N: (N,)}
        self.once = once
        self.joins: list[str] = []
        """Nodes that join history and candidates."""
        for node in nodes:
            if node.op_type == "Concat" and all(name in shapes for name in (*node.input, *node.output)):
                rank = len(shapes[node.output[0]])
                axis = attribute(node, "axis") % rank if rank else 0
                parts = [shapes[name][axis] for name in node.input]
                whole = shapes[node.output[0]][axis]
                joins = self._join if "N" in symbols(whole) else partial(self._join_one, node.input)
                if joins(parts, whole):
                    self.joins.append(node.name or node.output[0])

    def _join(self, parts: Sequence[Size], size: Size) -> bool:
        if "N" not in symbols(size) or sum("N" in symbols(part) for part in parts) != 1:
            return False
        found: list[Size] = []
        for segment in (s for part in parts for s in self.known.get(part, (part,))):
            if found and "N" not in symbols(found[-1]) and "N" not in symbols(segment):
                found[-1] = found[-1] + segment
            else:
                found.append(segment)
        if any("N" in symbols(s) and s != N for s in found) or len(found) < 2:
            return False
        if self.known.setdefault(size, tuple(found)) != tuple(found):
            raise Decline(f"two sequences of length {size} have history and candidates in another order")
        return True

    def _join_one(self, names: Sequence[str], parts: Sequence[Size], size: Size) -> bool:
        """Of a free history and positions that differ by candidate, none of which counts candidates."""
        if not symbols(size) or len({name in self.once for name in names}) < 2 or size in parts:
            return False
        found: list[Size] = []
        was: bool | None = None
        for name, part in zip(names, parts, strict=True):
            if (name in self.once) == was:
                found[-1] = found[-1] + part
            else:
                found.append(part)
            was = name in self.once
        if self.known.setdefault(size, tuple(found)) != tuple(found):
            raise Decline(f"two sequences of length {size} have history and candidates in another order")
        return True

    def counts(self, size: Size) -> bool:
        """Whether a dimension of this size counts candidates, or is a sequence."""
        return "N" in symbols(size) or size in self.known

    @property
    def sequences(self) -> list[Size]:
        """Sizes of sequences that have history and candidates."""
        return [size for size, segments in self.known.items() if len(segments) > 1]

    def at(self, dims: Sequence[Size]) -> list[int]:
        """The dimensions that count candidates or are sequences. Refuses one that has no layout."""
        found = [i for i, size in enumerate(dims) if self.counts(size)]
        for i in found:
            if dims[i] not in self.known:
                raise Decline(f"a dimension of {dims[i]} is no sequence of history and candidates")
        return found

    def keys(self, dims: Sequence[Size]) -> list[Key]:
        """All blocks of a tensor of these dimensions."""
        return list(combinations(*(range(len(self.known[dims[i]])) for i in self.at(dims))))

    def candidates(self, dims: Sequence[Size], key: Key) -> list[int]:
        """The dimensions in which a block has the candidates."""
        return [i for i, s in zip(self.at(dims), key, strict=True) if self.known[dims[i]][s] == N]

    def sizes(self, dims: Sequence[Size], key: Key, at: int | None) -> tuple[Size, ...]:
        """The dimensions of a block that has the candidates in dimension `at`, and size 1 in others that count them."""
        found = list(dims)
        for i, s in zip(self.at(dims), key, strict=True):
            segment = self.known[dims[i]][s]
            found[i] = segment if segment != N or at in (i, None) else 1
        return tuple(found)

    def offsets(self, size: Size) -> list[Size]:
        """Where each segment begins, and where the last one ends."""
        found: list[Size] = [0]
        for segment in self.known[size]:
            found.append(found[-1] + segment)
        return found
