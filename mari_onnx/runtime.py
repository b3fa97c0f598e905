"""onnxruntime sessions: made from a path or a model, with the provider that was asked for or not at
all.

onnxruntime itself falls back to the CPU with a log line where a provider cannot load; here that is
a `ProviderError` (exit code 5). Its own exceptions become `ModelError`s of one line.
"""

from __future__ import annotations

import abc
import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np

from mari_onnx.errors import BrokenRuntime, ModelError, ModelNotFound, ProviderError, UsageError, first_line
from mari_onnx.model.tensors import (
    byte_size,
    external_bytes,
    is_external,
    set_external,
    tensors,
)

if TYPE_CHECKING:
    import onnx
    import onnxruntime

ModelLike: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | Assembly"

# Above this a model is handed over as a file with external data: protobuf ends at 2 GiB, and a
# serialized copy
# beside the model and the session would be a third copy in memory.
STAGE_BYTES = 256 * 2**20
# Weights smaller than this stay inside the staged file.
_EXTERNAL_BYTES = 4096

# onnxruntime's levels of logging.
_WARNING, _FATAL = 2, 4
# Stands for the CPU, and CUDA where a GPU answers.
AUTO = "auto"
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "dml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
}


# Packages that install the module `onnxruntime`, each over the other's files; the first that is there is kept.
_PACKAGES = (
    "onnxruntime-gpu",
    "onnxruntime",
    *(f"onnxruntime-{kind}" for kind in ("directml", "openvino", "rocm", "migraphx", "qnn", "training")),
)
_silent = False
# Libraries of custom operators that every session has; only `custom_ops` changes it.
_libraries: tuple[str, ...] = ()


class Assembly(abc.ABC):
    """Several models that together compute what one does, as a stand-in for that one.

    Attributes:
        model: one graph that computes the same, to be read.
    """

    model: onnx.ModelProto

    @abc.abstractmethod
    def open(self, provider: str, optimize: bool, threads: int) -> Any:
        """What `session` opens: it has `get_inputs` and `run`, as onnxruntime's sessions have.

        If the metadata of `model` say that it takes several requests, there is `run_several(names, feeds)`, too: feeds
        of single requests -> for each of them its outputs `names`, all by one run.
        """


def load(silent: bool = False) -> Any:
    """The module `onnxruntime`.

    Args:
        silent: its log is not wanted, from here to the end of the process.

    Raises:
        BrokenRuntime: it cannot be imported, with the command that mends it.
    """
    global _silent
    try:
        import onnxruntime

        # What is left of a removed package can be imported, as a folder of that name.
        onnxruntime.InferenceSession, onnxruntime.get_available_providers  # noqa: B018
    except (ImportError, AttributeError, OSError) as error:
        there = installed()
        what = f"{' and '.join(there)} cannot be imported" if there else "onnxruntime is not installed"
        raise BrokenRuntime(f"{what}: {first_line(error)}", mend(there)) from error
    if silent:
        _silent = True
        onnxruntime.set_default_logger_severity(_FATAL)
    return onnxruntime


def installed() -> list[str]:
    """The packages of onnxruntime that pip knows of; there should be one."""
    from importlib.metadata import PackageNotFoundError, distribution

    found = []
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            distribution(name)
            found.append(name)
    return found


def mend(there: Sequence[str]) -> str:
    """The command that leaves one whole package of onnxruntime where there are several, a broken one, or none."""
    if not there:
        return f"pip install {_PACKAGES[0] if sys.platform in ('linux', 'win32') else _PACKAGES[1]}"
    return f"pip uninstall -y {' '.join(there)} && pip install {there[0]}"


def conflict() -> str | None:
    """Several packages of onnxruntime at once, in words; None where there is one."""
    there = installed()
    if len(there) < 2:
        return None
    return f"{' and '.join(there)} are both installed and overwrite each other's files; to mend it: {mend(there)}"


@contextlib.contextmanager
def custom_ops(libraries: Iterable[str | Path]) -> Iterator[None]:
    """Within it, sessions know the custom operators of these libraries, whose code is run.

    Raises:
        UsageError: one of them is no file, or cannot be loaded.
    """
    global _libraries
    before, wanted = _libraries, tuple(str(Path(each).resolve()) for each in libraries)
    for library in wanted:
        if not Path(library).is_file():
            raise UsageError(
                f"there is no library of custom operators {library}",
                "--custom-ops takes a shared library, for example what onnxruntime_extensions.get_library_path() says",
            )
        try:
            load().SessionOptions().register_custom_ops_library(library)
        except Exception as error:
            raise UsageError(
                f"onnxruntime cannot load the custom operators of {library}: {first_line(error)}",
                "--custom-ops takes a library that was built for this version of onnxruntime",
            ) from error
    _libraries = (*before, *wanted)
    try:
        yield
    finally:
        _libraries = before


def custom_ops_in_use() -> tuple[str, ...]:
    """The libraries of custom operators that sessions have now; a further process has to be given them."""
    return _libraries


def session_options() -> onnxruntime.SessionOptions:
    """Options of a session that logs nothing and knows the custom operators in use."""
    options = load().SessionOptions()
    options.log_severity_level = _FATAL
    for library in _libraries:
        options.register_custom_ops_library(library)
    return options


def provider_name(provider: str) -> str:
    """onnxruntime's name of a provider: `cuda` -> `CUDAExecutionProvider`; full names pass as they
    are.

    Raises ProviderError for a name that nobody knows.
    """
    name = _PROVIDERS.get(provider.lower(), provider)
    if not name.endswith("ExecutionProvider"):
        known = ", ".join(sorted(_PROVIDERS))
        raise ProviderError(
            f"there is no execution provider {provider!r}", f"one of {known}, or onnxruntime's full name"
        )
    return name


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
    if provider.lower() == AUTO or provider_name(provider) == _PROVIDERS["cpu"]:
        return
    from onnx import TensorProto, helper

    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "provider", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    run(session(model, provider), {"x": np.ones(1, np.float32)}, f"a test of {provider}")


def session(
    model: ModelLike,
    provider: str = "cpu",
    optimize: bool = True,
    threads: int = 1,
    *,
    lean: bool = False,
    shared: Mapping[str, onnxruntime.OrtValue] | None = None,
    profile: str | None = None,
    what: str | None = None,
) -> onnxruntime.InferenceSession:
    """A session that really has `provider`.

    Args:
        model: path (preferred for large models) or ModelProto.
        provider: `cpu`, `cuda`, `tensorrt`, ... or onnxruntime's full name. TF32 is off on CUDA and
            TensorRT.
        optimize: all of onnxruntime's graph optimizations, or none.
        threads: within an operator; operators run one after the other.
        lean: no pre-packed copies of weights, no memory arena and no threads that spin: one copy of the weights,
            slower.
        shared: numbers of external initializers, which are used as they are; their files need not hold them, and the
            caller keeps them as long as the session.
        profile: prefix of a profile file to write (see `nodes_by_provider`).
        what: how an error calls the model, by default its path.

    Raises:
        ProviderError: the provider is not in this onnxruntime, or did not load.
        ModelError: the model cannot be made into a session.
    """
    if isinstance(model, Assembly):
        opened: onnxruntime.InferenceSession = model.open(provider, optimize, threads)
        return opened
    ort = load()
    wanted = provider_name(provider)
    what = what or ("the model" if _is_proto(model) else os.fspath(model))
    if wanted not in ort.get_available_providers():
        raise ProviderError(
            f"this onnxruntime has no {wanted} (it has {', '.join(ort.get_available_providers())})",
            conflict() or "install an onnxruntime built with it, for CUDA: pip install 'mari-onnx[cuda]'",
        )
    options = session_options()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if lean:
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in (shared or {}).items():
        options.add_initializer(name, value)
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    providers: list[Any] = [wanted]
    if wanted == _PROVIDERS["cuda"]:
        with contextlib.redirect_stdout(None):  # it prints what it does not find
            ort.preload_dlls()
        providers = [(wanted, {"use_tf32": 0})]
    if wanted != _PROVIDERS["cpu"]:
        providers.append(_PROVIDERS["cpu"])
        # TensorRT has no option for TF32: the CUDA libraries read this one.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    ort.set_default_logger_severity(_FATAL)  # the fall-back's log line; it is raised below instead
    try:
        with as_file(model) as source:
            made = ort.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except Exception as error:
        raise _translated(error, what, "cannot be loaded by onnxruntime") from error
    finally:
        if not _silent:
            ort.set_default_logger_severity(_WARNING)
    if made.get_providers()[0] != wanted:
        others = ", ".join(made.get_providers())
        raise ProviderError(
            f"{wanted} did not load: onnxruntime would run {what} on {others}",
            "check the driver and the CUDA and cuDNN libraries, or ask for --provider cpu",
        )
    return made


def run(
    made: onnxruntime.InferenceSession,
    feed: Mapping[str, np.ndarray],
    what: str,
    names: Sequence[str] | None = None,
) -> list[np.ndarray]:
    """Runs a session; its exceptions become a ModelError that names the model `what` and the
    input."""
    try:
        outputs: list[np.ndarray] = made.run(names, dict(feed))
        return outputs
    except Exception as error:
        shapes = ", ".join(f"{k}{list(np.shape(v))}" for k, v in list(feed.items())[:8])
        more = "" if len(feed) <= 8 else f" and {len(feed) - 8} more"
        raise _translated(error, what, f"fails on {shapes}{more}") from error


def nodes_by_provider(
    model: ModelLike, feed: Mapping[str, np.ndarray], provider: str, what: str | None = None
) -> dict[str, int]:
    """How many nodes ran on each provider in one profiled run: a session may have a provider and
    not use it."""
    if isinstance(model, Assembly):
        model = model.model  # to see which nodes run where
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
        made = session(model, provider, profile=str(Path(folder, "profile")), what=what)
        run(made, feed, what or "the model")
        events = json.loads(Path(made.end_profiling()).read_text())
    counts: dict[str, int] = {}
    for event in events:
        if event.get("cat") == "Node" and event.get("name", "").endswith("_kernel_time"):
            where = event["args"].get("provider", "?")
            counts[where] = counts.get(where, 0) + 1
    return counts


@contextlib.contextmanager
def as_file(model: ModelLike) -> Iterator[str | bytes]:
    """What onnxruntime takes: a path as it is, a small model serialized, a large one as a temporary
    file."""
    if isinstance(model, Assembly):
        model = model.model
    if not _is_proto(model):
        path = os.fspath(model)
        if not os.path.isfile(path):
            raise ModelNotFound(f"there is no model file {path}")
        yield path
    elif weight_bytes(model) < STAGE_BYTES and not any(map(is_external, tensors(model))):
        yield model.SerializeToString()
    else:
        with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
            yield str(write_external(model, Path(folder)))


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the initializers of the main graph, wherever they sit."""
    return sum(byte_size(t) or 0 for t in model.graph.initializer)


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the initializers of the main graph."""
    import onnx

    copy = onnx.ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    graph = model.graph
    copy.graph.name = graph.name or "graph"
    copy.graph.node.extend(graph.node)
    copy.graph.input.extend(graph.input)
    copy.graph.output.extend(graph.output)
    copy.graph.value_info.extend(graph.value_info)
    copy.graph.sparse_initializer.extend(graph.sparse_initializer)
    return copy


def write_external(model: onnx.ModelProto, folder: Path) -> Path:
    """Writes `model` with its weights beside it, one tensor at a time; answers the path of the
    model file."""
    light = skeleton(model)
    with ExternalWriter(folder / "weights.bin") as weights:
        for tensor in model.graph.initializer:
            light.graph.initializer.append(weights.add(tensor))
    path = folder / "model.onnx"
    path.write_bytes(light.SerializeToString())
    return path


class ExternalWriter:
    """Appends tensors to one external data file."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("wb")

    def __enter__(self) -> ExternalWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """The tensor itself where it is small, else a reference to its data in the file."""
        from onnx import numpy_helper

        if is_external(tensor):
            data: Any = external_bytes(tensor)
        elif (byte_size(tensor) or 0) < _EXTERNAL_BYTES:
            return tensor
        else:
            data = tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
        return self.add_bytes(tensor.name, tensor.data_type, tensor.dims, [data])

    def add_bytes(
        self, name: str, data_type: int, dims: Sequence[int], data: Iterable[bytes | memoryview]
    ) -> onnx.TensorProto:
        """Writes little-endian data, piece after piece, and answers the tensor that refers to it."""
        import onnx

        self._file.write(
            b"\0" * (-self._file.tell() % 4096)
        )  # aligned: onnxruntime can then map it
        offset = self._file.tell()
        for piece in data:
            self._file.write(piece)
        made = onnx.TensorProto(name=name, data_type=data_type, dims=dims)
        set_external(made, self.path.name, offset, self._file.tell() - offset)
        return made


def _is_proto(model: object) -> TypeGuard[onnx.ModelProto]:
    return hasattr(model, "SerializeToString")


def _translated(error: Exception, what: str, did: str) -> Exception:
    """One line that says which model, which input and what to do."""
    if isinstance(error, ModelError):
        return error
    text = " ".join(str(error).split())
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"/\S*?/onnxruntime/\S+:\d+ (onnxruntime::)?\S+ ?", "", text)
    hint = "run it by onnxruntime alone to see whether the model itself is at fault"
    if "Got invalid dimensions" in text:
        hint = "feed it with the shape it declares (a user input of an optimized model has one row)"
    elif "Could not find an implementation" in text or "NOT_IMPLEMENTED" in str(error):
        hint = "there is no kernel for that operator and type here: try another provider or version"
    elif "is not a registered function/op" in text:
        hint = (
            "it is a custom operator: --custom-ops LIBRARY loads it, or `optimize --no-check` does without running "
            "the model"
        )
    elif "indices element out of data bounds" in text:
        hint = "an id lies outside the table it indexes: check the ids in the requests"
    elif "Unsupported model IR version" in text or "opset" in text.lower():
        hint = "the model is newer than this onnxruntime: update it"
    elif "invalid feed" in text.lower() or "required inputs" in text.lower():
        hint = "the inputs fed and the model's inputs differ by name"
    elif "Unexpected input data type" in text:
        hint = "the data type of that input in the requests is not the model's"
    return ModelError(f"{what} {did}: {text[:400]}", hint)
