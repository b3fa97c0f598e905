"""What an output of a graph reads of each tensor, at one size of every dynamic dimension.

An operator passes what is read of its result back to its inputs: by element, along its rows, through its labels; one
that moves elements passes it back to where they came from. An operator that is not known here reads all of its inputs.
What is read is a mask over the tensor, in which a dimension of 1 stands for positions that are all read alike; a tensor
without a mask is not read at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from onnx import NodeProto

from mari_onnx.engine.ir.nodes import evaluate as evaluate_node
from mari_onnx.engine.lookahead.shapes import Shape
from mari_onnx.model.einsum import einsum_sizes
from mari_onnx.model.nodes import attribute, attributes, captures, graphs, is_standard
from mari_onnx.model.ops import Fact, having, row

Mask = np.ndarray
"""Booleans; a dimension of 1 stands for positions that are read alike."""
LIMIT = 1 << 21
"""Elements of a mask up to which positions are told apart."""
BY_ELEMENT = having(Fact.ELEMENT) | having(Fact.SAME)
MOVES, VIEWS, SIZES = having(Fact.MOVES), having(Fact.VIEW), having(Fact.SIZES)
REDUCES, ROWS = having(Fact.REDUCES), having(Fact.ROWS)
POOLS = having(Fact.POOL)
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a node of an unexpected kind may raise; it then reads all of its inputs."""


class Read:
    """What an output reads of each tensor, at one size of every dynamic dimension.

    shapes: of the tensors, as far as they are known. constants: small arrays that indices are made of.
    by_input: for each input of each node, by the node's first output, what its outputs' readers need of it.
    """

    def __init__(
        self,
        outputs: Iterable[str],
        nodes: Sequence[NodeProto],
        shapes: Mapping[str, Shape],
        constants: Callable[[str], np.ndarray | None],
        opset: int,
    ):
        self.shapes, self.constants, self.opset = shapes, constants, opset
        self.by_name: dict[str, Mask | None] = {name: self._all(name) for name in outputs}
        """None: all of a tensor whose shape is not known."""
        self.by_input: dict[tuple[str, int], Mask | None] = {}
        for node in reversed(nodes):
            self._node(node)

    def _all(self, name: str) -> Mask | None:
        shape = self.shapes.get(name)
        return None if shape is None else np.ones((1,) * len(shape), bool)

    def _node(self, node: NodeProto) -> None:
        read = [o for o in node.output if o in self.by_name]
        if not read:
            return
        for name in captures(node) if any(graphs(node)) else ():
            self.by_name[name] = self._all(name)
        masks: Sequence[Mask | None] | None = None
        if not any(graphs(node)):
            try:
                masks = self._inputs(node)
            except FAILURES:
                masks = None
        for i, name in enumerate(node.input):
            if not name:
                continue
            mask = masks[i] if masks is not None and i < len(masks) else self._all(name)
            if mask is not None:
                mask = compact(mask)
                if not mask.any():
                    continue
                if mask.size > LIMIT:
                    mask = self._all(name)
            self.by_input[node.output[0], i] = mask
            if name not in self.by_name:
                self.by_name[name] = mask
            else:
                old = self.by_name[name]
                self.by_name[name] = compact(old | mask) if old is not None and mask is not None else self._all(name)

    def _inputs(self, node: NodeProto) -> Sequence[Mask | None] | None:
        """What is read of each input; None where an operator is not known, or a shape that matters."""
        op, standard = node.op_type, is_standard(node)
        if op in SIZES and standard:
            return [np.zeros((1,) * len(self._shape(node.input[0])), bool)]
        if op in having(Fact.ADDS_AND_NORMS):
            return self._sum_of_rows(node)
        if len([o for o in node.output if o]) > 1 and op != "Split":
            return None
        out = self.by_name.get(next(o for o in node.output if o))
        if op == "Split" and standard:
            return self._split(node)
        if out is None:
            return None
        if op in BY_ELEMENT:
            return [self._broadcast(name, out) for name in node.input]
        if op in ROWS:
            return self._rows(node, out)
        if op in having(Fact.MATMUL):
            return self._matmul(node, out)
        if not standard:
            return None
        if op in having(Fact.PLACEWISE):
            return None if attribute(node, "training_mode", 0) else [out]  # statistics of all positions
        if op == "Conv" or op in POOLS:
            return self._windows(node, out)
        if op == "Concat":
            return self._concat(node, out)
        if op == "Einsum":
            return self._einsum(node, out)
        if op in REDUCES:
            return self._reduce(node, out)
        if op in having(Fact.WRITES):
            return self._scatter(node, out)
        if op in MOVES:
            return self._moved(node, out)
        return None

    def _shape(self, name: str) -> tuple[int, ...]:
        """A shape of which all is known."""
        shape = self.shapes.get(name)
        if shape is None or None in shape:
            raise ValueError(name)
        return shape  # type: ignore[return-value]

    def _broadcast(self, name: str, out: Mask) -> Mask | None:
        """Of an operand that is broadcast to the result."""
        if not name or name not in self.shapes:
            return None
        return _to_operand(out, self._shape(name))

    def _rows(self, node: NodeProto, out: Mask) -> list[Mask | None]:
        """Of an operator on rows: those of which something is read. Its other inputs are read as a whole."""
        rank, facts = out.ndim, row(node.op_type)
        flat = bool(facts.flattened_before) and self.opset < facts.flattened_before
        first = attribute(node, "axis", 1 if flat else -1) % rank
        alone = not flat and Fact.NORM not in facts.facts
        axes = (first,) if alone else tuple(range(first, rank))
        return [_any(out, axes)]

    def _sum_of_rows(self, node: NodeProto) -> list[Mask | None] | None:
        """Of two operands whose sum is normalized, and is an output too: the rows of which something is read."""
        masks = [self.by_name[o] for o in node.output if o in self.by_name]
        if any(mask is None for mask in masks):
            return None
        rows = [_any(mask, -1) for mask in masks if mask is not None]
        whole = np.logical_or.reduce(np.broadcast_arrays(*rows))
        return [self._broadcast(name, whole) if i < 2 else self._all(name) for i, name in enumerate(node.input)]

    def _matmul(self, node: NodeProto, out: Mask) -> list[Mask | None] | None:
        """A (m, k) and B (k, n), each possibly transposed, behind batch axes that are broadcast; and what is added."""
        shapes = [self._shape(name) for name in node.input[:2]]
        if min(map(len, shapes)) < 2 or any(attribute(node, f"transBatch{side}", 0) for side in "AB"):
            return None
        found: list[Mask | None] = []
        for shape, over, side in zip(shapes, (-1, -2), "AB", strict=True):
            mask = _any(out, over)
            batch = _to_operand(mask, (*shape[:-2], *(2, 2))) if mask.ndim >= len(shape) else mask
            found.append(np.swapaxes(batch, -1, -2) if attribute(node, f"trans{side}", 0) else batch)
        return [*found, *(self._broadcast(name, out) for name in node.input[2:])]

    def _windows(self, node: NodeProto, out: Mask) -> list[Mask | None] | None:
        """Of a convolution, in all channels, or a pooling: what lies between the ends of windows whose result is read.

        All of an axis along which all windows are read, though a stride may leave positions out.
        """
        shape, count = self._shape(node.input[0]), self._shape(node.output[0])
        conv, auto = node.op_type not in POOLS, attribute(node, "auto_pad", "NOTSET")
        kernel = self._shape(node.input[1])[2:] if conv else attribute(node, "kernel_shape")
        spatial, ones = len(shape) - 2, [1] * (len(shape) - 2)
        strides, dilations = attribute(node, "strides", ones), attribute(node, "dilations", ones)
        read = _any(out, 1) if conv else out
        for d, step in enumerate(strides):
            size, reach = shape[d + 2], (kernel[d] - 1) * dilations[d] + 1
            if read.shape[d + 2] == 1:
                continue
            before = attribute(node, "pads", [0] * 2 * spatial)[d]
            if auto != "NOTSET":
                if auto != "VALID" and dilations[d] != 1:
                    return None
                total = max((count[d + 2] - 1) * step + reach - size, 0) if auto != "VALID" else 0
                before = total // 2 if auto == "SAME_UPPER" else total - total // 2
            inside = np.zeros((*read.shape[: d + 2], size, *read.shape[d + 3 :]), bool)
            for p in range(count[d + 2]):
                here = (slice(None),) * (d + 2)
                first = p * step - before
                inside[(*here, slice(max(first, 0), max(first + reach, 0)))] |= read[(*here, slice(p, p + 1))]
            read = inside
        return [read, *(self._all(name) if name else None for name in node.input[1:])]

    def _einsum(self, node: NodeProto, out: Mask) -> list[Mask | None]:
        """An operand's labels that the result has; of the others everything is read."""
        shapes = [self._shape(name) for name in node.input]
        names, output, _ = einsum_sizes(attribute(node, "equation"), shapes)
        found: list[Mask | None] = []
        for labels, shape, name in zip(names, shapes, node.input, strict=True):
            if len(set(labels)) < len(labels) or len(labels) != len(shape) or len(output) != out.ndim:
                found.append(self._all(name))
                continue
            mask = _any(out, tuple(i for i, label in enumerate(output) if label not in labels))
            kept = [label for label in labels if label in output]
            mask = mask.reshape([n for n, label in zip(mask.shape, output, strict=True) if label in labels])
            here = [label for label in output if label in labels]
            mask = mask.transpose([here.index(label) for label in kept])
            whole = mask.reshape([mask.shape[kept.index(label)] if label in output else 1 for label in labels])
            found.append(_to_operand(whole, shape))
        return found

    def _reduce(self, node: NodeProto, out: Mask) -> list[Mask | None] | None:
        rank = len(self._shape(node.input[0]))
        axes = attribute(node, "axes")
        if axes is None and len(node.input) > 1 and node.input[1]:
            given = self.constants(node.input[1])
            if given is None:
                return None
            axes = given.reshape(-1).tolist()
        if not axes:
            return None
        if not attribute(node, "keepdims", 1):
            out = np.expand_dims(out, tuple(int(a) % rank for a in axes))
        return [out] if out.ndim == rank else None

    def _concat(self, node: NodeProto, out: Mask) -> list[Mask | None]:
        axis = attribute(node, "axis") % out.ndim
        if out.shape[axis] == 1:
            return [out] * len(node.input)
        found: list[Mask | None] = []
        start = 0
        for name in node.input:
            size = self._shape(name)[axis]
            found.append(np.take(out, range(start, start + size), axis))
            start += size
        return found if start == out.shape[axis] else [self._all(name) for name in node.input]

    def _split(self, node: NodeProto) -> list[Mask | None]:
        shape, axis = self._shape(node.input[0]), attribute(node, "axis", 0)
        parts = []
        for name in node.output:
            part, mask = self._shape(name), self.by_name.get(name, np.zeros((1,) * len(shape), bool))
            if mask is None:
                mask = self._all(name)
            assert mask is not None
            parts.append(np.repeat(mask, part[axis], axis) if mask.shape[axis] == 1 else mask)
        most = [max(p.shape[d] for p in parts) for d in range(len(shape))]
        wide = [np.broadcast_to(p, [p.shape[d] if d == axis % len(shape) else n for d, n in enumerate(most)])
                for p in parts]  # fmt: skip
        return [np.concatenate(wide, axis)]

    def _scatter(self, node: NodeProto, out: Mask) -> list[Mask | None] | None:
        """Of the data all but what is written over, of the updates what is written. Both as a whole, where indices are
        not known.
        """
        data, updates = self._shape(node.input[0]), self._shape(node.input[2])
        count, index = int(np.prod(data)), self.constants(node.input[1])
        if attribute(node, "reduction", "none") != "none" or index is None or count + int(np.prod(updates)) > LIMIT:
            return None
        places = np.arange(count).reshape(data), np.arange(count, count + int(np.prod(updates))).reshape(updates)
        result = evaluate_node(node, [places[0], index, places[1]], self.opset)
        read = np.zeros(count + int(np.prod(updates)), bool)
        read[result[np.broadcast_to(out, result.shape)]] = True
        return [read[:count].reshape(data), None, read[count:].reshape(updates)]

    def _moved(self, node: NodeProto, out: Mask) -> list[Mask | None] | None:
        """Of what is moved: the places that elements which are read came from. Indices are read as a whole."""
        op, shape = node.op_type, self._shape(node.input[0])
        rest: list[Mask | None] = [self._all(name) if name else None for name in node.input[1:]]
        if op in VIEWS:
            return [_viewed(out, self._shape(node.output[0]), shape), *rest]
        if op == "Transpose":
            perm = attribute(node, "perm", list(range(out.ndim))[::-1])
            return [out.transpose(np.argsort(perm)), *rest]
        if op == "Expand":
            return [_to_operand(out, shape), *rest]
        if op == "Gather":
            return self._gather(node, out, shape)
        given = [self.constants(name) if name else None for name in node.input[1:]]
        if op == "GatherElements" and given[0] is None:
            return self._elements(node, out, shape)
        if op == "Pad" and len(given) > 1:
            given[1] = np.zeros((), np.int64)  # whatever number it puts in
        if any(name and value is None for name, value in zip(node.input[1:], given, strict=True)):
            return None
        if op == "Slice":
            return [self._sliced(node, out, shape, given), *rest]
        count, result = int(np.prod(shape)), self._shape(node.output[0])
        mirrored = op == "Pad" and attribute(node, "mode", "constant") != "constant"
        if mirrored or count > LIMIT or int(np.prod(result)) > LIMIT:
            return None
        labels = np.arange(1, count + 1).reshape(shape)  # 0 is what Pad and Trilu put in
        came = evaluate_node(node, [labels, *given], self.opset)
        read = np.zeros(count + 1, bool)
        read[came[np.broadcast_to(out, came.shape)]] = True
        return [read[1:].reshape(shape), *rest]

    def _gather(self, node: NodeProto, out: Mask, shape: tuple[int, ...]) -> list[Mask | None]:
        """Of the indices those of which an element is read; of the data, where indices are known, what they name."""
        axis, index = attribute(node, "axis", 0) % len(shape), self.constants(node.input[1])
        rank = out.ndim - len(shape) + 1
        among = tuple(range(axis, axis + rank))
        by_index = _any(out, tuple(d for d in range(out.ndim) if d not in among))
        indices = by_index.reshape([by_index.shape[d] for d in among])
        if index is None or index.ndim != rank:
            return [self._all(node.input[0]), indices]
        wide = np.broadcast_to(out, [index.shape[d - axis] if d in among else n for d, n in enumerate(out.shape)])
        wide = wide.reshape((*out.shape[:axis], index.size, *out.shape[axis + rank :]))
        read = np.zeros((*out.shape[:axis], shape[axis], *out.shape[axis + rank :]), bool)
        for i, place in enumerate(index.reshape(-1).tolist()):
            at = (slice(None),) * axis
            read[(*at, int(place))] |= wide[(*at, i)]
        return [read, indices]

    def _elements(self, node: NodeProto, out: Mask, shape: tuple[int, ...]) -> list[Mask | None]:
        """Of data whose elements are picked by indices that are not known: all along `axis`, and along the others the
        places of indices whose elements are read; indices may be fewer than the data there.
        """
        axis, index = attribute(node, "axis", 0) % len(shape), self._shape(node.input[1])
        read = _any(out, axis)
        for d, (few, many) in enumerate(zip(index, shape, strict=True)):
            if d != axis and few != many:
                read = np.repeat(read, few, axis=d) if read.shape[d] == 1 else read
                read = np.pad(read, [(0, many - few) if i == d else (0, 0) for i in range(read.ndim)])
        return [read, out]

    def _sliced(self, node: NodeProto, out: Mask, shape: tuple[int, ...], given: Sequence[np.ndarray | None]) -> Mask:
        """A Slice's input, one axis after another."""
        attrs = attributes(node)
        starts, ends = (given[0], given[1]) if given else (attrs["starts"], attrs["ends"])
        assert starts is not None
        assert ends is not None
        axes = given[2] if len(given) > 2 and given[2] is not None else attrs.get("axes", range(len(starts)))
        steps = given[3] if len(given) > 3 and given[3] is not None else [1] * len(starts)
        result = self._shape(node.output[0])
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            axis = int(axis) % len(shape)
            size = shape[axis]
            stop: int | None = int(end)
            if step < 0 and int(end) < -size:
                stop = None
            places = list(range(size))[int(start) : stop : int(step)]
            if len(places) != result[axis]:
                raise ValueError("the length is not the one that is known")
            if len(places) == size:
                out = np.take(out, np.argsort(places), axis) if out.shape[axis] > 1 else out
                continue
            read = np.zeros((*out.shape[:axis], size, *out.shape[axis + 1 :]), bool)
            read[tuple(places if d == axis else slice(None) for d in range(out.ndim))] = out
            out = read
        return out


def _any(mask: Mask, axes: int | tuple[int, ...]) -> Mask:
    return np.asarray(np.any(mask, axis=axes, keepdims=True))


def compact(mask: Mask) -> Mask:
    """The mask with a dimension of 1 for each along which all positions are alike."""
    for d, size in enumerate(mask.shape):
        if size > 1:
            first = mask.take([0], axis=d)
            if np.array_equal(np.broadcast_to(first, mask.shape), mask):
                mask = first
    return mask


def _to_operand(out: Mask, shape: Sequence[int]) -> Mask:
    """What is read of an operand of this shape that is broadcast to the result."""
    more = out.ndim - len(shape)
    if more < 0:
        raise ValueError("it is not broadcast")
    mask = _any(out, tuple(range(more))).reshape(out.shape[more:])
    over = tuple(d for d, size in enumerate(shape) if size == 1)
    return _any(mask, over)


def _viewed(out: Mask, after: Sequence[int], before: Sequence[int]) -> Mask:
    """What is read of a tensor of shape ``before`` that is seen as one of shape ``after``: dimensions are taken apart
    and merged in groups of equal size, and one of 1 stays one where nothing in its group is told apart.
    """
    pieces: list[int] = []
    shape: list[int] = []
    i = j = 0
    while i < len(after) or j < len(before):
        first, start = i, j
        here, there = 1, 1
        if i < len(after):
            here, i = here * after[i], i + 1
        if j < len(before):
            there, j = there * before[j], j + 1
        while here != there:
            if here < there and i < len(after):
                here, i = here * after[i], i + 1
            elif j < len(before):
                there, j = there * before[j], j + 1
            else:
                raise ValueError("the sizes differ")
        alike = all(out.shape[d] == 1 for d in range(first, i))
        pieces += [1] * (i - first) if alike else list(after[first:i])
        shape += [1] * (j - start) if alike else list(before[start:j])
    if int(np.prod(pieces)) > LIMIT:
        raise ValueError("the mask is too large")
    return np.broadcast_to(out, pieces).reshape(shape)
