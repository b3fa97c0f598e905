"""The inputs and outputs of a model, as a caller of the model sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Input:
    """One input or output.

    Attributes:
        name: as in the graph.
        dtype: element type; `object` for strings, sequences, optionals and maps.
        shape: a dimension is an int, the name of a symbol, or None where nothing is said.
        rank_known: False where the graph gives no shape (`shape` is then empty) or no tensor.
        type: for people, as `float32`, `string` or `seq(map(int64, float32))`.
        held: element type of the tensors in a sequence, or of the values of a map; `dtype` of a tensor.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...]
    rank_known: bool = True
    type: str = ""
    held: np.dtype = field(default_factory=lambda: np.dtype(object))

    @property
    def text(self) -> str:
        """Shape for people, as `[N, 12]`."""
        if not self.rank_known:
            return "[...]"
        return "[" + ", ".join("?" if d is None else str(d) for d in self.shape) + "]"


@dataclass(frozen=True)
class Signature:
    """Inputs that a caller must feed (initializers left out) and outputs, in graph order."""

    inputs: tuple[Input, ...]
    outputs: tuple[Input, ...]

    def input(self, name: str) -> Input:
        """The input of that name; KeyError where there is none."""
        for each in self.inputs:
            if each.name == name:
                return each
        raise KeyError(name)


def signature(model: onnx.ModelProto) -> Signature:
    """Reads the signature of `model.graph`; the model is not changed."""
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    constants.update(t.values.name for t in graph.sparse_initializer)
    return Signature(
        inputs=tuple(_read(v) for v in graph.input if v.name not in constants),
        outputs=tuple(_read(v) for v in graph.output),
    )


def _read(value: onnx.ValueInfoProto) -> Input:
    text, held = _type(value.type)
    if value.type.WhichOneof("value") != "tensor_type":
        return Input(value.name, np.dtype(object), (), rank_known=False, type=text, held=held)
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return Input(value.name, held, (), rank_known=False, type=text, held=held)
    return Input(value.name, held, tuple(dimension(d) for d in tensor.shape.dim), type=text, held=held)


def _type(of: onnx.TypeProto) -> tuple[str, np.dtype]:
    """A type for people, and the element type of what it holds in the end."""
    which = of.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        inner, held = _type(getattr(of, which).elem_type)
        return f"{which[:3]}({inner})", held
    if which == "map_type":
        inner, held = _type(of.map_type.value_type)
        return f"map({_element(of.map_type.key_type)[0]}, {inner})", held
    return _element(getattr(of, which).elem_type) if which else ("unknown", np.dtype(object))


def _element(elem_type: int) -> tuple[str, np.dtype]:
    from onnx.helper import tensor_dtype_to_np_dtype

    try:
        dtype = np.dtype(tensor_dtype_to_np_dtype(elem_type))
    except (KeyError, TypeError, ValueError):
        dtype = np.dtype(object)
    return ("string" if dtype.kind == "O" else str(dtype)), dtype


def dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """A size, the name of a symbol, or None where nothing is said, as with the -1 that some exporters write."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return dim.dim_param or None
