"""The contract of an output that is not lossless: what it lost on recorded requests, and may lose."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.result import CheckResult

LOSS_KEY = "mari_onnx.user_weights"
"""The metadata in which an output has its contract."""
MAX_TAU_LOSS = 0.001
"""What the order of candidates may change by, unless another bound is given: 1 less the mean of Kendall's tau."""


def contract_of(model: onnx.ModelProto) -> dict[str, Any] | None:
    """The contract in a model's metadata; None for one that has to be equal to its source.

    Raises:
        InvalidModel: the metadata cannot be read.
    """
    from mari_onnx.errors import InvalidModel

    text = next((entry.value for entry in model.metadata_props if entry.key == LOSS_KEY), None)
    if text is None:
        return None
    try:
        found: dict[str, Any] = json.loads(text)
        float(found["max_tau_loss"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidModel(f"the metadata {LOSS_KEY} of the model cannot be read: {error}") from error
    return found


def figures(result: CheckResult) -> dict[str, Any]:
    """What a check says of the loss, for the report and the metadata: of each output the worst over requests, but
    `tau_loss`, which is that of the mean.
    """
    return {
        "requests": result.requests,
        "outputs": {
            each.name: {
                "tau_loss": each.tau_loss,
                "worst_tau": None if each.ranking is None else each.ranking.tau,
                "top_k": {} if each.ranking is None else {str(k): share for k, share in each.ranking.top_k.items()},
                "error": each.overall.error,
            }
            for each in result.outputs
        },
    }
