"""Inner tensors of both models beside each other: the first that diverges, and the rewrite that made it.

Both models are run once more with their inner tensors as outputs, by the map from source to output
tensors that the engine leaves, or by their names; the source's values in float64 are the truth, as for the outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx import runtime
from mari_onnx.parity import float64
from mari_onnx.parity.judge.metrics import epsilon, scale_of, unequal_nonfinite, wide

if TYPE_CHECKING:
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.runtime import ModelLike

# A tensor on the way may be nearer to zero than its parts were: more room than for outputs, far
# below any fault.
_FLOOR_ULPS = 256.0
_MULTIPLE = 16.0
# Tensors looked at in one run: all at once could be many times the model.
_CHUNK = 100


@dataclass(frozen=True)
class Layer:
    """A tensor of the source beside its counterpart.

    Attributes:
        tensor, counterpart: names in the source and in the optimized model.
        node, op: the source node that writes it.
        error, allowed: against float64, relative to the tensor's scale; infinite for another
            shape or type.
    """

    tensor: str
    counterpart: str
    node: str
    op: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether they agree."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Divergence(Layer):
    """The first source tensor whose counterpart differs.

    Attributes:
        action, rule: what the engine did with the node, where the report says it.
    """

    action: str | None = None
    rule: str | None = None

    def __str__(self) -> str:
        did = f", {self.action} by {self.rule}" if self.action else ""
        return (
            f"{self.tensor} (of {self.op} {self.node}{did}) diverges first: "
            f"error {self.error:.3g}, allowed {self.allowed:.3g}"
        )


def layers(
    source: ModelLike, optimized: ModelLike, request: Request, tensors: Mapping[str, str] | None = None
) -> Iterator[Layer]:
    """Inner tensors of both models on one request, in the source's order.

    Args:
        tensors: source tensor -> optimized tensor of equal value (1 on the candidate axis allowed); by default those
            that have one name in both, as tensors of equal value do in what `optimize` writes.

    Raises:
        ModelError: a model does not run.
    """
    model, other = float64.light(source), float64.light(optimized)
    theirs = {o for n in other.graph.node for o in n.output}
    inner = [(tensor, node) for node in model.graph.node for tensor in node.output if tensor]
    found = {name: name for name, _ in inner} if tensors is None else tensors
    order = [(tensor, node) for tensor, node in inner if found.get(tensor) in theirs]
    for start in range(0, len(order), _CHUNK):
        part = order[start : start + _CHUNK]
        mine = [tensor for tensor, _ in part]
        values = _inner(source, mine, request)
        counterparts = _inner(optimized, [found[t] for t in mine], request)
        truth = _truth(source, mine, request)
        for tensor, node in part:
            errors = _compare(values[tensor], counterparts[found[tensor]], truth.get(tensor))
            if errors is not None:
                yield Layer(tensor, found[tensor], node.name or node.output[0], node.op_type, *errors)


def told(found: Sequence[Layer]) -> list[str]:
    """What `layers` found, in lines."""
    wrong = [each for each in found if not each.ok]
    if not found:
        return ["no inner tensor has the same name in both models"]
    head = f"{len(found)} inner tensors have the same name in both models"
    shown = wrong[:5] or [max(found, key=lambda each: each.error)]
    lines = [
        f"  {each.tensor} ({each.op} {each.node}): error {each.error:.2g}, allowed {each.allowed:.2g}" for each in shown
    ]
    if not wrong:
        return [f"{head}, and agree; the furthest apart is", *lines]
    more = [f"  and {len(wrong) - len(shown)} more"] if len(wrong) > len(shown) else []
    return [f"{head}; {len(wrong)} differ, the first one is", *lines, *more]


def first_divergence(
    source: ModelLike,
    optimized: ModelLike,
    tensors: Mapping[str, str],
    request: Request,
    nodes: Iterable[Any] = (),
) -> Divergence | None:
    """Looks for it in the source's order.

    Args:
        tensors: source tensor -> optimized tensor of equal value (1 on the candidate axis allowed).
        request: one on which the outputs differ.
        nodes: the engine's node reports, objects or dictionaries with name, action and rule.

    Returns:
        None where all mapped tensors agree.

    Raises:
        ModelError: a model does not run.
    """
    said = {_get(n, "name"): n for n in nodes}
    for each in layers(source, optimized, request, tensors):
        if not each.ok:
            report = said.get(each.node)
            did = _get(report, "action"), _get(report, "rule")
            return Divergence(each.tensor, each.counterpart, each.node, each.op, each.error, each.allowed, *did)
    return None


def _inner(model: ModelLike, tensors: list[str], request: Request) -> dict[str, np.ndarray]:
    """Values of inner tensors, optimizations off."""
    proto = float64.light(model)
    names = list(dict.fromkeys(tensors))
    exposed = runtime.skeleton(proto)
    float64.expose(exposed, names)
    exposed.graph.initializer.extend(proto.graph.initializer)
    what = "the model with its inner tensors as outputs"
    made = runtime.session(exposed, optimize=False, lean=True, what=what)
    values = runtime.run(made, request.feed(made.get_inputs()), what, names)
    return dict(zip(names, values, strict=True))


def _truth(source: ModelLike, tensors: list[str], request: Request) -> dict[str, np.ndarray]:
    from mari_onnx.model.signature import signature

    model = float64.light(source)
    try:
        with float64.float64(source, outputs=list(tensors)) as exact:
            values = exact.run(request.feed(signature(model).inputs))
            return dict(zip(tensors, values, strict=True))
    except Exception:  # then the source's own values are the truth
        return {}


def _compare(source: Any, optimized: Any, truth: np.ndarray | None) -> tuple[float, float] | None:
    """(error, allowed), relative to the tensor's scale; None of what is no tensor."""
    if not isinstance(source, np.ndarray) or not isinstance(optimized, np.ndarray):
        return None
    infinite = (float("inf"), 0.0)
    try:
        theirs = np.broadcast_to(optimized, source.shape)
    except ValueError:
        return infinite
    if optimized.dtype != source.dtype:
        return infinite
    if source.dtype.kind != "f" and source.dtype.name != "bfloat16":
        return (0.0, 0.0) if np.array_equal(source, theirs) else infinite
    mine, theirs = wide(source), wide(theirs)
    if unequal_nonfinite(mine, theirs).any():
        return infinite
    exact = mine if truth is None or truth.shape != mine.shape else truth
    scale = scale_of(exact) or 1.0
    finite = np.isfinite(mine) & np.isfinite(exact)
    error = float(np.abs(theirs - exact)[finite].max(initial=0)) / scale
    own = float(np.abs(mine - exact)[finite].max(initial=0)) / scale
    return error, _MULTIPLE * own + _FLOOR_ULPS * epsilon(source.dtype)


def _get(node: Any, name: str) -> Any:
    return node.get(name) if isinstance(node, Mapping) else getattr(node, name, None)
