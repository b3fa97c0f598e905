"""History and candidates in one sequence: computed apart where candidates are isolated, together elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mari_onnx.engine import Options, Rewrite, isolation, rewrite
from mari_onnx.engine.isolation.rules import LAST
from tests.engine.graphs import Graph, runner
from tests.sequences import HEADS, WIDTH, Form, build, feeds, sides

LOWEST = float(np.finfo(np.float32).min)
FORMS = {
    "compared": Form(),
    "free length": Form(free=True),
    "constant": Form(mask="constant"),
    "triangle": Form(mask="triangle"),
    "gathered": Form(mask="gathered"),
    "added": Form(how="add"),
    "finite": Form(lowest=-1e9),
    "finite, added": Form(how="add", lowest=-1e9, norm="rms"),
    "lowest of the type": Form(lowest=LOWEST, norm=""),
    "factor": Form(how="factor", bias=True),
    "factor, no norm": Form(how="factor", norm="", free=True),
    "rope": Form(rope=True, norm="rms"),
    "rope at the own place": Form(rope=True, places="own"),
    "candidates first": Form(first=True),
    "flat": Form(flat=True),
    "padded": Form(pad=True),
    "padded, free": Form(pad=True, free=True),
    "softmax over candidates": Form(end="softmax"),
    "less their mean": Form(end="rank", bias=True),
    "the only event written over": Form(length=1, write="nd"),
    "two masks": Form(two=True),
    "three layers": Form(layers=3, opset=13, how="factor", norm="rms"),
}


def rewritten(form: Form) -> tuple[onnx.ModelProto, Rewrite]:
    model = build(form)
    onnx.checker.check_model(model, full_check=True)
    return model, rewrite(model, sides(form), Options(assume=True))


def compare(form: Form, model: onnx.ModelProto, made: onnx.ModelProto, counts: tuple[int, ...] = (1, 2, 5)) -> None:
    """Both models in float64, at several lengths of the history."""
    source, output = runner(model), runner(made)
    for n in counts:
        for length in (form.length, 1, 2) if form.free else (form.length,):
            request = feeds(form, n, length, seed=n)
            (want,), (have,) = source(request), output(request)
            assert want.shape == have.shape
            np.testing.assert_allclose(have, want, rtol=1e-9, atol=1e-9, err_msg=f"N={n}, T={length}")


@pytest.mark.parametrize("name", FORMS)
def test_isolated_candidates_are_computed_apart(name: str) -> None:
    form = replace(FORMS[name], dtype=np.float64)
    model, result = rewritten(form)
    assert result.changed, result.reason
    assert {a.what for a in result.assumptions} == {"a candidate is scored as without the others: "
                                                    "weights between candidates are 0"}  # fmt: skip
    compare(form, model, result.model)
    work = [rewrite(model, sides(form), Options(assume=True, candidates=n)).flops for n in (500, 1000)]
    assert work[1] < 2.05 * work[0], "FLOPs grow faster than the candidates"


@pytest.mark.parametrize(
    ("how", "leak"),  # a factor has no number that masks a little
    [("where", "window"), ("where", "first"), ("where", "little"), ("factor", "window"), ("factor", "first")],
)
def test_candidates_that_read_each_other_stay_together(how: str, leak: str) -> None:
    form = Form(leak=leak, how=how, dtype=np.float64)
    model, result = rewritten(form)
    compare(form, model, result.model)
    assert not result.changed
    assert any("history and candidates are one sequence here, and stay that" in (n.reason or "") for n in result.nodes)


@pytest.mark.parametrize("form", [Form(mask="given"), Form(mask="given", first=True), Form(integers="dynamic")])
def test_what_only_the_run_tells_hides_nothing(form: Form) -> None:
    """A mask of the caller may be all true, and the range of a dynamic quantization is that of all candidates."""
    form = replace(form, dtype=np.float64, opset=21)
    model, result = rewritten(form)
    compare(form, model, result.model, counts=(1, 2, 3, 8))
    request = feeds(form, 3, seed=1)
    request["candidates"] = np.concatenate([request["candidates"][:, :1], 5 * request["candidates"][:, 1:]], axis=1)
    (want,), (have,) = runner(model)(request), runner(result.model)(request)
    (other,) = runner(model)(feeds(form, 3, seed=1))
    assert not np.allclose(other[:, 0], want[:, 0], rtol=1e-9), "other candidates do not matter here"
    np.testing.assert_allclose(have, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("how", ["where", "factor"])
@pytest.mark.parametrize(
    "leak", ["causal", "scaled", "second", "back", "centred", "summed", "zero", "turned", "neighbour", "count"]
)
def test_masks_that_are_almost_right(leak: str, how: str) -> None:
    """In one layer, from position 50 on, by a norm, a running sum, the wrong axis, or behind the attention."""
    form = Form(leak=leak, how=how, dtype=np.float64)
    model, result = rewritten(form)
    compare(form, model, result.model, counts=(1, 2, 7, 60))
    if leak in ("causal", "scaled"):
        assert not result.changed


@pytest.mark.parametrize("form", [Form(), Form(free=True), Form(lowest=-1e9), Form(first=True)])
def test_rows_that_see_nothing(form: Form) -> None:
    """Events that are padded do not even see themselves: NaN where the mask is -inf, a mean where it is finite."""
    form = replace(form, pad=True, strict=True, dtype=np.float64)
    model, result = rewritten(form)
    assert result.changed
    compare(form, model, result.model)


def test_a_finite_mask_needs_scores_of_known_size() -> None:
    _, result = rewritten(Form(lowest=-1e9, norm=""))
    assert not result.changed


def test_a_number_of_candidates_from_which_on_they_mix_is_met() -> None:
    """From position 2T + 40 on candidates see each other: not at N = 2 or 3."""
    form = Form(leak="late", dtype=np.float64)
    model, result = rewritten(form)
    assert not result.changed
    compare(form, model, result.model, (2, 60))


def test_a_mean_over_the_sequence_is_computed_over_all_of_it() -> None:
    form = Form(leak="mean", dtype=np.float64)
    model, result = rewritten(form)
    compare(form, model, result.model)


def test_without_a_check_nothing_is_assumed() -> None:
    result = rewrite(build(Form()), sides(Form()), Options())
    assert not result.changed
    assert any("no check is made" in (n.reason or "") for n in result.nodes)


def test_a_node_whose_rewrite_is_to_be_left_out_is_copied_and_two_leave_the_sequence_whole() -> None:
    form = Form(dtype=np.float64)
    model, result = rewritten(form)
    names = [n.name for n in result.nodes if n.op == "Softmax"]
    again = rewrite(model, sides(form), Options(assume=True, skip=frozenset(names[:1])))
    assert again.changed
    assert any((n.reason or "").startswith("skipped") for n in again.nodes)
    compare(form, model, again.model)
    join = next(iter(isolation.joins(model.graph, again)))
    for skip in (names[:2], [join]):
        assert not rewrite(model, sides(form), Options(assume=True, skip=frozenset(skip))).changed


def test_every_node_of_the_source_is_reported_once() -> None:
    model, result = rewritten(Form(pad=True, rope=True))
    assert [n.name for n in result.nodes] == [n.name for n in model.graph.node]
    assert set(result.tensor_map) <= {o for n in model.graph.node for o in n.output} | {"history", "candidates", "seen"}


@pytest.mark.parametrize("how", ["where", "factor"])
def test_a_candidate_takes_what_a_count_by_hand_says(how: str) -> None:
    """FLOPs of one more candidate, as `engine/cost/flops.py` counts: T scores with the history, and one with itself."""
    form = Form(length=50, how=how)
    model, d, scores = build(form), WIDTH, HEADS * (form.length + 1)
    work = [rewrite(model, sides(form), Options(assume=True, candidates=n)).flops for n in (1000, 2000)]
    attention = 2 * 2 * d * scores / HEADS + scores + (12 if how == "where" else 10) * scores
    by_hand = form.layers * (attention + 2 * 8 * d + 4 * 2 * d * d + 2 * 2 * d * d + 4 * d) + 2 * d
    assert (work[1] - work[0]) / 1000 <= 1.02 * by_hand


def test_a_mask_of_a_long_history_is_not_stored() -> None:
    form = Form(length=2000, layers=1)
    model, result = rewritten(form)
    assert result.changed
    assert result.model.ByteSize() < model.ByteSize() + 100_000


def test_a_table_that_ends_before_a_number_of_candidates_tells_nothing_of_it() -> None:
    _, result = rewritten(Form(mask="gathered", leak="late"))
    assert not result.changed
    assert rewritten(Form(mask="gathered", lowest=-1e9))[1].changed


@settings(max_examples=12, deadline=None)
@given(
    st.builds(
        Form,
        length=st.integers(1, 5),
        free=st.booleans(),
        layers=st.integers(1, 2),
        mask=st.sampled_from(["compared", "constant", "triangle", "gathered"]),
        how=st.sampled_from(["where", "add", "factor", "factor before"]),
        lowest=st.sampled_from([-np.inf, LOWEST, -1e9]),
        norm=st.sampled_from(["layer", "rms", ""]),
        rope=st.booleans(),
        bias=st.booleans(),
        flat=st.booleans(),
        pad=st.booleans(),
        leak=st.sampled_from(["", "", "", "window", "first", "mean", "little"]),
        end=st.sampled_from(["", "softmax", "rank"]),
        places=st.sampled_from(["same", "own"]),
        seed=st.integers(0, 9),
        dtype=st.just(np.float64),
    )
)
def test_any_form_is_the_same(form: Form) -> None:
    model, result = rewritten(form)
    compare(form, model, result.model, (1, 3))


# ---- a history of free length and one more position


def _with_a_target(length: int | str, masked: bool, gathered: bool) -> Graph:
    """[history | target] through two layers of attention, of which the target's row is scored."""
    g, width = Graph(18), 8
    x = g.Concat(g.user(length, width), g.item(1, width), axis=1)
    split = g.const([0, 0, 2, width // 2])
    for _ in range(2):
        q, k, v = (
            g.Transpose(g.Reshape(g.MatMul(x, g.weight(width, width)), split), perm=[0, 2, 1, 3]) for _ in range(3)
        )
        s = g.MatMul(q, g.Transpose(k, perm=[0, 1, 3, 2]))
        if masked:
            place = g.Range(g.const(0), g.squeeze(g.size(x, 1), [0]), g.const(1))
            s = g.Where(g.LessOrEqual(g.unsqueeze(place, 0), g.unsqueeze(place, 1)), s, g.const(-np.inf))
        mixed = g.Transpose(g.MatMul(g.Softmax(s, axis=-1), v), perm=[0, 2, 1, 3])
        x = g.Add(x, g.MatMul(g.Reshape(mixed, g.const([0, 0, width])), g.weight(width, width)))
    y = g.Gather(x, g.const(-1), axis=1) if gathered else g.squeeze(g.slice(x, -1, LAST, 1), [1])
    return g.output(g.MatMul(y, g.weight(width, 1)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("gathered", [False, True])
def test_a_free_history_is_computed_apart_from_one_more_position(masked: bool, gathered: bool) -> None:
    g = _with_a_target("T", masked, gathered)
    model = g.model()
    result = rewrite(model, g.sides, Options(assume=True))
    assert result.changed, result.reason
    source, output = runner(model), runner(result.model)
    for n in (1, 5):
        for length in (1, 2, 9):
            feeds, once = g.feeds(n), g.feeds(n, once=True)
            history = np.random.default_rng(length).standard_normal((1, length, 8))
            name = next(iter(g.inputs))
            feeds[name], once[name] = np.repeat(history, n, axis=0), history
            np.testing.assert_allclose(output(once)[0], source(feeds)[0], rtol=1e-9, atol=1e-9)
    if masked:  # else the history's rows see the target
        fixed = _with_a_target(50, masked, gathered)  # a free length counts as 50
        assert result.flops < 1.1 * rewrite(fixed.model(), fixed.sides, Options(assume=True)).flops


def test_statistics_over_history_and_target_are_of_both() -> None:
    """A BatchNormalization in training mode of [N, width, T + 1]."""
    g, width = Graph(18), 8
    x = g.Transpose(g.Concat(g.user("T", width), g.item(1, width), axis=1), perm=[0, 2, 1])
    parameters = [g.weight(width) for _ in range(3)]
    y, *_ = g.nodes_of("BatchNormalization", [x, *parameters, g.const(np.ones(width))], 3, training_mode=1)
    q, k = g.Transpose(y, perm=[0, 2, 1]), g.Relu(y)
    place = g.Range(g.const(0), g.squeeze(g.size(x, 2), [0]), g.const(1))
    mask = g.LessOrEqual(g.unsqueeze(place, 0), g.unsqueeze(place, 1))
    s = g.Softmax(g.Where(mask, g.MatMul(q, k), g.const(-np.inf)), axis=-1)
    last = g.Gather(g.MatMul(s, q), g.const(-1), axis=1)
    g.output(g.MatMul(last, g.weight(width, 1)))
    result = rewrite(g.model(), g.sides, Options(assume=True))
    source, output = runner(g.model()), runner(result.model)
    for n in (1, 5):
        want, have = source(g.feeds(n)), output(g.feeds(n, once=result.changed))
        np.testing.assert_allclose(have[0], want[0], rtol=1e-9, atol=1e-9)
