"""What Triton documents of its onnxruntime backend and of ensembles, in Python.

In: a model repository. Out: answers of requests. Refuses what Triton refuses: a configuration that is not the model's,
tensors that are not as the configuration says, a repository without one of the models. After the sources of
triton-inference-server: `core` (model_config_utils.cc, infer_request.cc), `backend` (backend_input_collector.cc,
backend_output_responder.cc) and `onnxruntime_backend` (onnxruntime.cc).
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import onnxruntime
from google.protobuf import json_format
from tritonclient.grpc.model_config_pb2 import DataType

from mari_onnx.serving.triton.config import TYPES, parse

KINDS = {"STRING": "object", "FP16": "float16", "FP32": "float32", "FP64": "float64"}


def numpy_type(config_type: int):
    """TYPE_INT64 -> numpy's."""
    name = DataType.Name(config_type).removeprefix("TYPE_")
    return np.dtype(KINDS.get(name) or name.lower())


class Refused(Exception):
    """What a Python model answers to a request with an error, and of what kind the error is."""

    INVALID_ARG, UNAVAILABLE = "INVALID_ARG", "UNAVAILABLE"

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


class Tensor:
    """A tensor of `triton_python_backend_utils`."""

    def __init__(self, name, array):
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


UTILS = SimpleNamespace(
    Tensor=Tensor,
    TritonError=Refused,
    InferenceResponse=lambda output_tensors=(), error=None: SimpleNamespace(tensors=output_tensors, error=error),
)
"""Stands for the module `triton_python_backend_utils`, which the server brings."""


class Server:
    """The models of a repository, loaded and checked against their configurations."""

    def __init__(self, repository: Path):
        self.configs = {f.name: parse((f / "config.pbtxt").read_text()) for f in repository.iterdir() if f.is_dir()}
        self.sessions, self.python = {}, {}
        self.runs = []
        for name, config in self.configs.items():
            assert config.name == name
            assert (repository / name / "1").is_dir()
            for io in [*config.input, *config.output]:
                assert len(io.dims) > 0
                assert all(d == -1 or d >= 1 for d in io.dims)
                assert config.max_batch_size or not io.HasField("reshape")
            if config.platform == "ensemble":
                self._check_ensemble(config)
            elif config.backend == "python":
                self.python[name] = self._python(repository / name / "1" / "model.py", config)
            else:
                assert config.backend == "onnxruntime"
                path = repository / name / "1" / (config.default_model_filename or "model.onnx")
                self.sessions[name] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
                self._check_model(config, self.sessions[name])

    @staticmethod
    def _python(path, config):
        with mock.patch.dict(sys.modules, {"triton_python_backend_utils": UTILS}):
            found = runpy.run_path(str(path))["TritonPythonModel"]()
        said = json_format.MessageToJson(
            config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        found.initialize({"model_config": said, "model_repository": str(path.parents[1]), "model_version": "1"})
        return found

    def _check_model(self, config, session):
        made = {name for each in config.batch_input for name in each.target_name}
        assert {i.name for i in session.get_inputs()} == {i.name for i in config.input} | made
        given = {i.name: i for i in [*session.get_inputs(), *session.get_outputs()]}
        scattered = {name for each in config.batch_output for name in each.target_name}
        for io in [*config.input, *config.output]:
            shape = [d if isinstance(d, int) else -1 for d in given[io.name].shape]
            assert numpy_type(io.data_type) == numpy_type_of(given[io.name].type)
            dims = list(io.reshape.shape if io.HasField("reshape") else io.dims)
            if io in config.input and io.allow_ragged_batch:
                assert shape == [-1], io.name
            elif not shape:
                assert set(dims) == {1}, io.name
            elif io.name not in scattered:
                want = [-1, *dims] if config.max_batch_size else dims
                same = len(want) == len(shape) and all(
                    a == b or (a == -1 and io in config.input) for a, b in zip(shape, want, strict=True)
                )
                assert same, (io.name, shape, want)

    def _check_ensemble(self, config):
        known = {i.name for i in config.input}
        read = set()
        for step in config.ensemble_scheduling.step:
            model = self.configs[step.model_name]
            assert set(step.input_map) == {i.name for i in model.input}
            assert set(step.output_map) <= {o.name for o in model.output}
            assert step.output_map
            assert set(step.input_map.values()) <= known, "steps are in the order in which they run"
            assert not known & set(step.output_map.values()), "a tensor is made once"
            read |= set(step.input_map.values())
            known |= set(step.output_map.values())
        outputs = {o.name for o in config.output}
        assert known == read | outputs, "every tensor is used"
        assert not read & outputs

    def infer(self, name: str, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The answer to one request."""
        (answer,) = self.infer_together(name, [feed])
        return answer

    def infer_together(self, name: str, feeds: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Answers of requests that the dynamic batcher puts into one run."""
        config = self.configs[name]
        for feed in feeds:
            self._check_request(config, feed)
        self.runs.append((name, len(feeds)))
        if config.platform == "ensemble":
            return [self._ensemble(config, feed) for feed in feeds]
        if config.backend == "python":
            return self._by_python(config, feeds)
        if not config.max_batch_size:
            (feed,) = feeds
            return [self._alone(config, feed)]
        return self._batched(config, feeds)

    def _check_request(self, config, feed):
        assert set(feed) == {i.name for i in config.input if not i.optional} | (
            set(feed) & {i.name for i in config.input if i.optional}
        )
        sizes = set()
        for io in config.input:
            if io.name not in feed:
                continue
            shape = np.shape(feed[io.name])
            if config.max_batch_size:
                sizes.add(shape[0])
                shape = shape[1:]
            assert len(shape) == len(io.dims), (io.name, shape, list(io.dims))
            assert all(d in (-1, s) for d, s in zip(io.dims, shape, strict=True)), (io.name, shape, list(io.dims))
            assert feed[io.name].dtype == numpy_type(io.data_type), io.name
        assert len(sizes) <= 1, "inputs of a request differ in their batch size"
        assert all(size <= config.max_batch_size for size in sizes)

    def _ensemble(self, config, feed):
        tensors = dict(feed)
        for step in config.ensemble_scheduling.step:
            answer = self.infer(step.model_name, {k: tensors[v] for k, v in step.input_map.items()})
            tensors |= {v: answer[k] for k, v in step.output_map.items()}
        return {o.name: tensors[o.name] for o in config.output}

    def _alone(self, config, feed):
        session = self.sessions[config.name]
        scalars = {i.name for i in session.get_inputs() if not i.shape}
        answers = session.run(None, {k: v.reshape(()) if k in scalars else v for k, v in feed.items()})
        made = dict(zip([o.name for o in session.get_outputs()], answers, strict=True))
        return {o.name: made[o.name].reshape(np.shape(made[o.name]) or (1,)) for o in config.output}

    def _by_python(self, config, feeds):
        outputs = [o.name for o in config.output]
        requests = [
            SimpleNamespace(
                inputs=lambda feed=feed: [Tensor(name, array) for name, array in feed.items()],
                requested_output_names=lambda: outputs,
            )
            for feed in feeds
        ]
        found = []
        for each in self.python[config.name].execute(requests):
            found.append(each.error or {t.name(): t.as_numpy() for t in each.tensors})
            if each.error is None:
                for io in config.output:
                    assert found[-1][io.name].dtype == numpy_type(io.data_type)
                    assert len(found[-1][io.name].shape) == 1 + len(io.dims)
        return found

    def _batched(self, config, feeds):
        session, whole = self.sessions[config.name], {}
        for io in config.input:
            given = [feed[io.name] for feed in feeds]
            if io.allow_ragged_batch:
                whole[io.name] = np.concatenate([each.reshape(-1) for each in given])
                continue
            assert len({each.shape[1:] for each in given}) == 1, "the batcher puts unequal shapes apart"
            joined = np.concatenate(given)
            whole[io.name] = joined.reshape(len(joined), *io.reshape.shape) if io.HasField("reshape") else joined
        for made in config.batch_input:
            assert made.Kind.Name(made.kind) == "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"
            counts = [feed[made.source_input[0]].size for feed in feeds]
            ends = np.cumsum([0, *counts]).astype(numpy_type(made.data_type))
            whole |= dict.fromkeys(made.target_name, ends)
        answers = dict(zip([o.name for o in session.get_outputs()], session.run(None, whole), strict=True))
        return self._scattered(config, feeds, answers)

    def _scattered(self, config, feeds, answers):
        found = [{} for _ in feeds]
        by = {name: each.source_input[0] for each in config.batch_output for name in each.target_name}
        sizes = [len(next(iter(feed.values()))) for feed in feeds]
        for io in config.output:
            at, flat = 0, answers[io.name].reshape(-1)
            for feed, answer, size in zip(feeds, found, sizes, strict=True):
                if io.name in by:
                    source = feed[by[io.name]].shape
                    shape = [source[i] if d == -1 else d for i, d in enumerate([-1, *io.dims])]
                else:
                    rest = answers[io.name].shape[1:]
                    shape = [size, *(io.dims if io.HasField("reshape") else rest)]
                answer[io.name] = flat[at : at + int(np.prod(shape))].reshape(shape)
                at += int(np.prod(shape))
            assert at == len(flat), "the batch is answered whole"
        return found


def numpy_type_of(onnxruntime_type: str):
    """tensor(float) -> numpy's."""
    return numpy_type(DataType.Value(f"TYPE_{TYPES[onnxruntime_type]}"))


def client_of(server: Server):
    """A stand-in for the module `tritonclient.grpc`, whose client calls `server`."""

    class InferInput:
        def __init__(self, name, shape, kind):
            self.name, self.shape, self.kind = name, shape, kind

        def set_data_from_numpy(self, array):
            from tritonclient.utils import np_to_triton_dtype

            assert np_to_triton_dtype(array.dtype) == self.kind
            assert list(array.shape) == self.shape
            self.array = array

    class InferenceServerClient:
        def __init__(self, url):
            assert url

        def infer(self, name, inputs):
            answer = server.infer(name, {i.name: i.array for i in inputs})
            return SimpleNamespace(as_numpy=answer.__getitem__)

    return SimpleNamespace(InferInput=InferInput, InferenceServerClient=InferenceServerClient)
