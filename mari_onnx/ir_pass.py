"""The rewrite as a pass of onnx-ir, for pipelines of `onnx_ir.passes`."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes import FunctionalPass, PassResult

from mari_onnx.api import optimize


class OncePerRequest(FunctionalPass):  # type: ignore[misc]
    """Computes once per request what depends on the user alone.

    A functional pass: the model that goes in stays as it is, and the one that comes out has the nodes and initializers
    that `mari-onnx optimize` writes. `modified` is False where nothing was to be lifted.

    Args:
        arguments: those of `mari_onnx.optimize`: `sides`, or `user`, `item`, `cross`, `rest`; `check`, `candidates`, ..

    Raises:
        MariError: what `mari_onnx.optimize` raises.
    """

    def __init__(self, **arguments: Any):
        super().__init__()
        self._arguments = arguments
        self.report: Any = None
        """The report on the model that was last passed (`mari_onnx.report.Report`)."""

    def call(self, model: ir.Model) -> PassResult:
        """See the class."""
        done = optimize(ir.to_proto(model), **self._arguments)
        self.report = done.report
        return PassResult(ir.from_proto(done.model), modified=done.changed)
