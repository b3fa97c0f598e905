"""Rules of classical machine learning (domain `ai.onnx.ml`): pipelines of scikit-learn and tree libraries.

In and out: as for the other rules.
"""

from mari_onnx.engine.rules.ml import linear, preprocess

__all__ = ["linear", "preprocess"]
