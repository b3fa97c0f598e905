"""Export and rewrite in one call, for models in PyTorch. The only module that imports torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mari_onnx.api import Optimized, optimize
from mari_onnx.api.given import Names, SidesLike
from mari_onnx.errors import needs

if TYPE_CHECKING:
    import torch


_ONE_FILE = 1_500_000_000
"""Bytes of weights up to which the model is one file."""


def export(
    model: torch.nn.Module,
    args: Sequence[Any],
    path: str | os.PathLike[str] | None = None,
    *,
    sides: SidesLike = None,
    user: Names = (),
    item: Names = (),
    cross: Names = (),
    rest: str | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    options: dict[str, Any] | None = None,
    **further: Any,
) -> Optimized:
    """`torch.onnx.export`, with the candidates' dimension free, then `mari_onnx.optimize` with its check.

    Args:
        model: in eval mode is what is exported; it is put back into the mode that it had.
        args: example inputs, tensors `[N, ..]` with N >= 2, the user's too.
        path: where the output is written; None: nowhere, `Optimized.save` does it later.
        sides, user, item, cross, rest: whose inputs these are, as for `mari_onnx.optimize`, by `input_names`.
        input_names: by default the names of the parameters of `forward`. output_names: as for torch.
        options: further arguments of `mari_onnx.optimize`. further: of `torch.onnx.export`.

    Raises:
        UsageError, OutputsDiffer, ..: see `mari_onnx.optimize`; and where torch is not installed.
    """
    with needs("torch"):
        import torch

    names = list(input_names) if input_names is not None else _parameters(model, len(args))
    free = torch.export.Dim("N", min=1)
    arguments: dict[str, Any] = {"input_names": names, "dynamo": True, "verbose": False}
    weights = model.state_dict().values()
    arguments["external_data"] = sum(each.numel() * each.element_size() for each in weights) > _ONE_FILE
    if output_names is not None:
        arguments["output_names"] = list(output_names)
    arguments["dynamic_shapes"] = tuple({0: free} if getattr(each, "ndim", 0) else None for each in args)
    training = model.training
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
        file = Path(folder, "model.onnx")
        try:
            torch.onnx.export(model.eval(), tuple(args), str(file), **{**arguments, **further})
        finally:
            model.train(training)
        done = optimize(file, sides, user=user, item=item, cross=cross, rest=rest, **(options or {}))
        if path is not None:
            done.save(Path(path))
    return done


def _parameters(model: torch.nn.Module, count: int) -> list[str]:
    """The names of the first parameters of `forward`."""
    import inspect

    return list(inspect.signature(model.forward).parameters)[:count]
