"""Sessions and runs, and what goes wrong in them in one line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx.errors import ModelError, ProviderError, UsageError, first_line
from mari_onnx.runtime.files import Assembly, ModelLike, as_file, is_proto
from mari_onnx.runtime.packages import FATAL, WARNING, conflict, is_silent, load

if TYPE_CHECKING:
    import onnxruntime

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "dml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
}
# Libraries of custom operators that every session has; only `custom_ops` changes it.
_libraries: tuple[str, ...] = ()


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
    options.log_severity_level = FATAL
    for library in _libraries:
        options.register_custom_ops_library(library)
    return options


def provider_name(provider: str) -> str:
    """onnxruntime's name of a provider: `cuda` -> `CUDAExecutionProvider`; full names pass as they are.

    Raises ProviderError for a name that nobody knows.
    """
    name = PROVIDERS.get(provider.lower(), provider)
    if not name.endswith("ExecutionProvider"):
        known = ", ".join(sorted(PROVIDERS))
        raise ProviderError(
            f"there is no execution provider {provider!r}", f"one of {known}, or onnxruntime's full name"
        )
    return name


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
    what = what or ("the model" if is_proto(model) else os.fspath(model))
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
    if wanted == PROVIDERS["cuda"]:
        with contextlib.redirect_stdout(None):  # it prints what it does not find
            ort.preload_dlls()
        providers = [(wanted, {"use_tf32": 0})]
    if wanted != PROVIDERS["cpu"]:
        providers.append(PROVIDERS["cpu"])
        # TensorRT has no option for TF32: the CUDA libraries read this one.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    ort.set_default_logger_severity(FATAL)  # the fall-back's log line; it is raised below instead
    try:
        with as_file(model) as source:
            made = ort.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except Exception as error:
        raise _translated(error, what, "cannot be loaded by onnxruntime") from error
    finally:
        if not is_silent():
            ort.set_default_logger_severity(WARNING)
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
