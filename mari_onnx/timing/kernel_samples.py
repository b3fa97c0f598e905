"""Small graphs of one kernel each, over sizes that ranking models have: what `calibrate` times.

A sample is a node and its operands; sizes are chosen so that every amount of `mari_onnx.prices.kernels` varies by
itself: rows at equal weights, runs at equal elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T

from mari_onnx.model.ops import MICROSOFT, TABLE, Fact, having
from mari_onnx.timing.ml_samples import ml_samples
from mari_onnx.timing.sample import OPSET, Sample, Shape


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-0.5, 0.5, shape).astype(np.float32)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def samples() -> Iterator[Sample]:
    """All samples, kernel by kernel."""
    yield from _products()
    yield from _elementwise()
    yield from _over_axes()
    yield from _moves()
    yield from _pools()
    yield from ml_samples()


def _products() -> Iterator[Sample]:
    for inner, columns in ((16, 16), (64, 64), (256, 128), (400, 200), (512, 512), (1024, 512)):
        for rows in (1, 2, 4, 8, 15):
            yield Sample("MatMul", ((rows, inner),), (_random(inner, columns),))
        for rows in (4, 64):
            yield Sample("MatMul", ((rows, inner), (inner, columns)))
    for inner, columns in ((8, 8), (16, 64), (64, 16), (64, 64), (256, 128), (400, 200), (512, 512), (200, 1), (64, 1)):
        for rows in (16, 64, 200, 500, 2000):
            if rows * inner * columns < 2e8:
                yield Sample("MatMul", ((rows, inner),), (_random(inner, columns),))
    for calls in (16, 100, 500, 2000):
        for rows, inner, columns in ((1, 16, 50), (1, 64, 1), (1, 50, 32), (4, 8, 4), (10, 16, 10), (20, 4, 20),
                                     (20, 20, 4), (50, 16, 50), (50, 64, 64), (50, 50, 16)):  # fmt: skip
            if calls * rows * inner * columns < 1e8:
                yield Sample("MatMul", ((calls, rows, inner), (calls, inner, columns)))
        for rows, inner, columns in ((64, 640, 4), (128, 100, 4), (32, 16, 2)):
            if calls <= 500:
                yield Sample("MatMul", ((rows, inner), (calls, inner, columns)))
        for rows, inner in ((16, 16), (47, 32), (64, 64)):
            yield Sample("MatMul", ((rows, inner), (calls, inner, 1)))
    for n in (16, 64, 500):
        for equation, left, right in (
            ("nhd,nmd->nhmd", (n, 20, 4), (n, 10, 4)), ("nhd,nmd->nhmd", (n, 64, 8), (n, 10, 8)),
            ("bik,bjk->bij", (n, 20, 8), (n, 20, 8)), ("bij,bjk->bik", (n, 20, 20), (n, 20, 8)),
            ("bfd,dke->bfke", (n, 10, 8), (8, 4, 8)), ("bfi,fij->bfj", (n, 10, 8), (10, 8, 8)),
            ("bfi,bfj->bfij", (n, 30, 8), (n, 30, 8)), ("bfi,bfj->bfij", (n, 30, 16), (n, 30, 16)),
            ("bhij,bjhd->bihd", (n, 2, 10, 10), (n, 10, 2, 8)),
        ):  # fmt: skip
            yield Sample("Einsum", (left, right), (), {"equation": equation})
    for n in (1, 16, 64, 500):
        for channels, height, width, filters, kernel in ((1, 20, 16, 8, (3, 1)), (4, 20, 16, 8, (7, 1)),
                                                         (1, 50, 16, 4, (3, 3)), (8, 10, 16, 8, (3, 3))):  # fmt: skip
            weight = _random(filters, channels, *kernel)
            pads = [k // 2 for k in kernel] * 2
            yield Sample("Conv", ((n, channels, height, width),), (weight,), {"pads": pads})
        for channels, length, filters, size in ((16, 50, 32, 1), (64, 20, 64, 1), (100, 4, 128, 1), (400, 4, 64, 1),
                                               (16, 20, 16, 3)):  # fmt: skip
            yield Sample("Conv", ((n, channels, length),), (_random(filters, channels, size),))
    for steps, batch, width in ((5, 16, 16), (20, 16, 16), (20, 500, 16), (20, 500, 64), (50, 1, 64)):
        for op, gates in (("GRU", 3), ("LSTM", 4)):
            weights = (_random(1, gates * width, width), _random(1, gates * width, width))
            yield Sample(op, ((steps, batch, width),), weights, {"hidden_size": width})


FLAT: tuple[Shape, ...] = ((1, 16), (16, 16), (64, 64), (500, 64), (500, 256), (500, 50, 32),
                           (500, 200, 32))
SPREAD: tuple[tuple[Shape, Shape], ...] = (
    ((500, 64), (64,)), ((500, 256), (500, 1)), ((500, 1, 64), (500, 50, 1)), ((500, 50, 32), (500, 1, 32)),
    ((500, 50, 32), (500, 50, 1)), ((500, 20, 4), (500, 1, 4)), ((500, 20, 1), (1, 20, 4)), ((64, 20, 16), (1, 20, 16)),
    ((500, 50, 1), (1, 1, 32)), ((64, 50, 4), (64, 1, 4)), ((1, 50, 32), (500, 1, 32)),
    ((500, 1), (1,)), ((16, 1), (1,)),
)  # fmt: skip


def _elementwise() -> Iterator[Sample]:
    for name, op in TABLE.items():
        if Fact.ELEMENT not in op.facts or not onnx.defs.has(name, OPSET):
            continue
        schema = onnx.defs.get_schema(name, OPSET)
        logic = Fact.LOGIC in op.facts
        kinds = {t for c in schema.type_constraints for t in c.allowed_type_strs}
        if "tensor(float)" not in kinds:
            continue
        if schema.min_input == 1 and not logic:
            attributes = {"to": T.INT64} if Fact.CONVERTS in op.facts else {}
            constants = (np.float32(-1), np.float32(1)) if name == "Clip" else ()
            if Fact.SAME not in op.facts:
                yield from (Sample(name, (shape,), tuple(map(np.asarray, constants)), attributes) for shape in FLAT)
        elif schema.min_input == 2 and not logic:
            yield from (Sample(name, (shape, shape), (), _modes(name)) for shape in FLAT)
            yield from (Sample(name, pair, (), _modes(name)) for pair in SPREAD)
    for shape in FLAT:
        for exponent in (2, 3):
            yield Sample("Pow", (shape,), (np.array(exponent, np.float32),))
        yield Sample("PRelu", (shape,), (np.array(0.2, np.float32),))
        yield Sample("Gelu", (shape,), domain=MICROSOFT)
        condition = _random(*shape) > 0
        yield Sample("Where", (), (condition, _random(*shape), _random(*shape)))
        yield Sample("Where", (), (condition, np.float32(0).reshape(1), _random(*shape)))
        yield Sample("And", (), (condition, ~condition))
        yield Sample("Not", (), (condition,))
    for left, right in SPREAD:
        yield Sample("Where", (), (_random(*left) > 0, _random(*right), _random(1)))
        yield Sample("And", (), (_random(*left) > 0, _random(*right) > 0))


def _modes(name: str) -> dict[str, Any]:
    return {"fmod": 1} if name == "Mod" else {}


def _over_axes() -> Iterator[Sample]:
    shape: Shape
    for shape in ((16, 16), (500, 4), (500, 50), (500, 8, 20, 20), (2, 500, 10, 10), (5000, 8), (64, 2, 50, 50),
                  (500, 24)):  # fmt: skip
        yield Sample("Softmax", (shape,), (), {"axis": -1})
        yield Sample("Softmax", (shape,), (), {"axis": -1}, in_place=True)
    for shape in ((16, 64), (500, 64), (500, 50, 32), (64, 20, 64), (500, 256)):
        width = shape[-1]
        yield Sample("LayerNormalization", (shape,), (_random(width), _random(width)), {"axis": -1})
        scale = (_random(width), _random(width))
        yield Sample("SkipLayerNormalization", (shape, shape), scale, {"epsilon": 1e-5}, MICROSOFT)
    for shape in ((1, 8, 8), (16, 8, 16), (16, 16), (64, 64), (500, 64), (500, 50, 32), (500, 20, 16), (500, 400),
                  (500, 190, 8), (64, 20, 16), (500, 6, 1), (500, 6, 4), (4, 500, 64), (64, 64, 6, 4)):  # fmt: skip
        for axis in range(len(shape)):
            yield Sample("ReduceSum", (shape,), (_ints(axis),))
            for op in sorted(having(Fact.REDUCES) - {"ReduceSum"}):
                yield Sample(op, (shape,), (), {"axes": [axis]})
    for shape in ((1, 16), (16, 16), (500, 50), (500, 50, 32), (64, 64)):
        yield Sample("CumSum", (shape,), (np.array(1, np.int64),))
        yield Sample("ArgMax", (shape,), (), {"axis": len(shape) - 1})
        for kept in (0.02, 0.5, 1.0):
            yield Sample("NonZero", (), (np.random.default_rng(0).uniform(0, 1, shape) < kept,))
    for rows, width in ((1, 16), (16, 100), (500, 10), (500, 50), (8000, 10)):
        yield Sample("TopK", ((rows, width),), (_ints(4),), {"axis": 1}, outputs=2)
        index = np.random.default_rng(0).integers(0, min(rows, width), (rows * width, 2))
        yield Sample("GatherND", ((rows, width),), (index,))
        yield Sample("GatherND", ((rows, width),), (index[:, :1],))
        yield Sample("GatherND", ((20, rows, 8),), (index[:190, :1] % 20,))
        yield Sample("GatherND", ((20, rows // 2 + 1, 16),), (index[:190, :1] % 20,))


def _moves() -> Iterator[Sample]:
    for shape, order in (((500, 50, 4, 16), (0, 2, 1, 3)), ((64, 20, 2, 8), (0, 2, 1, 3)), ((500, 50, 32), (0, 2, 1)),
                         ((500, 64), (1, 0)), ((64, 20, 16), (0, 2, 1)), ((500, 20, 16), (1, 0, 2)), ((16, 16), (1, 0)),
                         ((500, 20, 4), (0, 2, 1)), ((500, 50, 2, 32), (2, 0, 1, 3)),
                         ((500, 10, 2, 2), (0, 2, 1, 3)), ((64, 20, 8, 2), (0, 2, 1, 3)),
                         ((500, 10, 2, 8), (0, 3, 2, 1)), ((500, 8, 2, 16), (2, 1, 0, 3)),
                         ((50, 20, 30, 4), (2, 1, 0, 3)),
                         ((64, 10, 8, 4), (2, 0, 3, 1)), ((500, 20, 1, 16), (0, 2, 1, 3)), ((16, 64), (0, 1)),
                         ((16, 361, 16, 16), (0, 2, 3, 1)), ((64, 50, 512), (0, 2, 1)), ((500, 400), (1, 0)),
                         ((16, 100, 100, 2), (0, 2, 1, 3)),
                         ((500, 50, 32), (2, 1, 0)), ((1, 50, 4, 16), (0, 2, 1, 3))):  # fmt: skip
        yield Sample("Transpose", (shape,), (), {"perm": list(order)})
    for rows in (1, 16, 64, 500):
        for widths in ((16, 16), (64, 64, 64), (16,) * 10, (4,) * 12, (1,) * 20, (256, 256), (16,) * 60):
            yield Sample("Concat", tuple((rows, w) for w in widths), (), {"axis": 1})
        yield Sample("Concat", ((rows, 64, 4), (rows, 64, 5)), (), {"axis": 2})
        yield Sample("Concat", ((rows, 100, 16), (rows, 100, 16)), (), {"axis": 1})
        yield Sample("Concat", ((rows, 200, 16), (rows, 200, 16)), (), {"axis": 2})
        yield Sample("Concat", ((rows, 100, 1),) * 4, (), {"axis": 2})
        for width, begin, end in ((64, 0, 32), (400, 16, 32), (256, 0, 1), (20, 3, 4), (1900, 900, 930)):
            yield Sample("Slice", ((rows, width),), (_ints(begin), _ints(end), _ints(1)))
        yield Sample("Slice", ((rows, 50, 32),), (_ints(0), _ints(25), _ints(1)))
        yield Sample("Slice", ((rows, 100, 64),), (_ints(0), _ints(32), _ints(2)))
        yield Sample("Split", ((rows, 64),), (), {"axis": 1}, outputs=4)
        yield Sample("Split", ((rows, 20),), (), {"axis": 1}, outputs=20)
        yield Sample("Split", ((rows, 200, 32),), (), {"axis": 1}, outputs=4)
        for width in (1, 16, 64):
            yield Sample("ConstantOfShape", (), (_ints(rows, width),))
            yield Sample("Expand", ((1, width),), (_ints(rows, width),))
            yield Sample("Expand", ((1, 200, width),), (_ints(rows, 200, width),))
            yield Sample("Expand", ((rows, 1, width),), (_ints(rows, 20, width),))
            yield Sample("Expand", ((rows, width, 1),), (_ints(rows, width, 4),))
            for repeats in ((1, 1, 20), (1, 20, 1), (20, 1, 1)):
                yield Sample("Tile", ((rows, 1, width),), (_ints(*repeats),))
        for width in (1, 4, 16, 64):
            index = np.random.default_rng(0).integers(0, 10_000, (rows, 20))
            yield Sample("Gather", (), (_random(10_000, width), index))
            yield Sample("Gather", (), (_random(10_000, width), np.tile(index, (1, 10))))
            yield Sample("Gather", (), (_random(10_000, width), index[:, 0]))
        yield Sample("Gather", ((rows, 20, 16),), (_ints(*range(0, 20, 3)),), {"axis": 1})
        index = np.random.default_rng(0).integers(0, 50, (rows, 50))
        yield Sample("GatherElements", ((rows, 50),), (index,), {"axis": 1})
        yield Sample("Reshape", ((rows, 64),), (_ints(rows, 8, 8),))
        yield Sample("Unsqueeze", ((rows, 64),), (_ints(1),))


def _pools() -> Iterator[Sample]:
    for n in (16, 64, 500):
        for shape, kernel in (((n, 8, 20, 16), (2, 1)), ((n, 4, 50, 16), (3, 1)), ((n, 16, 50), (2,))):
            yield Sample("MaxPool", (shape,), (), {"kernel_shape": list(kernel), "strides": list(kernel)})
