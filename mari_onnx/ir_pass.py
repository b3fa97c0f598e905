"""The rewrite as a pass of onnx-ir, for pipelines of `onnx_ir.passes`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from onnx_ir.passes import FunctionalPass, PassResult

from mari_onnx.api import optimize
from mari_onnx.api.given import Axes, Dimensions, Names, SidesLike

if TYPE_CHECKING:
    from mari_onnx.report import Report


class OncePerRequest(FunctionalPass):  # type: ignore[misc]
    """Computes once per request what depends on the user alone.

    A functional pass: the model that goes in stays as it is, and the one that comes out has the nodes and initializers
    that `mari-onnx optimize` writes. `modified` is False where nothing was to be lifted.

    Args:
        sides, user, item, cross, rest, shapes, count, candidate_axis, guess: whose the inputs are, as for
            `mari_onnx.optimize`.
        options: its further arguments: `check`, `candidates`, `target`, ..

    Raises:
        MariError: what `mari_onnx.optimize` raises.
    """

    def __init__(
        self,
        sides: SidesLike = None,
        *,
        user: Names = (),
        item: Names = (),
        cross: Names = (),
        rest: str | None = None,
        shapes: Dimensions | None = None,
        count: Names = (),
        candidate_axis: Axes = None,
        guess: bool = False,
        **options: Any,
    ):
        super().__init__()
        self._arguments: dict[str, Any] = {
            "sides": sides, "user": user, "item": item, "cross": cross, "rest": rest, "shapes": shapes, "count": count,
            "candidate_axis": candidate_axis, "guess": guess, **options,
        }  # fmt: skip
        self.report: Report | None = None
        """The report on the model that was last passed."""

    def call(self, model: ir.Model) -> PassResult:
        """See the class."""
        done = optimize(ir.to_proto(model), **self._arguments)
        self.report = done.report
        return PassResult(ir.from_proto(done.model), modified=done.changed)
