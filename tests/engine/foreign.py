"""Operators of com.microsoft on integers, for onnx's reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun


def _real(x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    return (x.astype(np.int64) - zero.astype(np.int64)) * scale.astype(np.float64)


def _codes(x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    kind = np.iinfo(zero.dtype)
    codes = np.rint((x / scale).astype(np.float32)) + zero
    return np.asarray(np.clip(codes, kind.min, kind.max).astype(zero.dtype))


class QGemm(OpRun):
    """A, its scale and zero point, B and its two, the sums to add, scale and zero point of the result."""

    op_domain = "com.microsoft"

    def _run(self, *x: np.ndarray, **_: Any) -> tuple[np.ndarray]:
        a, a_scale, a_zero, b, b_scale, b_zero, sums, scale, zero = x
        found = (a.astype(np.int64) - a_zero) @ (b.astype(np.int64) - b_zero) + sums
        return (_codes(found * (a_scale.astype(np.float64) * b_scale), scale, zero),)


class QLinearAdd(OpRun):
    """A, B with scale and zero point each, scale and zero point of the result."""

    op_domain = "com.microsoft"

    def _run(self, *x: np.ndarray, **_: Any) -> tuple[np.ndarray]:
        return (_codes(_real(*x[:3]) + _real(*x[3:6]), *x[6:8]),)


class QLinearSigmoid(OpRun):
    """X, its scale and zero point, scale and zero point of the result."""

    op_domain = "com.microsoft"

    def _run(self, *x: np.ndarray, **_: Any) -> tuple[np.ndarray]:
        return (_codes(1 / (1 + np.exp(-_real(*x[:3]))), *x[3:5]),)


FOREIGN = [QGemm, QLinearAdd, QLinearSigmoid]
