"""Weights of the float64 model: converted, those of a large model into a file; tables are used where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.model import tensors
from mari_onnx.model.tensors import BELOW_DOUBLE

if TYPE_CHECKING:
    import onnx
    import onnxruntime

# A table smaller than this is simply converted.
_TABLE_BYTES = 2**16
# Weights smaller than this stay inside the model.
_FILE_BYTES = 4096
# Numbers that are converted at once: they stay in a processor's cache.
_PIECE = 2**17
# float32 and float16: types of tables that onnxruntime takes from numpy.
_SHARED = {1, 10}


@dataclass
class Weights:
    """What became of the weights.

    Attributes:
        tables: initializers that keep their type, with a cast behind their Gather.
        external: the model is large, and its weights are outside it.
        shared: numbers of tables that are nowhere written, for the session.
    """

    tables: set[str]
    external: bool
    shared: dict[str, onnxruntime.OrtValue] = field(default_factory=dict)


def convert(weights: Sequence[onnx.TensorProto], model: onnx.ModelProto, folder: Path) -> Weights:
    """Adds the weights to a model, floats as float64, but for large tables that only Gather reads.

    Args:
        weights: of the source, only read.
        model: without initializers.
        folder: for the weights of a large model.
    """
    import onnx
    from onnx import numpy_helper

    from mari_onnx import runtime

    graph = model.graph
    sizes = [int(np.prod(t.dims, dtype=np.int64)) for t in weights]
    external = sum(sizes) * 4 > runtime.STAGE_BYTES
    large = {
        t.name
        for t, n in zip(weights, sizes, strict=True)
        if n * 4 >= _TABLE_BYTES and t.data_type in BELOW_DOUBLE
    }
    found = Weights(_only_gathered(graph, large), external)
    with runtime.ExternalWriter(folder / "wide.bin") as writer:
        for tensor in weights:  # one at a time: a second copy of all weights would not fit
            if tensor.data_type not in BELOW_DOUBLE and not tensors.is_external(tensor):
                graph.initializer.append(tensor)
                continue
            array = tensors.array(tensor)
            table = tensor.name in found.tables
            dtype = array.dtype if table or tensor.data_type not in BELOW_DOUBLE else np.dtype(np.float64)
            if not external or array.size * dtype.itemsize < _FILE_BYTES:
                graph.initializer.append(numpy_helper.from_array(array.astype(dtype, copy=False), tensor.name))
            elif table and tensor.data_type in _SHARED:
                found.shared[tensor.name] = runtime.load().OrtValue.ortvalue_from_numpy(array)
                made = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
                tensors.set_external(made, writer.path.name, 0, array.nbytes)
                graph.initializer.append(made)
            else:
                flat = array.reshape(-1)
                pieces = (
                    flat[start : start + _PIECE].astype(dtype).view(np.uint8).data
                    for start in range(0, flat.size, _PIECE)
                )
                data_type = onnx.helper.np_dtype_to_tensor_dtype(dtype)
                graph.initializer.append(writer.add_bytes(tensor.name, data_type, tensor.dims, pieces))
    return found


def _only_gathered(graph: onnx.GraphProto, names: set[str]) -> set[str]:
    """Those of `names` that nothing but the data input of a Gather of this graph reads."""
    from mari_onnx.parity.domains.dependence import reads as reads_of

    found = names - {o.name for o in graph.output} - {i.name for i in graph.input}
    for node in graph.node:
        reads = list(reads_of(node))
        if node.op_type == "Gather" and not node.domain:
            reads = reads[1:]
        found.difference_update(reads)
    return found
