"""What single operators do at N = 1 with operands that lack dimensions: as onnxruntime runs them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from mari_onnx.engine.lookahead.peek import peek
from mari_onnx.engine.lookahead.peek_axes import FAILS
from tests.engine.graphs import Draw, ort

Case = tuple[str, list[tuple[int, ...]], dict[str, list[int]], dict[str, Any], int]
"""Operator, shapes of its data as the new model keeps them, integer constants, attributes, outputs. In opset 17."""


def _shape(draw: Draw, low: int = 1, high: int = 4) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.sampled_from((1, 1, 2, 3)), min_size=low, max_size=high)))


def _axis(draw: Draw, rank: int) -> int:
    return draw(st.integers(-rank, rank - 1))


def _product(draw: Draw) -> Case:
    m, k, n = (draw(st.sampled_from((1, 2, 3))) for _ in range(3))
    if draw(st.booleans()):
        attrs = {"transA": draw(st.integers(0, 1)), "transB": draw(st.integers(0, 1))}
        bias = [draw(st.sampled_from([(n,), (1, n), (m, n), (m, 1)]))] if draw(st.booleans()) else []
        a, b = (k, m) if attrs["transA"] else (m, k), (n, k) if attrs["transB"] else (k, n)
        return "Gemm", [a, b, *bias], {}, attrs, 1
    lead = draw(st.sampled_from([(), (1,), (2,), (1, 2), (1, 1), (2, 1)]))
    other = draw(st.sampled_from([(), (), tuple(1 for _ in lead), lead]))
    return "MatMul", [(*lead, m, k), (*other, k, n)], {}, {}, 1


def _elementwise(draw: Draw) -> Case:
    x = _shape(draw)
    y = [d if draw(st.booleans()) else 1 for d in x][draw(st.integers(0, len(x))) :]
    op = draw(st.sampled_from(("Add", "Mul", "Max", "Relu", "PRelu")))
    return op, [x] if op == "Relu" else [x, tuple(y)], {}, {}, 1


def _moved(draw: Draw) -> Case:
    x = _shape(draw)
    op = draw(st.sampled_from(("Unsqueeze", "Squeeze", "Reshape", "Flatten")))
    if op == "Unsqueeze":
        return op, [x], {"axes": [_axis(draw, len(x) + 1)]}, {}, 1
    if op == "Squeeze":
        ones = [i - len(x) * draw(st.integers(0, 1)) for i, d in enumerate(x) if d == 1]
        return op, [x], {"axes": ones[:1]} if ones and draw(st.booleans()) else {}, {}, 1
    if op == "Reshape":
        target = [0 if draw(st.booleans()) else d for d in x]
        target[draw(st.integers(0, len(x) - 1))] = -1
        return op, [x], {"shape": draw(st.sampled_from([target, [*target, 1], [-1]]))}, {}, 1
    return op, [x], {}, {"axis": draw(st.integers(-len(x), len(x)))}, 1


def _along(draw: Draw) -> Case:
    x = _shape(draw)
    axis = _axis(draw, len(x))
    op = draw(st.sampled_from(("Concat", "Softmax", "LogSoftmax", "ReduceSum", "ReduceMax", "ArgMax", "Gather", "Slice",
                               "Split", "LayerNormalization")))  # fmt: skip
    keep = {"keepdims": draw(st.integers(0, 1))}
    if op == "Concat":
        parts = [tuple(draw(st.integers(1, 3)) if i == axis % len(x) else d for i, d in enumerate(x)) for _ in range(2)]
        return op, [x, *parts], {}, {"axis": axis}, 1
    if op == "ReduceSum":
        return op, [x], {"axes": [axis]}, keep, 1
    if op == "ReduceMax":
        return op, [x], {}, keep | {"axes": [axis]}, 1
    if op == "Gather":
        return op, [x], {"at": [0, 0]}, {"axis": axis}, 1
    if op == "Slice":
        return op, [x], {"starts": [0], "ends": [2], "axes": [axis]}, {}, 1
    if op == "Split":
        assume(x[axis] > 1)
        return op, [x], {"split": [1, x[axis] - 1]}, {"axis": axis}, 2
    if op == "LayerNormalization":
        return op, [x, x[axis:]], {}, {"axis": axis}, 1
    return op, [x], {}, {"axis": axis} | (keep if op == "ArgMax" else {}), 1


def _normalized(draw: Draw) -> Case:
    x = (1, draw(st.integers(1, 3)), *_shape(draw, 1, 2))
    return "BatchNormalization", [x[: draw(st.integers(2, len(x)))], *[(x[1],)] * 4], {}, {}, 1


@st.composite
def cases(draw: Draw) -> Case:
    return draw(st.sampled_from((_product, _elementwise, _moved, _along, _normalized)))(draw)


@given(cases(), st.data())
def test_an_operator_does_what_is_said_of_it(case: Case, data: st.DataObject) -> None:
    op, shapes, ints, attrs, outputs = case
    kept = [np.random.default_rng(i).random(s).astype(np.float32) + 0.5 for i, s in enumerate(shapes)]
    actual = []
    for array in kept:
        ones = [i for i, d in enumerate(array.shape) if d == 1]
        drop = data.draw(st.sampled_from([None, *ones])) if ones else None
        actual.append(array if drop is None else array.squeeze(drop))
    names = [f"x{i}" for i in range(len(kept))]
    constants = {name: np.asarray(values, np.int64) for name, values in ints.items()}
    outs = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, [*names, *constants], outs, **attrs)
    given_ = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    infos = [onnx.ValueInfoProto(name=n, type=helper.make_tensor_type_proto(1, None)) for n in names]
    results = [helper.make_tensor_value_info(o, 7 if op == "ArgMax" else 1, None) for o in outs]
    graph = helper.make_graph([node], "g", infos, results, given_)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    want = ort(model, dict(zip(names, kept, strict=True)))
    assume(want is not None)
    assert want is not None
    pairs = [(k.shape, s.shape) for k, s in zip(kept, actual, strict=True)]
    pairs += [(a.shape, a.shape) for a in constants.values()]
    said = peek(node, pairs, [w.shape for w in want], constants, 17)
    have = ort(model, dict(zip(names, actual, strict=True)))
    if said == FAILS:
        assert have is None
    elif said is not None:
        assert have is not None
        assert [h.shape for h in have] == said
        for h, w in zip(have, want, strict=True):
            np.testing.assert_allclose(h.reshape(-1), w.reshape(-1), rtol=1e-4)
