"""The rules: one module per family of operators, one function per operator. Importing this package registers them.

In: a `Context`, which has a source node and the Values of its inputs. Out: one Value per output of the node. A rule
that cannot be applied raises `Decline` with the reason. docs/writing-rules.md shows how to add one.
"""

from mari_onnx.engine.rules import (
    attention,
    batched,
    control,
    convolution,
    elementwise,
    extensions,
    index,
    mask_index,
    microsoft,
    ml,
    norm,
    products,
    quantized,
    recurrent,
    reduce,
    scatter,
    sequence,
    shape,
    slices,
    softmax,
    structure,
    tokens,
    triangle,
    windows,
)

__all__ = [
    "attention",
    "batched",
    "control",
    "convolution",
    "elementwise",
    "extensions",
    "index",
    "mask_index",
    "microsoft",
    "ml",
    "norm",
    "products",
    "quantized",
    "recurrent",
    "reduce",
    "scatter",
    "sequence",
    "shape",
    "slices",
    "softmax",
    "structure",
    "tokens",
    "triangle",
    "windows",
]
