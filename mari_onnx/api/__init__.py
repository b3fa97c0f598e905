"""A model in, a rewritten and checked one out: file -> sides -> engine -> check -> file.

    calls      `mari_onnx.optimize` and `mari_onnx.inspect`
    given      what a caller gives: a model, and whose its inputs are
    rewriting  the rewrite, and the rewrite with its check
    several    what is refused of a model for several requests in one run
    optimized  what a rewrite answers: the model with its provenance and its report

Below `splitting` and `timing`, which rewrite and check with it; above `parity`, `report` and the engine.
"""

from mari_onnx.api.calls import inspect, optimize
from mari_onnx.api.given import as_source, at_its_number, sides_of, with_given_shapes
from mari_onnx.api.optimized import Optimized
from mari_onnx.api.rewriting import checked, rewritten

__all__ = [
    "Optimized",
    "as_source",
    "at_its_number",
    "checked",
    "inspect",
    "optimize",
    "rewritten",
    "sides_of",
    "with_given_shapes",
]
