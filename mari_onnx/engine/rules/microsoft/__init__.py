"""Rules of onnxruntime's own operators (domain `com.microsoft`)."""

from mari_onnx.engine.rules.microsoft import attention, fused, shapes

__all__ = ["attention", "fused", "shapes"]
