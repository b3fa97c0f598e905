"""Rules of classical machine learning (domain `ai.onnx.ml`)."""

from mari_onnx.engine.rules.ml import linear, preprocess

__all__ = ["linear", "preprocess"]
