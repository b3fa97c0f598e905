"""What the page shows: modules, groups, and work by layer, without a browser."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import mari_onnx
from benchmarks.page import ranker
from mari_onnx.report.fold import FEW, MOST, Folder, repeat
from mari_onnx.report.groups import Group
from mari_onnx.report.layers import RATES
from mari_onnx.report.scopes import NOTED, common, relative, scope, scopes
from mari_onnx.report.view import View, view

MODELS = Path(__file__).parents[1] / "models"
SIDES = {**dict.fromkeys(("user_id", "age", "city", "history"), "user")}
SIDES |= dict.fromkeys(("item_id", "brand", "price_level"), "item")


def node(name: str = "", noted: str = "") -> onnx.NodeProto:
    made = helper.make_node("Relu", ["x"], ["y"], name)
    if noted:
        made.metadata_props.add(key=NOTED, value=noted)
    return made


def folded(places, tokens=None, classes=None, reads=()) -> Group:
    ops = [str(token) for token in tokens] if tokens else ["Relu"] * len(places)
    return Folder(tokens or list(range(len(places))), ops, [1.0] * len(places), classes or ops).fold(places, reads)


def shown(model: onnx.ModelProto | Path, sides: dict[str, str] | None = None) -> tuple[mari_onnx.Optimized, View]:
    done = mari_onnx.optimize(model, sides, check=False)
    return done, view(done.source.model, done.rewrite, done.report)


# ---- modules
@pytest.mark.parametrize(
    ("name", "noted", "expected"),
    [
        ("", "['', 'model', 'model.layers.3', 'linear']", ("model", "layers", "3")),
        ("/layers.3/attn/MatMul", "", ("layers", "3", "attn")),
        ("/mlp/mlp.0/Gemm", "", ("mlp", "0")),
        ("model/dense/MatMul;model/dense/BiasAdd", "", ("model", "dense")),
        ("/Concat", "", ()),
        ("n17", "", None),
        ("", "['_empty_nn_module_stack_from_metadata_hook', 'sym_size']", None),
        ("", "no list", None),
    ],
)
def test_modules_are_read_from_metadata_and_names(name, noted, expected):
    assert scope(node(name, noted)) == expected


def test_a_node_without_a_module_goes_to_the_module_around_its_readers():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], "n1"),
        helper.make_node("Shape", ["x"], ["t"], "n2"),
        helper.make_node("Reshape", ["x", "s"], ["a"], "/layers.0/attn/Reshape"),
        helper.make_node("Add", ["a", "t"], ["b"], "/layers.0/Add"),
        helper.make_node("Reshape", ["b", "s"], ["y"], "/layers.0/mlp/Reshape"),
    ]
    assert scopes(nodes)[:2] == [("layers", "0"), ("layers", "0")]


def test_names_are_told_within_what_is_around_them():
    assert common([("a", "b", "c"), ("a", "b"), ("a", "b", "d")]) == ("a", "b")
    assert common([]) == ()
    assert relative(("model", "layers", "3", "attn"), ("model", "layers", "3")) == "attn"
    assert relative(("model", "layers", "3"), ("model", "layers")) == "layers.3"


# ---- folding
@given(st.lists(st.integers(0, 3), max_size=120), st.data())
def test_groups_are_small_and_hold_every_node_once(tokens, data):
    names = st.lists(st.sampled_from("abc"), max_size=3).map(tuple)
    places = [data.draw(names) for _ in tokens] if data.draw(st.booleans()) else [()] * len(tokens)
    tree = folded(places, tokens)
    assert sorted(tree.nodes()) == list(range(len(tokens)))
    for group in tree.groups():
        assert len(group.items) <= MOST
        assert group is tree or len(group.items) > 1


@given(st.lists(st.integers(0, 2), max_size=40))
def test_a_repeat_is_one(tokens):
    found = repeat(tokens)
    if found is not None:
        start, period, times = found
        rows = [tuple(tokens[start + k * period :][:period]) for k in range(times)]
        assert times > 1
        assert len(set(rows)) == 1
        assert len(rows[-1]) == period


def test_the_longest_repeat_of_the_shortest_period_is_found():
    block = [1, 2, 3, 2]
    assert repeat([9, 8, *block * 5, 7]) == (2, 4, 5)
    assert repeat([4] * 9 + [1, 2] * 3) == (0, 1, 9)
    assert repeat([1, 2, 3, 4]) is None
    assert repeat([1, 1, 1, 2, 2]) is None  # too few to fold
    assert repeat([]) is None


def test_layers_without_names_are_folded_by_structure():
    tree = folded([()] * 242, ["Concat", *["MatMul", "Add", "Relu", "Add"] * 60, "Sigmoid"])
    (alike,) = [group for group in tree.groups() if group.kind == "alike"]
    assert (alike.times, len(list(alike.nodes()))) == (60, 240)
    assert alike.name.startswith("4 nodes: ")
    assert len(tree.items) == 3


def test_layers_with_names_are_folded_and_named():
    parts = ("attn", "attn", "mlp")
    places = [("embed",)] * 2 + [("model", "layers", str(k), part) for k in range(24) for part in parts]
    tree = folded(places, ["Gather"] * 2 + ["MatMul", "Softmax", "Gemm"] * 24)
    (alike,) = [group for group in tree.groups() if group.kind == "alike"]
    assert (alike.name, alike.times) == ("model.layers.0–23", 24)
    assert [each.name for each in alike.items if isinstance(each, Group)][:2] == ["layers.0", "layers.1"]


def test_alike_modules_with_other_names_are_told_by_the_first_and_the_last():
    places = [("tables", name) for name in ("age", "city", "user", "zip") * 5 for _ in range(2)]
    names = [f"{name}{k // 8}" for k, (_, name) in enumerate(places)]
    places = [("tables", name) for name in names]
    tree = folded(places, ["Gather", "Cast"] * 20)
    assert (tree.kind, tree.times) == ("alike", 20)
    assert tree.name == "age0 … zip4"


def test_what_is_not_alike_is_not_folded_as_if_it_were():
    tree = folded([()] * (FEW + 2))
    assert all(isinstance(item, int) for item in tree.items)


def test_glue_between_modules_is_folded_by_class():
    places = [(), ("a",)] * 3 + [()] * 30 + [("b",)] * 3 + [()] * 3
    tree = folded(places, list(range(42)), classes=["user"] * 6 + ["user", "item"] * 15 + ["user"] * 6)
    names = [item.kind if isinstance(item, Group) else item for item in tree.items]
    assert names == [0, "module", "part", "part", "module", "part"]
    first = tree.items[2]
    assert sorted(first.nodes()) == [2, 4, *range(6, 36, 2)]


def test_lists_of_modules_that_alternate_are_no_groups():
    places = [("mlp", kind, str(k)) for k in range(4) for kind in ("linears", "activations") for _ in range(2)]
    chain = [[k - 1] if k else [] for k in range(len(places))]
    names = [each.name for each in folded(places, reads=chain).groups()]
    assert "linears.0" in names
    assert "linears" not in names
    beside = [[] for _ in places]
    assert "linears" in [each.name for each in folded(places, reads=beside).groups()]


# ---- work by layer
@pytest.mark.parametrize("name", ["mmoe", "hstu.torchscript", "rankmixer", "packed_pnn"])
def test_layers_add_up_to_the_whole(name):
    done, found = shown(MODELS / f"{name}.onnx")
    layers = found.data["layers"]
    for side, totals in (("before", done.report.before), ("after", done.report.after)):
        if found.data[side] is None:
            continue
        flops = np.sum([layer[side]["flops"] for layer in layers], axis=0)
        assert flops.sum() == pytest.approx(totals.flops, abs=0.06 * len(layers))
        by_node = [0.0] * len(RATES)
        for rate, cost in zip(found.data[side]["rates"], found.data[side]["flops"], strict=True):
            by_node[int(rate)] += cost
        assert flops == pytest.approx(by_node, abs=0.06 * len(found.data[side]["names"]))
    after = done.report.after
    if found.data["after"] is not None:
        once = sum(layer["after"]["flops"][RATES.index("request")] for layer in layers)
        assert once == pytest.approx(after.once_flops, abs=0.06 * len(layers))
    assert len(layers) <= 20
    json.dumps(found.data)


def test_layers_are_the_modules_and_lead_to_their_groups():
    _, found = shown(MODELS / "mmoe.onnx")
    names = [layer["name"] for layer in found.data["layers"]]
    assert [name for name in names if name.startswith("experts")] == [f"experts.{k}" for k in range(4)]
    for layer in found.data["layers"]:
        if layer["group"]:
            assert found.data["groups"][layer["group"]]["title"] == layer["name"]


@pytest.fixture(scope="module")
def repeated() -> View:
    """13 layers of the user's history, and 13 of user and candidate."""
    return shown(ranker(790), SIDES)[1]


def test_a_model_of_repeated_layers_is_two_lines(repeated):
    lines = {layer["name"]: layer for layer in repeated.data["layers"]}
    history, mixer = lines["13 × history.layers.0–12"], lines["13 × mixer.layers.0–12"]
    request, candidate = RATES.index("request"), RATES.index("candidate")
    assert history["before"]["flops"][candidate] == 0
    assert history["after"]["flops"][request] == pytest.approx(sum(history["after"]["flops"]))
    assert sum(history["after"]["flops"]) < 0.01 * sum(history["before"]["flops"])
    assert mixer["before"]["flops"][candidate] > 0.8 * sum(mixer["before"]["flops"])


def test_the_output_has_the_groups_of_its_source(repeated):
    before, after = repeated.data["before"], repeated.data["after"]
    shared = {0, *(key for key, _ in before["parents"])}

    def around(told, node):
        parents, found, at = dict(told["parents"]), set(), told["around"][node]
        while at is not None:
            found.add(at)
            at = parents.get(at)
        return found

    for node, source in enumerate(after["sources"]):
        if source >= 0:
            assert around(after, node) & shared <= around(before, source)
    assert len({after["around"][node] for node in range(len(after["names"]))}) > 20


def test_what_is_not_changed_has_one_graph():
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    done, found = shown(model, {"x": "item"})
    assert found.data["after"] is None
    assert found.seconds is not None
    assert found.data["before"]["rates"] == str(RATES.index("item"))
    assert "Nothing to lift" in done.html()


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
@pytest.mark.slow
def test_every_sample_has_a_page(path):
    done, found = shown(path)
    for side in ("before", "after"):
        told = found.data[side]
        if told is not None:
            assert len(told["around"]) == len(told["names"]) == len(told["rates"])
            assert all(0 <= key < len(found.data["groups"]) for key in told["around"])
    assert done.html().startswith("<!doctype html>")
