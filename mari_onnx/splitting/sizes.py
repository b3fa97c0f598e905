"""Sizes of the tensors of a draft: as its symbols say, and where these do not tell, as they are in a run.

In: drafts of one source. Out: for each the sizes of its tensors, for prices. A size that only a run can tell (of what
NonZero finds, say) would otherwise count as nothing, and all that follows it would seem to take no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mari_onnx.engine.cost.time_model import TimeModel
from mari_onnx.engine.ir.value import Tensor
from mari_onnx.engine.outcome import Draft
from mari_onnx.errors import MariError
from mari_onnx.model.dims import Size, symbols
from mari_onnx.model.signature import signature
from mari_onnx.parity.domains.domains import domains
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.requests.draw import Drawer
from mari_onnx.parity.work import shapes_of
from mari_onnx.report.residual import with_length

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.requests.request import Request
    from mari_onnx.sides.resolve import Sides

Shapes = dict[str, tuple[int, ...]]


class Sizes:
    """Sizes in one request of the time model's number of candidates.

    Args:
        source, sides: from which a request is drawn, once it is needed.
    """

    def __init__(self, source: onnx.ModelProto, sides: Sides, time: TimeModel):
        self._source, self._sides, self._time = source, sides, time
        self._requests: list[Request] | None = None

    def of(self, draft: Draft) -> Shapes:
        """Of all tensors of a draft whose rank is known, or that a run has."""
        said = {name: tuple(map(self._time.length, shape)) for name, shape in draft.shapes.items()}
        known = {name: said[name] for name, shape in draft.shapes.items() if _told(shape)}
        names = {x for node in draft.model.graph.node for x in node.output if x}
        met: Shapes = {}
        for request in self._drawn() if names - known.keys() else ():
            met = shapes_of(draft.model, request.feed(signature(draft.model).inputs))
            if names <= known.keys() | met.keys():
                break
        return {**said, **met, **known}

    def _drawn(self) -> Iterator[Request]:
        """A request with histories as long as symbols count, and one as they are drawn where that cannot be run."""
        if self._requests is None:
            declared = signature(self._source)
            layout = Layout(declared, self._sides)
            try:
                ranges = domains(self._source, layout)[0]
                layouts = [Layout(with_length(declared, layout, self._time.free), self._sides)] * bool(layout.lengths)
                self._requests = [
                    Drawer(each, ranges, 0).request(each.fixed_n or self._time.candidates, full=each.axis == 0)
                    for each in (*layouts, layout)
                ]
            except MariError:
                self._requests = []
        return iter(self._requests)


def is_told(t: Tensor) -> bool:
    """Whether symbols tell the sizes of a tensor."""
    return t.shape is not None and _told(t.shape)


def _told(shape: tuple[Size, ...]) -> bool:
    return not any(name.startswith("?") for size in shape for name in symbols(size))
