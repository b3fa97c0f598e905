"""What Triton's Python backend calls: requests in, responses out, by a `mari_onnx.serving.Service`.

In: the requests that Triton hands over together. Out: a response for each, in their order; one that is refused has an
error of its own. `triton_python_backend_utils` is a module that the server brings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mari_onnx.errors import BadFeatures, MariError, StoreUnavailable
from mari_onnx.serving import Answer, Ranker, Request, Service, StateCache, open_store
from mari_onnx.serving.protocol import ITEM_IDS, USER_KEY, read_by
from mari_onnx.splitting.manifest import InputInfo, Manifest


class TritonPythonModel:
    """The interface that Triton looks for in `model.py`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Makes the service as the configuration's parameters say.

        Args:
            args: Triton's; "model_config" is the configuration as JSON.
        """
        config = json.loads(args["model_config"])
        said = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"], args["model_version"], said["folder"])
        store = open_store(said["store"]) if said["store"] else None
        states = StateCache(int(said["cache_bytes"]), float(said["cache_seconds"]))
        self.service = Service(Ranker(folder), store, states)
        self._outputs = {output["name"] for output in config["output"]}

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """The responses to requests that came together."""
        manifest = self.service.ranker.manifest
        read: list[Request | MariError] = []
        for request in requests:
            try:
                read.append(request_of({t.name(): t.as_numpy() for t in request.inputs()}, manifest))
            except MariError as error:
                read.append(error)
        answers = iter(self.service.score_many([each for each in read if isinstance(each, Request)]))
        return [
            _response(each if isinstance(each, MariError) else next(answers), request)
            for each, request in zip(read, requests, strict=True)
        ]

    def finalize(self) -> None:
        """Called before the model is unloaded."""


def request_of(arrays: dict[str, np.ndarray], manifest: Manifest) -> Request:
    """A request of the tensors that Triton hands over, which have a first dimension of 1.

    Raises:
        BadFeatures: a request has several users.
    """
    inputs = {each.name: each for each in manifest.inputs}
    sides: dict[str, dict[str, np.ndarray]] = {"user": {}, "item": {}, "cross": {}}
    key = ids = None
    with_ids = ITEM_IDS in arrays and ITEM_IDS not in inputs
    for name, array in arrays.items():
        if array.shape[0] != 1:
            raise BadFeatures(
                f"{name} has the shape {list(array.shape)}: a request is for one user, so its first dimension is 1",
                "send one request for each user; the server puts them together",
            )
        if name == USER_KEY and name not in inputs:
            (key,) = _texts(array).reshape(-1).tolist()
        elif name == ITEM_IDS and name not in inputs:
            ids = _texts(array)[0]
        else:
            side, whole = inputs[name].side, _without_batch(_texts(array), inputs[name])
            for each in read_by(side, with_ids):
                sides[each][name] = whole
    return Request(key, ids, sides["user"], sides["item"], sides["cross"])


def _without_batch(array: np.ndarray, info: InputInfo) -> np.ndarray:
    """What the source takes; a tensor without further dimensions came with one of 1."""
    kept = array if info.side == "user" and info.axis == 0 else array[0]
    return kept.reshape(kept.shape[:-1]) if kept.ndim == len(info.shape) + 1 and kept.shape[-1] == 1 else kept


def _texts(array: np.ndarray) -> np.ndarray:
    """Bytes, as Triton hands texts over, as texts.

    Raises:
        BadFeatures: one is not UTF-8.
    """
    if array.dtype.kind != "O":
        return array
    try:
        flat = [each.decode() if isinstance(each, bytes) else str(each) for each in array.reshape(-1)]
    except UnicodeDecodeError as error:
        raise BadFeatures(f"a text is not UTF-8: {error}") from error
    texts = np.empty(len(flat), object)
    texts[:] = flat
    return texts.reshape(array.shape)


def _response(answer: Answer | MariError, request: Any) -> Any:
    if isinstance(answer, MariError):
        kinds = pb_utils.TritonError
        code = kinds.UNAVAILABLE if isinstance(answer, StoreUnavailable) else kinds.INVALID_ARG
        return pb_utils.InferenceResponse(output_tensors=[], error=kinds(str(answer), code))
    wanted = request.requested_output_names()
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, _sent(answer.outputs[name])) for name in answer.outputs if name in wanted]
    )


def _sent(array: np.ndarray) -> np.ndarray:
    """An output with the dimension of the batch."""
    whole = array[None] if array.shape else array.reshape(1, 1)
    return whole if array.dtype.kind != "O" else np.frompyfunc(lambda x: str(x).encode(), 1, 1)(whole)
