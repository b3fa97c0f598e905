"""Models of an operator set older than 11."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser

import mari_onnx
from mari_onnx.cli.main import run
from mari_onnx.model.upgrade import TARGET, upgraded

SIDES = {"u": "user", "x": "item"}


def old(opset: int = 9) -> onnx.ModelProto:
    """A Slice with its positions as attributes, a Concat and a product."""
    text = (
        "(float[N,6] u, float[N,3] x) => (float[N,4] y)"
        " { s = Slice<starts=[1], ends=[5], axes=[1]>(u) c = Concat<axis=1>(s, x) h = MatMul(c, W) y = Relu(h) }"
    )
    model = parser.parse_model(f'<ir_version: 4, opset_import: ["" : {opset}]> g {text}')
    weights = np.random.default_rng(0).standard_normal((7, 4), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "W"))
    return model


def test_an_old_operator_set_is_converted_and_the_summary_says_so(tmp_path: Path, capsys, monkeypatch) -> None:
    onnx.save(old(), tmp_path / "in.onnx")
    report = tmp_path / "report.json"
    monkeypatch.chdir(tmp_path)
    given = ["in.onnx", "out.onnx", "--user", "u", "--item", "x", "--report", "report.json"]
    assert run(["optimize", *given]) == 0
    said = capsys.readouterr()
    assert f"operator set 9 was converted to {TARGET}" in said.out + said.err
    (note,) = json.loads(report.read_text())["notes"]
    assert "onnx's converter" in note
    written = onnx.load(tmp_path / "out.onnx")
    assert [o.version for o in written.opset_import] == [TARGET]


def test_the_outputs_are_those_of_the_source() -> None:
    source = old()
    done = mari_onnx.optimize(source, SIDES)
    assert done.changed
    assert source.opset_import[0].version == 9, "the source was written to"
    rng = np.random.default_rng(1)
    u, x = rng.standard_normal((1, 6), np.float32), rng.standard_normal((5, 3), np.float32)
    want, have = (
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for m, feed in ((source, {"u": np.repeat(u, 5, axis=0), "x": x}), (done.model, {"u": u, "x": x}))
    )
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)


def test_functions_are_inlined_before_the_converter_drops_them() -> None:
    model = old()
    model.ir_version = 8
    model.opset_import.append(helper.make_opsetid("own", 1))
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "Act", ["a"], ["b"], body, [helper.make_opsetid("", 9)]))
    model.graph.node[-1].CopyFrom(helper.make_node("Act", ["h"], ["y"], domain="own"))
    made = upgraded(model)
    assert made.failed is None
    assert [n.op_type for n in made.model.graph.node][-1] == "Relu"


def test_what_the_converter_cannot_do_is_the_reason() -> None:
    model = old()
    model.graph.node[-1].op_type = "Pad"  # of the pads that it needs there are none
    made = upgraded(model)
    assert made.model is model
    assert "onnx's converter cannot bring operator set 9 to 13" in (made.failed or "")


@pytest.mark.parametrize("op", ["Hardmax", "Resize", "Upsample"])
def test_what_the_converter_would_change_is_the_reason(op: str) -> None:
    """Hardmax flattened rows before opset 13, Resize knew no half pixels before 11; the converter leaves both."""
    model = old(10)
    model.graph.node[-1].op_type = op
    made = upgraded(model)
    assert made.model is model
    assert f"it would change what {op} means" in (made.failed or "")


def test_a_model_that_is_new_enough_is_left_alone() -> None:
    model = old(11)
    assert upgraded(model).model is model
    assert upgraded(model).notes == ()


def weights_as_inputs(ir_version: int, some: bool = False) -> onnx.ModelProto:
    """An item beside a user, in front of two products whose weights are inputs; `some`: one of them is not."""
    text = "(float[N,6] u, float[N,3] x) => (float[N,1] y)"
    text += " { c = Concat<axis=1>(u, x) h = MatMul(c, W) y = MatMul(h, V) }"
    model = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : 17]> g {text}')
    rng = np.random.default_rng(0)
    for name, shape in (("W", (9, 64)), ("V", (64, 1))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
        if not (some and name == "V"):
            model.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape)))
    return model


@pytest.mark.parametrize("ir_version", [3, 8])
def test_weights_that_are_inputs_become_plain_weights(ir_version: int, tmp_path: Path, capsys) -> None:
    source = weights_as_inputs(ir_version)
    onnx.save(source, tmp_path / "in.onnx")
    paths = [str(tmp_path / name) for name in ("in.onnx", "out.onnx")]
    assert run(["optimize", *paths, "--user", "u", "--item", "x"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 weights that are inputs of the file are no inputs of the output" in said
    made = onnx.load(paths[1])
    onnx.checker.check_model(made)
    assert [i.name for i in made.graph.input] == ["u", "x"]
    assert all(n.op_type != "Slice" for n in made.graph.node), "weights are cut when the model is written"
    rng = np.random.default_rng(1)
    u, x = rng.standard_normal((1, 6), np.float32), rng.standard_normal((5, 3), np.float32)
    session = onnxruntime.InferenceSession(paths[1], providers=["CPUExecutionProvider"])
    (want,) = onnxruntime.InferenceSession(paths[0]).run(None, {"u": np.repeat(u, 5, axis=0), "x": x})
    np.testing.assert_allclose(session.run(None, {"u": u, "x": x})[0], want, rtol=1e-4, atol=1e-5)
    with pytest.raises(Exception, match="Invalid input name: W"):
        session.run(None, {"u": u, "x": x, "W": np.zeros((9, 64), np.float32)})
    assert run(["check", *paths]) == 0
    np.savez(tmp_path / "r.npz", u=u, x=x, W=np.zeros((9, 64), np.float32))
    assert run(["check", *paths, "--data", str(tmp_path / "r.npz")]) == 2
    assert "no input 'W'" in capsys.readouterr().err


def test_a_weight_that_alone_may_be_fed_stays_an_input() -> None:
    source = weights_as_inputs(8, some=True)
    assert upgraded(source).model is source
    done = mari_onnx.optimize(source, SIDES)
    assert "W" in {i.name for i in done.model.graph.input}
    assert upgraded(weights_as_inputs(3, some=True)).model.graph.input[-1].name == "x"


def weights_of(**shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(2)
    found = {name: rng.uniform(0.1, 1.0, shape).astype(np.float32) for name, shape in shapes.items()}
    return [numpy_helper.from_array(value, name) for name, value in found.items()]


NORM = weights_of(a=(32,), b=(32,), m=(32,), v=(32,))
ROWS = [numpy_helper.from_array(np.array([-1, 4, 8]), "rows")]
FIVE = [numpy_helper.from_array(np.array([5]), "five")]
OLD_FORMS = {
    "Slice with attributes": (7, "f = Slice<axes=[1], starts=[1], ends=[10]>(u)", [], 9),
    "Clip with attributes": (7, "f = Clip<min=-0.5, max=0.5>(u)", [], 32),
    "Clip with one bound": (7, "f = Clip<max=0.5>(u)", [], 32),
    "Pad with attributes": (7, 'f = Pad<pads=[0, 1, 0, 2], mode="constant", value=0.5>(u)', [], 35),
    "Pad by reflection": (7, 'f = Pad<pads=[0, 1, 0, 2], mode="reflect">(u)', [], 35),
    "Softmax of all behind axis 1": (7, "t = Reshape(u, rows) s = Softmax<axis=1>(t) f = Flatten(s)", ROWS, 32),
    "LogSoftmax": (9, "f = LogSoftmax(u)", [], 32),
    "BatchNormalization 7": (7, "f = BatchNormalization<epsilon=0.001>(u, a, b, m, v)", NORM, 32),
    "BatchNormalization 9": (9, "f = BatchNormalization(u, a, b, m, v)", NORM, 32),
    "Dropout": (7, "f = Dropout<ratio=0.5>(u)", [], 32),
    "Dropout with a mask": (10, "f, mask = Dropout<ratio=0.5>(u)", [], 32),
    "TopK with an attribute": (7, "f, i = TopK<k=5>(u)", [], 5),
    "TopK with an input": (10, "f, i = TopK(u, five)", FIVE, 5),
}


@pytest.mark.parametrize("form", OLD_FORMS)
def test_old_forms_of_operators_keep_their_meaning(form: str) -> None:
    opset, nodes, weights, wide = OLD_FORMS[form]
    text = "(float[N,32] u, float[N,4] x) => (float[N,1] y) {" + nodes
    text += " c = Concat<axis=1>(f, x) h = MatMul(c, W) r = Relu(h) y = MatMul(r, V) }"
    source = parser.parse_model(f'<ir_version: 4, opset_import: ["" : {opset}]> g {text}')
    source.graph.initializer.extend([*weights, *weights_of(W=(wide + 4, 64), V=(64, 1))])
    done = mari_onnx.optimize(source, SIDES)
    assert done.changed
    assert [f"operator set {opset} was converted to {TARGET}" in note for note in done.report.notes].count(True) == 1
    rng = np.random.default_rng(1)
    u, x = rng.standard_normal((1, 32), np.float32), rng.standard_normal((5, 4), np.float32)
    (want,) = onnxruntime.InferenceSession(source.SerializeToString()).run(None, {"u": np.repeat(u, 5, axis=0), "x": x})
    (have,) = onnxruntime.InferenceSession(done.model.SerializeToString()).run(None, {"u": u, "x": x})
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)
