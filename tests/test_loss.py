"""What a model says about itself is in the output too, whatever the graph became."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mari_onnx
from mari_onnx.model.load import load
from mari_onnx.model.provenance import carry_over, differences
from mari_onnx.model.save import save
from tests import tiny

SIDES = {"user_x": "user", "item_x": "item"}


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def annotated() -> onnx.ModelProto:
    """A model with every note that ONNX has room for; `kept` comes out as a tensor of its own."""
    model = tiny.fc(user=256, item=64, hidden=128)
    graph = model.graph
    graph.node[1].output[0] = "kept"
    graph.node.append(helper.make_node("Relu", ["kept"], ["score"], "relu", doc_string="of the node"))
    graph.node[2].metadata_props.add(key="where", value="node")
    model.producer_name, model.producer_version, model.domain = "exporter", "2.1", "com.example"
    model.model_version, model.doc_string = 7, "of the model"
    model.metadata_props.add(key="trained", value="yesterday")
    graph.name, graph.doc_string = "ranker", "of the graph"
    graph.metadata_props.add(key="where", value="graph")
    for value, what in ((graph.input[0], "input"), (graph.output[0], "output")):
        value.doc_string = f"of the {what}"
        value.type.denotation = "TENSOR"
        value.metadata_props.add(key="where", value=what)
    for name in ("kept", "gone"):
        note = graph.quantization_annotation.add(tensor_name=name)
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    graph.value_info.add().CopyFrom(helper.make_tensor_value_info("kept", TensorProto.FLOAT, ["N", 128]))
    graph.value_info[0].doc_string = "of the tensor"
    return model


def test_everything_said_about_the_model_stays() -> None:
    source = annotated()
    done = mari_onnx.optimize(source, SIDES)
    assert done.changed
    made, graph = done.model, done.model.graph
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version"):
        assert getattr(made, field) == getattr(source, field)
    assert {e.key: e.value for e in made.metadata_props}["trained"] == "yesterday"
    assert (graph.name, graph.doc_string) == ("ranker", "of the graph")
    assert list(graph.metadata_props) == list(source.graph.metadata_props)
    for new, old in ((graph.input[0], source.graph.input[0]), (graph.output[0], source.graph.output[0])):
        assert (new.doc_string, new.type.denotation) == (old.doc_string, old.type.denotation)
        assert list(new.metadata_props) == list(old.metadata_props)
    assert graph.output[0] == source.graph.output[0]
    assert graph.node[-1].doc_string == "of the node"
    assert graph.node[-1].metadata_props[0].value == "node"
    assert [note.tensor_name for note in graph.quantization_annotation] == ["kept"]
    assert graph.quantization_annotation[0] == source.graph.quantization_annotation[0]
    assert list(graph.value_info) == list(source.graph.value_info)
    assert list(made.opset_import) == list(source.opset_import)


def test_a_rewrite_that_forgot_it_all_gets_it_back() -> None:
    source = annotated()
    bare = copied(source)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "metadata_props"):
        bare.ClearField(field)
    for field in ("name", "doc_string", "metadata_props", "quantization_annotation"):
        bare.graph.ClearField(field)
    for value in (*bare.graph.input, *bare.graph.output):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
        value.type.ClearField("denotation")
    carry_over(source, bare)
    del source.graph.quantization_annotation[1]  # of a tensor that is in neither
    assert bare == source


def spoil_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.insert(0, model.graph.input.pop())


def spoil_names(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "other"


def spoil_types(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def spoil_opsets(model: onnx.ModelProto) -> None:
    model.opset_import[0].version -= 1


def spoil_functions(model: onnx.ModelProto) -> None:
    model.functions[0].overload = "another"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_inputs, "inputs were"),
        (spoil_names, "outputs were"),
        (spoil_types, "outputs were"),
        (spoil_opsets, "operator set ai.onnx was 20, is 19"),
        (spoil_functions, "function local.Layer is called and gone"),
    ],
)
def test_what_a_caller_would_notice_is_noticed(spoil, words: str) -> None:
    source = tiny.fc(user=256, item=64, hidden=128)
    body = [helper.make_node("Relu", ["a"], ["b"])]
    imports = [helper.make_opsetid("", 20)]
    source.functions.append(helper.make_function("local", "Layer", ["a"], ["b"], body, imports, overload="one"))
    source.graph.node[1].output[0] = "t"
    source.graph.node.append(helper.make_node("Layer", ["t"], ["score"], "call", domain="local", overload="one"))
    source.opset_import.append(helper.make_opsetid("local", 1))
    output = copied(source)
    assert differences(source, output) == []
    spoil(output)
    (found,) = differences(source, output)
    assert words in found


def test_a_rewrite_that_loses_something_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mari_onnx import engine

    real = engine.rewrite

    def losing(*args):
        result = real(*args)
        result.model = copied(result.model)
        result.model.graph.output[0].name = "other"
        return result

    monkeypatch.setattr(engine, "rewrite", losing)
    with pytest.raises(RuntimeError, match="changed the model's interface"):
        mari_onnx.optimize(tiny.fc(user=256, item=64, hidden=128), SIDES, check=False)


NARROW = ["FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT8E4M3FNUZ", "FLOAT8E5M2FNUZ", "FLOAT8E8M0", "FLOAT4E2M1",
          "INT4", "UINT4", "INT2", "UINT2", "BFLOAT16", "FLOAT16"]  # fmt: skip


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("name", NARROW)
def test_narrow_types_come_out_bit_for_bit(name: str, external: bool, tmp_path: Path) -> None:
    """Weights that the rewrite has no rule for: through the engine, a file, and the tool's own reading."""
    kind = getattr(TensorProto, name)
    source = tiny.fc(user=256, item=64, hidden=128)
    bits = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "BFLOAT16": 16, "FLOAT16": 16}.get(name, 8)
    raw = np.random.default_rng(0).integers(0, 120, 4096 * bits // 8).astype(np.uint8).tobytes()
    weight = source.graph.initializer.add(name="narrow", data_type=kind, dims=[4096], raw_data=raw)
    source.graph.node.append(helper.make_node("Cast", ["narrow"], ["wide"], "cast", to=TensorProto.FLOAT))
    source.graph.output.append(helper.make_tensor_value_info("wide", TensorProto.FLOAT, [4096]))
    source.graph.output.append(helper.make_tensor_value_info("narrow", kind, [4096]))
    source.opset_import[0].version = 25
    source.ir_version = 13
    save(source, tmp_path / "in.onnx", external=external)
    done = mari_onnx.optimize(tmp_path / "in.onnx", SIDES, check=False)
    assert done.changed
    done.save(tmp_path / "out.onnx")
    found = load(tmp_path / "out.onnx")
    (kept,) = [each for each in found.graph.initializer if each.name == "narrow"]
    assert kept == weight
    assert [each.type.tensor_type.elem_type for each in found.graph.output] == [1, 1, kind]


def test_types_of_values_that_are_kept() -> None:
    """float8 and int4 as the output of a node: quantized weights and their way back."""
    for kind, dtype in ((TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn), (TensorProto.INT4, ml_dtypes.int4)):
        source = tiny.fc(user=256, item=64, hidden=128)
        source.opset_import[0].version = 21
        source.graph.node[1].output[0] = "h"
        source.graph.initializer.append(numpy_helper.from_array(np.float32(0.05), "scale"))
        zero = helper.make_tensor("zero", kind, [], np.zeros(1, dtype).tobytes(), raw=True)
        source.graph.initializer.append(zero)
        source.graph.node.append(helper.make_node("QuantizeLinear", ["h", "scale", "zero"], ["q"], "quantize"))
        source.graph.node.append(helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["score"], "back"))
        source.graph.output.append(helper.make_tensor_value_info("q", kind, ["N", 128]))
        done = mari_onnx.optimize(source, SIDES, check=False)
        assert done.changed
        assert done.model.graph.output[1].type.tensor_type.elem_type == kind
        onnx.checker.check_model(done.model, full_check=True)
