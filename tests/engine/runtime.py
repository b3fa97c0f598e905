"""Graphs of operators that onnx's reference evaluator lacks: rewritten, and compared by onnxruntime's own kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper, parser

from mari_onnx.engine import Options, Rewrite, rewrite
from mari_onnx.report.residual import measure
from mari_onnx.sides.resolve import Sides
from tests.engine.checks import unweighed

COUNTS = (1, 3, 7)


def model(text: str, opset: int = 17, ml: int = 3, **weights: np.ndarray) -> onnx.ModelProto:
    """A graph in text, its weights by name."""
    opsets = f'"" : {opset}, "com.microsoft" : 1, "ai.onnx.ml" : {ml}'
    made = parser.parse_model(f"<ir_version: 8, opset_import: [{opsets}]> g {text}")
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    for output in made.graph.output:
        output.type.tensor_type.ClearField("shape")
    return made


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng((len(shape), *shape)).standard_normal(shape) * scale).astype(np.float32)


def sides(source: onnx.ModelProto) -> Sides:
    """The user's inputs begin with u, all others are the item's."""
    return Sides({i.name: "user" if i.name[0] == "u" else "item" for i in source.graph.input})


def feeds(source: onnx.ModelProto, n: int, once: bool = False) -> dict[str, np.ndarray]:
    """Inputs for n candidates; ``once``: one row of the user's."""
    found = {}
    for k, info in enumerate(source.graph.input):
        rng = np.random.default_rng((k, n))
        dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        dims = [d.dim_value or {"N": n, "T": 4}[d.dim_param] for d in info.type.tensor_type.shape.dim]
        rows = [i for i, d in enumerate(info.type.tensor_type.shape.dim) if d.dim_param == "N"]
        if info.name[0] == "u" and rows:
            dims[rows[0]] = 1
        if np.issubdtype(dtype, np.floating):
            value = np.asarray(rng.standard_normal(dims)).astype(dtype)
        else:
            value = np.asarray(rng.integers(0, 2, dims)).astype(dtype)
        if info.name[0] == "u" and rows and not once:
            value = np.repeat(value, n, axis=rows[0])
        found[info.name] = value
    return found


def run(made: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    return session.run(None, {k: v for k, v in inputs.items() if k in wanted})


def check(source: onnx.ModelProto, counts: Sequence[int] = COUNTS, tolerance: float = 2e-5) -> Rewrite:
    """Rewrite, and compare with the source at each N; kept though it saves nothing."""
    before = source.SerializeToString(deterministic=True)
    with unweighed():
        result = rewrite(source, sides(source), Options())
    assert source.SerializeToString(deterministic=True) == before, "the source was written to"
    for n in counts:
        want, have = run(source, feeds(source, n)), run(result.model, feeds(source, n, once=result.changed))
        for a, b in zip(want, have, strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            if a.dtype.kind != "f":
                assert np.array_equal(a, b)
                continue
            scale = max(1.0, float(np.abs(a[np.isfinite(a)]).max(initial=0)))
            np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance * scale)
    return result


def lifted(source: onnx.ModelProto) -> Rewrite:
    """Checked, and nothing of the user's is computed again for each candidate."""
    result = check(source)
    assert result.changed, result.reason
    assert measure(source, sides(source), n=13).share > 0.05
    assert measure(result.model, sides(source), n=13).share < 1e-3
    return result


def ops(made: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in made.graph.node]


def unchanged(source: onnx.ModelProto) -> Rewrite:
    """What saves nothing is given back as it is."""
    check(source)
    result = rewrite(source, sides(source), Options())
    assert not result.changed
    assert result.model is source
    return result
