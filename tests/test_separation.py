"""What separating user and candidate would save: counts by hand on small graphs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import mari_onnx
from benchmarks.demo.model import sides_of
from mari_onnx.cli.main import run
from mari_onnx.engine import Options, rewrite
from mari_onnx.errors import UsageError
from mari_onnx.separation import Separation, savings
from mari_onnx.separation.hypothetical import separated
from mari_onnx.separation.mixes import Mix
from mari_onnx.sides.resolve import Sides
from tests.engine.graphs import Graph

MODELS = Path(__file__).parents[1] / "models"
D, H, N = 8, 64, 1000


def mixed(layers: int = 1, users: int = 3, items: int = 1) -> Graph:
    """Tokens [N, users + items, D]; each layer adds to each token some of all others, then has D x H x D weights."""
    g = Graph(18, np.float32)
    total = users + items
    h = g.Concat(g.user(users, D), g.item(items, D), axis=1)
    for _ in range(layers):
        h = g.Add(h, g.MatMul(g.weight(total, total), h))
        h = g.MatMul(g.Relu(g.MatMul(g.Relu(h), g.weight(D, H))), g.weight(H, D))
    return g.output(g.reduce("Sum", h, [1, 2], 0))


def looked_at(g: Graph) -> Separation:
    return savings(g.model(), g.sides, Options(N))


def test_a_layer_is_counted_as_by_hand() -> None:
    """Without separation a candidate takes the feed-forward layer for four tokens, with it for its own alone."""
    found = looked_at(mixed())
    (layer,) = found.layers
    token = (2 * D + D) + D + 2 * D * H + H + 2 * H * D + D  # what it gets of the item, Relu, up, Relu, down, sum
    assert layer.saved.flops / N == pytest.approx(3 * token, rel=0.02)
    assert layer.mixes[-1].op == "Add"
    assert layer.mixes[-1].positions == (0, 1, 2)
    assert found.now.flops / N == pytest.approx(4 * token, rel=0.03)
    assert layer.saved.seconds > 0


def test_layers_add_up_and_each_takes_those_before_it_for_separated() -> None:
    found = looked_at(mixed(3))
    assert len(found.layers) == 3
    assert found.layers[0].before == found.now
    for one, two in zip(found.layers, found.layers[1:], strict=False):
        assert one.after == two.before
    saved = [layer.saved.flops for layer in found.layers]
    assert max(saved) < 1.2 * min(saved)
    assert found.layers[-1].after.flops < 0.3 * found.now.flops
    assert [layer.saved.flops for layer in found.ranked] == sorted(saved, reverse=True)


def test_columns_that_stand_between_those_of_items_are_separated_too() -> None:
    """A cross layer over interleaved columns: x0 * (W x + b) + x."""
    g = Graph(18, np.float32)
    parts = [g.user(12), g.item(2), g.user(12), g.item(2)]
    x0 = x = g.Concat(*parts, axis=1)
    for _ in range(2):
        x = g.Add(g.Mul(x0, g.Add(g.MatMul(x, g.weight(28, 28)), g.weight(28))), x)
    found = looked_at(g.output(g.Relu(g.MatMul(x, g.weight(28, 1)))))
    assert [layer.mixes[-1].op for layer in found.layers] == ["Mul", "Mul"]
    own = (*range(12), *range(14, 26))
    assert [layer.mixes[-1].positions for layer in found.layers] == [own, own]
    # of an item's column: a weight for each of the items' 4, of the user's alone 24 once; the sum, the product, the sum
    by_hand = 2 * 4 * (2 * 4 + 3) + 2 * 4 + 2
    assert found.layers[-1].after.flops / N == pytest.approx(by_hand, rel=0.1)


@pytest.mark.parametrize("residual", [False, True])
def test_a_history_of_free_length_counts_as_fifty_events(residual: bool) -> None:
    """Attention of [history | candidate] to itself: the events are the user's."""
    g = Graph(18, np.float32)
    h = g.Concat(g.user("T", D), g.item(1, D), axis=1)
    q, k, v = (g.MatMul(h, g.weight(D, D)) for _ in range(3))
    weights = g.Softmax(g.Mul(g.MatMul(q, g.Transpose(k, perm=[0, 2, 1])), g.const(np.array(0.5))), axis=-1)
    mixed = g.MatMul(weights, v)
    h = g.Add(h, mixed) if residual else mixed
    h = g.MatMul(g.Relu(g.MatMul(h, g.weight(D, H))), g.weight(H, D))
    found = looked_at(g.output(g.reduce("Mean", h, [1], 0)))
    (layer,) = found.layers
    assert layer.name == next(node.name for node in g.nodes if node.output[0] == mixed)
    assert layer.mixes[-1].positions == tuple(range(50))
    assert layer.after.flops < 0.1 * layer.before.flops


@pytest.mark.parametrize("layers", [1, 2])
def test_what_is_counted_is_the_source_but_for_what_the_user_reads(layers: int) -> None:
    """Tokens of the user are the same whatever the candidate is; where it is 0, all is as in the source."""
    g = mixed(layers)
    source = g.model()
    adds = [node for node in source.graph.node if node.op_type == "Add"]
    apart = [Mix(node.name, "Add", node.output[0], 1, (0, 1, 2), 4) for node in adds]
    made = onnx.ModelProto()
    made.CopyFrom(source)
    made.graph.CopyFrom(separated(source.graph, g.sides, apart, dict.fromkeys(["x1", *(m.tensor for m in apart)], 1)))
    last = adds[-1].output[0]
    for model in (source, made):
        model.graph.output.append(onnx.ValueInfoProto(name=last))
    one, two = g.feeds(5), g.feeds(5, request=1)
    two["u0"] = one["u0"]
    before, after = ReferenceEvaluator(source), ReferenceEvaluator(made)
    (_, a), (_, b) = after.run(None, one), after.run(None, two)
    np.testing.assert_array_equal(a[:, :3], b[:, :3])
    assert np.abs(a[:, 3] - b[:, 3]).max() > 0.1
    if layers == 1:  # the token of the item reads what it did
        np.testing.assert_allclose(a[:, 3], before.run(None, one)[1][:, 3], rtol=1e-5)
    one["x1"] = np.zeros_like(one["x1"])
    want, got = before.run(None, one)[1], after.run(None, one)[1]
    if layers == 1:
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_columns_of_a_packed_input_and_doubles() -> None:
    """Columns of both sides in one input: the user's stay the user's where the item's are taken for 0."""
    g = Graph(18, np.float64)
    x0 = g.packed(user=[0, 1, 2, 3, 6, 7], item=[4, 5])
    x = g.Mul(x0, g.Add(g.MatMul(x0, g.weight(8, 8)), g.weight(8)))
    g.output(g.MatMul(g.Relu(x), g.weight(8, 1)))
    found = looked_at(g)
    (layer,) = found.layers
    assert layer.mixes[-1].positions == (0, 1, 2, 3, 6, 7)
    # two columns of an item: two weights each, the user's sum, the product, Relu; the score
    assert layer.after.flops / N == pytest.approx(2 * (2 * 2 + 1 + 1 + 1) + 2 * 2 + 1, rel=0.1)
    model = g.model()
    model.graph.CopyFrom(separated(model.graph, g.sides, layer.mixes, {"p0": 11, layer.mixes[-1].tensor: 11}))
    model.graph.output.append(onnx.ValueInfoProto(name=layer.mixes[-1].tensor))
    one, two = g.feeds(5), g.feeds(5, request=1)
    two["p0"][:, [0, 1, 2, 3, 6, 7]] = one["p0"][:, [0, 1, 2, 3, 6, 7]]
    a, b = (ReferenceEvaluator(model).run(None, each)[1] for each in (one, two))
    np.testing.assert_array_equal(a[:, [0, 1, 2, 3, 6, 7]], b[:, [0, 1, 2, 3, 6, 7]])
    assert np.abs(a[:, 4:6] - b[:, 4:6]).max() > 0.01
    assert np.abs(a[:, 0]).max() > 0.01


def nothing() -> list[tuple[str, Graph]]:
    mlp = Graph(18, np.float32)
    x = mlp.Concat(mlp.user(12), mlp.item(4), axis=1)
    mlp.output(mlp.MatMul(mlp.Relu(mlp.MatMul(x, mlp.weight(16, 8))), mlp.weight(8, 1)))
    towers = Graph(18, np.float32)
    towers.output(towers.Mul(towers.Relu(towers.user(4)), towers.Relu(towers.item(4))))
    causal = Graph(18, np.float32)  # the user's tokens stand first, and read none behind them
    table = causal.weight(9, D)
    h = causal.Gather(table, causal.Concat(causal.user(3, high=9), causal.item(1, high=9), axis=1), axis=0)
    lower = causal.const(np.tril(np.ones((4, 4))))
    causal.output(causal.MatMul(causal.Add(h, causal.MatMul(lower, h)), causal.weight(D, 1)))
    alone = Graph(18, np.float32)
    alone.output(alone.Relu(alone.item(4)))
    return [("mlp", mlp), ("towers", towers), ("causal", causal), ("alone", alone)]


@pytest.mark.parametrize(("name", "g"), nothing())
def test_where_nothing_mixes_tokens_the_answer_says_so(name: str, g: Graph) -> None:
    found = looked_at(g)
    assert found.layers == []
    assert found.reason is not None
    assert "so there is nothing that separation would save" in found.reason


def test_an_output_is_never_the_users_alone() -> None:
    """The score reads a token of the user: without what it gets of the candidate, all scores would be equal."""
    g = Graph(18, np.float32)
    h = g.Concat(g.user(3, D), g.item(1, D), axis=1)
    h = g.MatMul(g.Relu(g.Add(h, g.MatMul(g.weight(4, 4), h))), g.weight(D, D))
    found = looked_at(g.output(g.Gather(h, g.const(0, np.int64), axis=1)))
    assert found.layers == []


def test_strings_and_several_requests_are_refused() -> None:
    g = mixed()
    several = Sides(g.sides.inputs, batched="grid")
    found = savings(g.model(), several, Options(N))
    assert found.layers == []
    assert "one request per run" in (found.reason or "")
    words = Graph(18, np.float32)
    x = words.item(1, D)
    label = words.item(1, D, high=3, dtype=object)
    x = words.Where(words.Equal(label, label), x, words.Sin(x))
    h = words.Concat(words.user(3, D), x, axis=1)
    h = words.Relu(words.Add(h, words.MatMul(words.weight(4, 4), h)))
    found = looked_at(words.output(words.MatMul(h, words.weight(D, 1))))
    assert found.layers == []
    assert "strings" in (found.reason or "")


@pytest.mark.parametrize("suffix", [".onnx", ".torchscript.onnx"])
def test_the_sample_of_ug_sep_takes_what_was_said_of_the_one_of_rankmixer(suffix: str) -> None:
    """The two have the same widths; the layers that make up for what is masked are the separated model's own."""
    path, after = MODELS / f"rankmixer{suffix}", MODELS / f"ug_sep{suffix}"
    found = savings(onnx.load(path), sides_of(path), Options(500))
    assert len(found.layers) == 2
    source = onnx.load(after)
    made = rewrite(source, sides_of(after), Options(500, assume=True))
    compensation = 2 * (2 * 24 * 32 + 32 + 32)  # two layers: 24 masked numbers to two tokens of 16, bias, sum
    assert found.layers[-1].after.flops / 500 == pytest.approx(made.flops / 500 - compensation, rel=0.1)


def test_an_output_for_several_requests_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.onnx")
    assert run(["optimize", str(MODELS / "coarse_mlp.onnx"), out, "--batched", "grid"]) == 0
    capsys.readouterr()
    assert run(["inspect", out, "--what-if", "separation"]) == 0
    assert "what if separated: separation is looked at for one request per run" in capsys.readouterr().out


def test_inspect_names_the_best_layers(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(MODELS / "rankmixer.onnx")
    assert run(["inspect", path, "--what-if", "separation"]) == 0
    shown = capsys.readouterr().out
    assert run(["inspect", path, "--what-if", "separation", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["separation"]
    best = [layer["node"] for layer in sorted(told["layers"], key=lambda layer: layer["rank"])]
    assert f"would save most by separation at {best[0]} (-" in shown
    assert all(name in shown for name in best)
    assert told["layers"][-1]["flops_per_candidate"] < 0.6 * told["flops_per_candidate"]
    assert run(["inspect", str(MODELS / "two_tower.onnx"), "--what-if", "separation"]) == 0
    assert "what if separated: no layer brings the candidate" in capsys.readouterr().out


def test_from_python() -> None:
    path = MODELS / "rankmixer.onnx"
    assert mari_onnx.inspect(path).separation is None
    found = mari_onnx.inspect(path, what_if="separation").separation
    assert found is not None
    assert found["candidates"] == 500
    with pytest.raises(UsageError, match="it may be"):
        mari_onnx.inspect(path, what_if="quantization")
