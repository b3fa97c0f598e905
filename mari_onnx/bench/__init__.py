"""Measuring models against each other: timing, peers, the floor, plots."""

from mari_onnx.bench.measure import Measured, Variant, measure, variants_of
from mari_onnx.bench.timing import Timing, interleaved

__all__ = ["Measured", "Timing", "Variant", "interleaved", "measure", "variants_of"]
