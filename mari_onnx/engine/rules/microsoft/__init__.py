"""Rules of onnxruntime's own operators (domain `com.microsoft`), which its optimizer writes into a saved model.

In and out: as for the other rules. Most of these operators are written as the standard operators that they stand for.
"""

from mari_onnx.engine.rules.microsoft import attention, fused, qlinear, shapes

__all__ = ["attention", "fused", "qlinear", "shapes"]
