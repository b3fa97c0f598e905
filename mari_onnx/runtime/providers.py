"""Which execution providers answer on this machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mari_onnx.errors import ModelError, ProviderError
from mari_onnx.runtime.sessions import PROVIDERS, provider_name, run, session

# Stands for the CPU, and CUDA where a GPU answers.
AUTO = "auto"


def chosen(providers: Sequence[str]) -> list[str]:
    """`auto` as what it stands for on this machine: the CPU, and CUDA where a GPU answers; others as they are."""
    found: list[str] = []
    for each in providers:
        automatic = each.lower() == AUTO
        found += ["cpu", *(["cuda"] if gpu_answers() else [])] if automatic else [each]
    return list(dict.fromkeys(found))


def gpu_answers() -> bool:
    """Whether onnxruntime runs a node on CUDA here: has it, loads it, and finds a GPU with its driver."""
    try:
        require("cuda")
    except (ModelError, ProviderError):
        return False
    return True


def require(provider: str) -> None:
    """Makes sure that a provider is there and loads; `auto` always is.

    Raises:
        ProviderError: it is not there.
    """
    if provider.lower() == AUTO or provider_name(provider) == PROVIDERS["cpu"]:
        return
    from onnx import TensorProto, helper

    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "provider", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    run(session(model, provider), {"x": np.ones(1, np.float32)}, f"a test of {provider}")
