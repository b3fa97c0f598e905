"""Runs a model with every tensor exposed and sees which parts are equal for all candidates.

Nothing here knows what the operators mean or what the engine believes: a tensor's candidate axis is
the one along which permuting the candidates permutes the tensor, and a part is equal for all
candidates when it is so for several users, each with candidates of their own. Likewise a part depends on the item
alone when it stays the same for other users with the same candidates (`of_items`).

The model that runs is not quite the one that is judged. What a tensor depends on stays, but values
that would hide it are moved: the negative side of Relu becomes `-x/8` (a dead unit is not redundant
work), weights that let signals fade, as of a model that was never trained, are scaled up (an item's
part of 1e-8 beside 1 would round away, and a softmax of such scores is the same for all).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx.model.nodes import graphs, is_standard
from mari_onnx.model.ops import Fact, having

if TYPE_CHECKING:
    import onnx

_CHUNK_BYTES = 256 << 20
_PROTOBUF_LIMIT = 1_900_000_000
# Equal up to what products over the same row in another place of a batch may differ by.
_RTOL = {"float16": 4e-3, "bfloat16": 3e-2, "float64": 1e-12}
_FLOAT32_RTOL = 1e-6


# May give one value for many, so that a constant result says nothing about what it depends on.
_SATURATING = having(Fact.SATURATES)


@dataclass(frozen=True)
class Seen:
    """What the runs showed of one tensor.

    Attributes:
        shape: shape with n candidates.
        axis: the axis that holds the candidates, None for a tensor that has one row per request.
        fold: `(before, n, after)`, the factors of that axis' length.
        equal: bool, True where equal for all candidates; the shape with the candidate axis written
            as `before, 1, after`. None where `axis` is None or nothing could be told.
        constant: like `equal`: True where also equal for all users without being known to be so
            because no input is involved.

    Of items, `equal` is True where equal for all users and not for all candidates, or of a tensor without candidates
    where equal for all users; `constant` is True where equal for all users and all candidates.
    """

    shape: tuple[int, ...]
    axis: int | None = None
    fold: tuple[int, int, int] = (1, 1, 1)
    equal: np.ndarray | None = None
    constant: np.ndarray | None = None

    def full(self, mask: np.ndarray | None) -> np.ndarray:
        """`mask` (`equal` or `constant`) at the tensor's own shape; False where there is none."""
        if mask is None or self.axis is None:
            return np.zeros(self.shape, bool)
        wide = (*self.shape[: self.axis], *self.fold, *self.shape[self.axis + 1 :])
        return np.broadcast_to(mask, wide).reshape(self.shape)

    @property
    def share(self) -> float:
        """The part of the elements that is equal for all candidates."""
        return float(self.equal.mean()) if self.equal is not None and self.equal.size else 0.0


def pick_n(model: onnx.ModelProto, near: int) -> int:
    """The largest prime up to `near` (11 at least) dividing no dimension of a weight or input."""
    dims = {d for t in model.graph.initializer for d in t.dims}
    for value in model.graph.input:
        dims |= {d.dim_value for d in value.type.tensor_type.shape.dim if d.dim_value}
    primes = [p for p in range(11, max(near, 11) + 1) if all(p % q for q in range(2, math.isqrt(p) + 1))]
    free = [p for p in primes if not any(d and d % p == 0 for d in dims)]
    return (free or primes)[-1]


def observe(
    model: onnx.ModelProto, feeds: Sequence[Mapping[str, np.ndarray]], order: np.ndarray, of_items: bool = False
) -> dict[str, Seen]:
    """Every tensor of the main graph by name.

    Args:
        model: a model without local functions; read only.
        feeds: the same request twice, the second time with its candidates in `order`; then other
            users with other candidates. n rows each.
        of_items: the others have the same candidates in the order of the first; what is equal then is the items' own.
        order: `[n]` permutation: candidate `i` of the second run is `order[i]` of the first.

    Raises:
        ModelError: onnxruntime cannot run the model.
    """
    probe, look = _probe(model), _look_of_items if of_items else _look
    seen = {t.name: Seen(tuple(t.dims)) for t in model.graph.initializer}
    for name in feeds[0]:
        seen[name] = look([np.asarray(f[name]) for f in feeds], order)
    tainted = _Taint(model, seen)
    for name, arrays in _run(probe, feeds):
        seen[name] = look(arrays, order)
    return tainted.apply(seen)


def _look(arrays: list[Any], order: np.ndarray) -> Seen:
    """Axis and equal parts of one tensor, from its values in each run."""
    first, permuted, *others = arrays
    if not isinstance(first, np.ndarray) or first.dtype.kind in "OSU":
        return Seen(())
    shape, n = first.shape, len(order)
    if any(a.shape != shape for a in arrays):
        return Seen(shape, axis=_any_axis(shape, n))
    for axis, fold in _folds(shape, n):
        wide = (*shape[:axis], *fold, *shape[axis + 1 :])
        at = axis + 1
        if not np.all(_close(np.take(first.reshape(wide), order, at), permuted.reshape(wide))):
            continue
        unlike = [a.reshape(wide) for a in (first, *others)]
        heads = [np.take(a, [0], at) for a in unlike]
        equal = np.logical_and.reduce([_close(a, h, at) for a, h in zip(unlike, heads, strict=True)])
        constant = np.logical_and.reduce([_close(h, heads[0]) for h in heads[1:]]) if others else None
        return Seen(shape, axis, fold, equal, None if constant is None else constant & equal)
    # No axis follows the permutation: one row per request, or sorted or otherwise mixed by position.
    return Seen(shape, None if np.all(_close(first, permuted)) else _any_axis(shape, n))


def _look_of_items(arrays: list[Any], order: np.ndarray) -> Seen:
    """Axis of one tensor, and the parts that stay the same when all but the items changes."""
    seen = _look(arrays[:2], order)
    first, _, *others = arrays
    if not isinstance(first, np.ndarray) or first.dtype.kind in "OSU" or any(a.shape != first.shape for a in others):
        return seen
    same = np.logical_and.reduce([_close(first, other) for other in others])
    if seen.axis is None:
        return replace(seen, equal=same)
    if seen.equal is None:  # mixed by position
        return seen
    wide = (*first.shape[: seen.axis], *seen.fold, *first.shape[seen.axis + 1 :])
    equal = same.reshape(wide).all(axis=seen.axis + 1, keepdims=True)
    # what is the same for all items too is padding, or a unit that is dead for the users at hand
    return replace(seen, equal=equal & ~seen.equal, constant=equal & seen.equal)


def _folds(shape: tuple[int, ...], n: int) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Axes that may hold n candidates, plain ones first, and the ways to fold others around."""
    plain = [d for d, length in enumerate(shape) if length == n]
    folded = [d for d, length in enumerate(shape) if length > n and length % n == 0]
    for axis in plain:
        yield axis, (1, n, 1)
    for axis in folded:
        k = shape[axis] // n
        for after in sorted((d for d in range(1, k + 1) if k % d == 0), reverse=True):
            yield axis, (k // after, n, after)


def _any_axis(shape: tuple[int, ...], n: int) -> int | None:
    return next((axis for axis, _ in _folds(shape, n)), None)


def _close(a: np.ndarray, b: np.ndarray, over: int | None = None) -> np.ndarray:
    """Element-wise equality up to rounding; reduced over the axis `over` (kept) if given."""
    if a.dtype.kind not in "fc" and a.dtype.name != "bfloat16":
        same = a == b
    else:
        rtol = _RTOL.get(a.dtype.name, _FLOAT32_RTOL)
        a, b = a.astype(np.float64), b.astype(np.float64)
        with np.errstate(invalid="ignore"):
            size = np.abs(b)
            finite = size[np.isfinite(size)]
            top = float(finite.max()) if finite.size else 0.0
            near = np.abs(a - b) <= rtol * (size + 0.1 * top)
            same = near | (a == b) | (np.isnan(a) & np.isnan(b))
    found: np.ndarray = same if over is None else same.all(axis=over, keepdims=True)
    return found


class _Taint:
    """Which tensors involve inputs at all, and in which a constant part may be mere saturation."""

    def __init__(self, model: onnx.ModelProto, seen: Mapping[str, Seen]) -> None:
        self.nodes = list(model.graph.node)
        self.data = {x.name for x in model.graph.input} - {t.name for t in model.graph.initializer}

    def apply(self, seen: dict[str, Seen]) -> dict[str, Seen]:
        """`seen` with `constant` kept only where saturation may be the cause."""
        doubtful: set[str] = set()
        for node in self.nodes:
            involved = node.op_type not in having(Fact.SIZES) and any(x in self.data for x in node.input)
            involved = involved or any(graphs(node))
            if involved:
                self.data.update(node.output)
            inherits = any(x in doubtful for x in node.input)
            for name in node.output:
                look = seen.get(name)
                if look is None or look.constant is None or not look.constant.any():
                    if inherits:
                        doubtful.add(name)
                    continue
                if involved and (inherits or node.op_type in _SATURATING):
                    doubtful.add(name)
        kept = {}
        for name, look in seen.items():
            constant = look.constant if name in doubtful else None
            kept[name] = Seen(look.shape, look.axis, look.fold, look.equal, constant)
        return kept


def _probe(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which dead and tiny units come alive (see the module's text)."""
    import onnx
    from onnx import numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tables = {node.input[0] for node in copy.graph.node if node.op_type == "Gather"}
    for weight in copy.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < 2 or math.prod(weight.dims) < 16:
            continue
        values = numpy_helper.to_array(weight)
        spread = float(values.std())
        wide = max(weight.dims[-2], weight.dims[-1])
        target = 0.5 if weight.name in tables else 1 / math.sqrt(wide)
        if 0 < spread < target / 2:
            scaled = (values * (target / spread)).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(scaled, weight.name))
    for node in copy.graph.node:
        if node.op_type == "Relu" and is_standard(node):
            node.op_type = "LeakyRelu"
            node.attribute.append(onnx.helper.make_attribute("alpha", -0.125))
            continue
        for attribute in node.attribute:
            if attribute.name == "activation" and attribute.s == b"Relu":
                attribute.s = b"LeakyRelu"
                name, slope = ("params", [-0.125]) if node.op_type in having(Fact.CONV) else ("alpha", -0.125)
                node.attribute.append(onnx.helper.make_attribute(f"activation_{name}", slope))
                break
    return copy


def _run(probe: onnx.ModelProto, feeds: Sequence[Mapping[str, np.ndarray]]) -> Iterator[tuple[str, list[Any]]]:
    """Each node output by name with its values, one a feed; as many at once as memory allows."""
    import onnx

    sizes = _sizes(probe, feeds[0])
    names = [x for node in probe.graph.node for x in node.output if x]
    chunk: list[str] = []
    held = 0
    with tempfile.TemporaryDirectory() as folder:
        base = onnx.ModelProto()
        base.CopyFrom(probe)
        for k, name in enumerate(names):
            chunk.append(name)
            held += sizes.get(name, 1 << 16) * len(feeds)
            if held < _CHUNK_BYTES and k + 1 < len(names):
                continue
            del base.graph.output[:]
            base.graph.output.extend(onnx.ValueInfoProto(name=x) for x in chunk)
            runs = _session_runs(base, feeds, Path(folder) / "probe.onnx")
            yield from zip(chunk, map(list, zip(*runs, strict=True)), strict=True)
            chunk, held = [], 0


def _session_runs(model: onnx.ModelProto, feeds: Sequence[Mapping[str, np.ndarray]], path: Path) -> list[list[Any]]:
    import onnx

    from mari_onnx.errors import ModelError
    from mari_onnx.runtime import load, session_options

    onnxruntime, options = load(), session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    try:
        source: Any = None
        if model.ByteSize() < _PROTOBUF_LIMIT:
            source = model.SerializeToString()
        else:
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            onnx.save(copy, path, save_as_external_data=True, location="probe.data")
            source = str(path)
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        wanted = {i.name for i in session.get_inputs()}
        return [session.run(None, {k: v for k, v in f.items() if k in wanted}) for f in feeds]
    except Exception as error:  # onnxruntime raises classes of its own and plain RuntimeErrors
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"onnxruntime cannot run the model for measuring: {text}") from error


def _sizes(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Bytes of intermediate tensors as far as shape inference knows them."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for value in bare.graph.input:
        if value.name in feed:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for length in feed[value.name].shape:
                shape.dim.add().dim_value = length
    del bare.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except Exception:  # too large, or a shape it cannot make sense of: the estimate is only for memory
        return {}
    found = {}
    for value in inferred.graph.value_info:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        found[value.name] = 8 * math.prod(d or len(next(iter(feed.values()))) for d in dims)
    return found
