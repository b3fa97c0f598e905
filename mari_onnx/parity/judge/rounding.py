"""Outputs that are rounded: int8 and uint8, scores rounded to four digits.

Where a value lies near the boundary between two steps, the last bits of what is rounded decide which step the output
takes, in either model. So an output may be on the next step where what the source rounds is as near to the boundary
as its error may be, or where the source takes it with onnxruntime's optimizations; elsewhere in at most 0.1% of the
rows, as integer kernels round differently. It is never further than one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from mari_onnx import runtime
from mari_onnx.errors import MariError
from mari_onnx.model.ops import Fact, having
from mari_onnx.parity import float64
from mari_onnx.parity.judge.metrics import epsilon, scale_of, wide

if TYPE_CHECKING:
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.runtime import ModelLike

# Rows that may be one step away though nothing is near a boundary.
ROWS = 1e-3
# Error that what is rounded may have: its own in the source so many times, and units in the last place of its scale;
# without a float64 run only the latter.
_MULTIPLE, _ULPS, _BLIND_ULPS = 5.0, 8.0, 64.0
_ROUNDING = having(Fact.WHOLE) | {"QuantizeLinear"}
_INTEGERS = frozenset({TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64})
# Of these each element of the output follows from one of the input, given the constants.
_ONE_BY_ONE = having(Fact.ELEMENT) | {"DequantizeLinear"}
_MOVES = having(Fact.VIEW) | {"Transpose"}


@dataclass(frozen=True)
class Site:
    """Where an output is rounded in the source.

    Attributes:
        node: the operator that rounds.
        before, after: what it reads and what it writes.
        rest: the nodes from there to the output, in order.
        beside: other tensors that these read, no constants.
    """

    output: str
    node: onnx.NodeProto
    rest: tuple[onnx.NodeProto, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def before(self) -> str:
        return str(self.node.input[0])

    @property
    def after(self) -> str:
        return str(self.node.output[0])


def site(model: onnx.ModelProto, output: str) -> Site | None:
    """The last operator before `output` that rounds, with nothing but element-wise operators and moves behind it."""
    constants = {t.name for t in model.graph.initializer}
    makers = {o: n for n in model.graph.node for o in n.output}
    constants |= {o for o, n in makers.items() if n.op_type == "Constant"}
    rest: list[onnx.NodeProto] = []
    beside: list[str] = []
    cast: Site | None = None
    name = output
    while (node := makers.get(name)) is not None and node.domain in ("", "ai.onnx"):
        if node.op_type in _ROUNDING:
            known = all(i in constants for i in node.input[1:] if i)
            return Site(output, node, tuple(reversed(rest)), tuple(beside)) if known else None
        others = [i for i in node.input if i and i not in constants]
        if node.op_type in _MOVES:
            beside += [i for i in others if i != node.input[0]]
            following = str(node.input[0])
        elif node.op_type in _ONE_BY_ONE and len(others) == 1:
            following = others[0]
        else:
            break
        if node.op_type == "Cast" and cast is None and _to(node) in _INTEGERS:
            # It cuts off what is behind the point, unless something before it has rounded already.
            cast = Site(output, node, tuple(reversed(rest)), tuple(beside))
        rest.append(node)
        name = following
    return cast


def _to(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "to"), 0)


@dataclass
class Rounding:
    """Takes steps out of the outputs of one output that is rounded, and counts them.

    Attributes:
        rows, away: rows seen, and those of them that are one step away with nothing near a boundary.
        first: where the first of these is: the place of its request, the request, the index, source and optimized.
    """

    source: ModelLike
    place: Site | None
    axis: int
    rows: int = 0
    away: int = 0
    first: tuple[Any, ...] | None = None
    _sessions: dict[str, Any] = field(default_factory=dict)

    def settle(self, triples: Sequence[Any]) -> list[Any]:
        """The same triples of `Verdict`, in which a value that is one step away is the source's own."""
        rooms = self._rooms([request for _, request, *_ in triples], [t[4] is not None for t in triples])
        found = []
        for (place, request, mine, theirs, truth), room in zip(triples, rooms, strict=True):
            near, steps = self._neighbours(request, mine[0], room)
            near = [*near, *mine[1:]]  # onnxruntime's optimizations may move the source itself by a step
            found.append(
                (
                    place,
                    request,
                    [mine[0], *(self._stepped(m, mine[0], near, steps)[0] for m in mine[1:])],
                    [self._counted(t, mine[0], near, steps, place, request) for t in theirs],
                    None if truth is None else self._stepped(truth, mine[0], near, steps)[0],
                )
            )
        return found

    @property
    def fault(self) -> str | None:
        """Whether too many rows are one step away, in words."""
        if self.away <= ROWS * self.rows:
            return None
        return f"{self.away} of {self.rows} rows are one step of the rounding away; {ROWS:.1%} may be"

    def _counted(
        self,
        values: np.ndarray,
        first: np.ndarray,
        near: list[np.ndarray],
        steps: list[np.ndarray],
        place: int,
        request: Request,
    ) -> np.ndarray:
        """Values with steps taken out, and counted."""
        n = request.n
        settled, away = self._stepped(values, first, near, steps)
        if self.first is None and away.any():
            self.first = (place, request, tuple(int(i) for i in np.argwhere(away)[0]), first, values)
        along = away.ndim > self.axis and away.shape[self.axis] == n
        by_row = np.moveaxis(away, self.axis, 0).reshape(n, -1).any(axis=1) if along and away.size else away.reshape(-1)
        self.rows += n if along else by_row.size
        self.away += int(np.count_nonzero(by_row))
        return settled

    def _stepped(
        self, values: np.ndarray, first: np.ndarray, near: list[np.ndarray], steps: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values with the step to `first` taken out, and where that step was not to a value of `near`."""
        others = [wide(c) for c in (first, *near, *steps)]
        with np.errstate(invalid="ignore"):
            far = np.stack([np.abs(wide(values) - c) for c in others])
        which = np.where(np.isnan(far), np.inf, far).argmin(axis=0)
        step = np.take_along_axis(np.stack(others), which[None], 0)[0] - others[0]
        step = np.where(np.isfinite(step) & (which > 0), step, 0.0)
        return (wide(values) - step).astype(values.dtype), (which > len(near)) & (step != 0)

    # ---- what the source rounds ----------------------------------------------------------------------------------
    def _neighbours(
        self, request: Request, first: np.ndarray, room: float
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The output with what is within `room` of a boundary on its other side; and all one step down, and up."""
        if self.place is None:
            return [], [_clipped(first, -1), _clipped(first, 1)]
        before, after, *beside = self._inner(request)
        low, high = self._moved(after, -1), self._moved(after, 1)
        near = []
        for sign in (-1, 1):
            moved = (before.astype(np.float64) + sign * room).astype(before.dtype)
            rounded = self._run("head", [self.place.node], {self.place.before: moved}, self.place.after)
            near.append(np.clip(rounded, low, high))
        given = dict(zip(self.place.beside, beside, strict=True))
        return [self._finish(v, given, first) for v in near], [self._finish(v, given, first) for v in (low, high)]

    def _finish(self, rounded: np.ndarray, beside: Mapping[str, np.ndarray], first: np.ndarray) -> np.ndarray:
        """The output that rounded values lead to."""
        assert self.place is not None
        if not self.place.rest:
            return rounded
        feed = {self.place.after: rounded, **beside}
        found = self._run("rest", self.place.rest, feed, self.place.output)
        return found if found.shape == first.shape else first

    def _moved(self, after: np.ndarray, step: int) -> np.ndarray:
        if after.dtype.kind == "f":
            return (after + step).astype(after.dtype)
        return _clipped(after, step)

    def _rooms(self, requests: Sequence[Request], exact: Sequence[bool]) -> list[float]:
        """Error that what is rounded may have, for each request: relative to its largest magnitude there, but no less
        than a usual one."""
        if self.place is None or not requests:
            return [0.0] * len(requests)
        mine = [self._inner(r)[0] for r in requests]
        own = [scale_of(wide(m)) for m in mine]
        usual = float(np.median([s for s in own if s] or [1.0]))
        scales = [max(s, usual) for s in own]
        unit = epsilon(mine[0].dtype)
        known = [at for at, there in enumerate(exact) if there]
        try:
            from mari_onnx.model.signature import signature

            inputs = signature(float64.light(self.source)).inputs
            with float64.float64(self.source, outputs=[self.place.before]) as model:
                truths = [model.run(requests[at].feed(inputs))[0] for at in known]
        except MariError:
            truths = []
        if not truths:
            return [_BLIND_ULPS * unit * s for s in scales]
        with np.errstate(invalid="ignore"):
            apart = [np.abs(wide(mine[at]) - wide(t)) / scales[at] for at, t in zip(known, truths, strict=True)]
        error = max(float(a[np.isfinite(a)].max(initial=0)) for a in apart)
        return [(_MULTIPLE * error + _ULPS * unit) * s for s in scales]

    def _inner(self, request: Request) -> list[np.ndarray]:
        """What is rounded, what comes of it, and what the rest reads beside it."""
        assert self.place is not None
        names = [self.place.before, self.place.after, *self.place.beside]
        made = self._sessions.get("inner")
        if made is None:
            proto = float64.light(self.source)
            exposed = runtime.skeleton(proto)
            float64.expose(exposed, list(dict.fromkeys(names)))
            exposed.graph.initializer.extend(proto.graph.initializer)
            made = self._sessions["inner"] = runtime.session(exposed, optimize=False, what="the source")
        return runtime.run(made, request.feed(made.get_inputs()), "the source", names)

    def _run(
        self, name: str, nodes: Sequence[onnx.NodeProto], feed: Mapping[str, np.ndarray], output: str
    ) -> np.ndarray:
        """A few nodes of the source on given tensors."""
        made = self._sessions.get(name)
        if made is None:
            proto = float64.light(self.source)
            read = {i for n in nodes for i in n.input}
            kinds = {k: helper.np_dtype_to_tensor_dtype(v.dtype) for k, v in feed.items()}
            inputs = [helper.make_tensor_value_info(k, kind, None) for k, kind in kinds.items()]
            constants = [n for n in proto.graph.node if n.op_type == "Constant" and n.output[0] in read]
            weights = [t for t in proto.graph.initializer if t.name in read]
            written = [onnx.ValueInfoProto(name=output)]
            graph = helper.make_graph([*constants, *nodes], name, inputs, written, weights)
            model = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
            made = self._sessions[name] = runtime.session(model, optimize=False, what=f"the {name} of the source")
        return runtime.run(made, feed, f"the {name} of the source", [output])[0]


def _clipped(values: np.ndarray, step: int) -> np.ndarray:
    """Integers one step down or up, as far as the type goes."""
    info = np.iinfo(values.dtype)
    return np.clip(values.astype(np.int64) + step, info.min, info.max).astype(values.dtype)


def rounding(source: ModelLike, output: str, dtype: np.dtype, axis: int) -> Rounding | None:
    """How an output is rounded; None where it is not."""
    found = site(float64.light(source), output)
    return Rounding(source, found, axis) if found is not None or dtype in (np.int8, np.uint8) else None
