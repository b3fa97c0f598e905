"""onnxruntime: sessions of a model that is a path or an object, with the provider that was asked for or not at all.

onnxruntime itself falls back to the CPU with a log line where a provider cannot load; here that is
a `ProviderError` (exit code 5). Its own exceptions become `ModelError`s of one line.

    packages   which package of onnxruntime is installed, and how to mend it
    files      a model as onnxruntime takes it: a path, bytes, or a file with its weights beside it
    sessions   sessions, runs, custom operators
    providers  which providers answer on this machine
"""

from mari_onnx.runtime.files import (
    STAGE_BYTES,
    Assembly,
    ExternalWriter,
    ModelLike,
    as_file,
    skeleton,
    weight_bytes,
    write_external,
)
from mari_onnx.runtime.packages import conflict, installed, load, mend
from mari_onnx.runtime.providers import AUTO, chosen, gpu_answers, require
from mari_onnx.runtime.sessions import (
    custom_ops,
    custom_ops_in_use,
    nodes_by_provider,
    provider_name,
    run,
    session,
    session_options,
)

__all__ = [
    "AUTO",
    "STAGE_BYTES",
    "Assembly",
    "ExternalWriter",
    "ModelLike",
    "as_file",
    "chosen",
    "conflict",
    "custom_ops",
    "custom_ops_in_use",
    "gpu_answers",
    "installed",
    "load",
    "mend",
    "nodes_by_provider",
    "provider_name",
    "require",
    "run",
    "session",
    "session_options",
    "skeleton",
    "weight_bytes",
    "write_external",
]
