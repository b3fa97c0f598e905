"""What requests may cost: estimated multiply-adds and bytes, never seconds, so that no other program on the machine
changes what is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.requests.request import Request

# In multiply-adds of a GEMM (about 0.03 ns on a CPU core): a byte that is read or written, a node, and a run.
_BYTE, _NODE, _RUN = 2.0, 100_000.0, 2_000_000.0
# Of larger graphs only two sizes are worked out, and a line is drawn through them.
_SMALL = 3000


class Price:
    """What one run of a model costs, in multiply-adds, by the shapes of a request.

    Args:
        model: only read.
    """

    def __init__(self, model: onnx.ModelProto):
        from mari_onnx.runtime import weight_bytes

        self._model, self._known = model, dict[tuple[Any, ...], float]()
        self._nodes, self._weights = len(model.graph.node), weight_bytes(model)
        self._inputs = {i.name: i for i in model.graph.input}

    def of(self, request: Request) -> float:
        """Multiply-adds of one run; the same for requests of the same shapes."""
        arrays = request.arrays()
        key = (request.n, *((k, arrays[k].shape) for k in sorted(arrays)))
        if key not in self._known:
            self._known[key] = self._worked_out(request)
        return self._known[key]

    def _worked_out(self, request: Request) -> float:
        from mari_onnx.parity.work import work

        if self._nodes <= _SMALL:
            cost = work(self._model, _feed(self._model, request))
            if cost is not None:
                return cost.flops / 2 + _BYTE * cost.bytes + _NODE * self._nodes + _RUN
        # Every weight is read once, and used once a candidate.
        weights = min(self._weights, 2**28)
        return weights * (_BYTE + max(request.n, 1) / 4) + 2 * _NODE * self._nodes + _RUN


class Budget:
    """Multiply-adds that are left to spend."""

    def __init__(self, total: float):
        self.left = total

    def part(self, share: float) -> Budget:
        """A budget of its own of a share of what is left; what is not spent of it comes back by `back`."""
        part = Budget(self.left * share)
        self.left -= part.left
        return part

    def back(self, part: Budget) -> None:
        self.left += part.left

    def spend(self, cost: float) -> bool:
        """Whether there is as much left; then it is taken off."""
        if cost > self.left:
            return False
        self.left -= cost
        return True


def _feed(model: onnx.ModelProto, request: Request) -> dict[str, Any]:
    from mari_onnx.model.signature import signature

    return request.feed(signature(model).inputs)
