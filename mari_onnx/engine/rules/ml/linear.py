"""Linear models of ai.onnx.ml: a product with constants, and what the node makes of its scores.

    LinearRegressor     t(x C' + b)
    LinearClassifier    scores t(x C' + b), label the class of the largest x C' + b

t is the identity, the logistic function or Softmax. A user's columns are then one product per request, like those of
any other layer. Where no columns vary differently, the operator is computed row by row as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from mari_onnx.engine.batching import run
from mari_onnx.engine.ir.value import Cat, Value
from mari_onnx.engine.rule import Context, Steps, lowered, rule
from mari_onnx.engine.rules.microsoft.fused import differs
from mari_onnx.engine.rules.ml.preprocess import ML, rows

TRANSFORMS = {"NONE": "Identity", "LOGISTIC": "Sigmoid", "SOFTMAX": "Softmax"}


@rule("LinearRegressor", domain=ML, splits=True)
def regressor(ctx: Context) -> Sequence[Value | None]:
    """The product and its transform; by rows for another post_transform, and for any with one target (not in
    onnxruntime).
    """
    count = int(ctx.attr("targets", 1))
    if not _splits(ctx, count) or (count == 1 and ctx.attr("post_transform", "NONE") != "NONE"):
        return run(ctx, rows(ctx))
    with lowered(ctx) as step:
        return [_transformed(ctx, step, _scores(ctx, step, count))]


@rule("LinearClassifier", domain=ML, splits=True)
def classifier(ctx: Context) -> Sequence[Value | None]:
    """The product, the transform and the label; by rows where two classes have one row of coefficients."""
    ints, strings = ctx.attr("classlabels_ints", []), ctx.attr("classlabels_strings", [])
    count = len(ints)
    if strings or count < 2 or not _splits(ctx, count):
        return run(ctx, rows(ctx))
    with lowered(ctx) as step:
        scores = _scores(ctx, step, count)
        best = step("ArgMax", scores, axis=1, keepdims=0)
        if list(ints) != list(range(count)):
            best = step("Gather", step.ints(*ints), best, axis=0)
        return [best, _transformed(ctx, step, scores)][: len(ctx.node.output)]


def _splits(ctx: Context, count: int) -> bool:
    """Whether the product can be split: columns of x vary along different axes."""
    x = ctx.input(0)
    if x.rank != 2 or not differs(x) or not isinstance(x.body, Cat):
        return False
    coefficients, offsets = ctx.attr("coefficients", []), ctx.attr("intercepts", [])
    fits = ctx.b.same(x.shape[1], len(coefficients) // max(count, 1)) and len(coefficients) % max(count, 1) == 0
    return fits and len(offsets) in (0, count) and ctx.attr("post_transform", "NONE") in TRANSFORMS


def _scores(ctx: Context, step: Steps, count: int) -> Value:
    weights = np.asarray(ctx.attr("coefficients"), np.float32).reshape(count, -1).T
    x = step("Cast", ctx.input(0), to=TensorProto.FLOAT)
    out = step("MatMul", x, step.const(np.ascontiguousarray(weights), TensorProto.FLOAT))
    if ctx.attr("intercepts", []):
        out = step("Add", out, step.const(ctx.attr("intercepts"), TensorProto.FLOAT))
    return out


def _transformed(ctx: Context, step: Steps, scores: Value) -> Value:
    op = TRANSFORMS[ctx.attr("post_transform", "NONE")]
    return step(op, scores, axis=1) if op == "Softmax" else step(op, scores)
