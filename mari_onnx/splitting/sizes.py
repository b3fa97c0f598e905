"""Sizes of the tensors of a draft: as its symbols say, and where these do not tell, as they are in a run.

In: drafts of one source. Out: for each the sizes of its tensors, for prices. A size that only a run can tell (of what
NonZero finds, say) would otherwise count as nothing, and all that follows it would seem to take no time.
"""

from __future__ import annotations

import math
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

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.requests.request import Request
    from mari_onnx.sides.resolve import Sides

Shapes = dict[str, tuple[int, ...]]
DRAWN = 8
"""Requests of which the largest sizes count: one may have an empty history, another may not run."""


class Sizes:
    """Sizes in one request of the time model's number of candidates.

    Args:
        source, sides: from which requests are drawn, once they are needed.
    """

    def __init__(self, source: onnx.ModelProto, sides: Sides, time: TimeModel):
        self._source, self._sides, self._time = source, sides, time
        self._drawn: list[list[Request]] | None = None

    def of(self, draft: Draft) -> Shapes:
        """Of all tensors of a draft whose rank is known, or that a run has."""
        said = {name: tuple(map(self._time.length, shape)) for name, shape in draft.shapes.items()}
        known = {name: said[name] for name, shape in draft.shapes.items() if _told(shape)}
        names = {x for node in draft.model.graph.node for x in node.output if x} - known.keys()
        met: Shapes = {}
        for requests in self._requests() if names else ():
            for request in requests:
                run = shapes_of(draft.model, request.feed(signature(draft.model).inputs))
                larger = {x for x in names & run.keys() if x not in met or math.prod(run[x]) > math.prod(met[x])}
                met |= {x: run[x] for x in larger}
            if names <= met.keys():
                break
        return {**said, **met, **known}

    def _requests(self) -> list[list[Request]]:
        """Some with histories as long as symbols count, and some as they are drawn, where those cannot be run."""
        if self._drawn is None:
            layout = Layout(signature(self._source), self._sides)
            lengths = dict.fromkeys(layout.lengths, self._time.free)
            n = layout.fixed_n or self._time.candidates
            try:
                ranges = domains(self._source, layout)[0]
            except MariError:
                return []
            drawers = [Drawer(layout, ranges, seed) for seed in range(DRAWN)]
            self._drawn = [
                [drawer.request(n, full=layout.axis == 0, free=free) for drawer in drawers]
                for free in ([lengths, {}] if lengths else [{}])
            ]
        return self._drawn


def is_told(t: Tensor) -> bool:
    """Whether symbols tell the sizes of a tensor."""
    return t.shape is not None and _told(t.shape)


def _told(shape: tuple[Size, ...]) -> bool:
    return not any(name.startswith("?") for size in shape for name in symbols(size))
