"""One module an operator family; importing this package fills the table of rules."""

from mari_onnx.engine.rules import (
    attention,
    elementwise,
    index,
    loop,
    mapped,
    norm,
    picked,
    products,
    reduce,
    scatter,
    sequence,
    shape,
    slices,
    softmax,
    structure,
    windows,
)

__all__ = [
    "attention",
    "elementwise",
    "index",
    "loop",
    "mapped",
    "norm",
    "picked",
    "products",
    "reduce",
    "scatter",
    "sequence",
    "shape",
    "slices",
    "softmax",
    "structure",
    "windows",
]
