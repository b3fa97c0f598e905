"""Measuring models against each other: timing, peers, the floor, plots."""

from mari_onnx.timing.clock import Timing, interleaved
from mari_onnx.timing.measure import Measured, Variant, measure, variants_of

__all__ = ["Measured", "Timing", "Variant", "interleaved", "measure", "variants_of"]
