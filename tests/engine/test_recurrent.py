"""GRU, LSTM and RNN over steps of the user and steps of the candidate: the leading ones once, from either end of time.

The reference evaluator knows neither lengths of sequences nor activations; there onnxruntime, in float32, is compared.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx.engine import Options, Rewrite, rewrite
from tests.engine.checks import actions, check, repeated, traced, unweighed
from tests.engine.graphs import Draw, Graph

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
MANY = 100_000
"""Candidates for which every step of the user's pays."""


def steps(g: Graph, sides: str, width: int, time_first: bool = True) -> str:
    """[time, N, width], a step of "u", "x" or "c" (constant) each; or the batch first."""
    zero = g.const(np.array(0.0))
    make = {"u": g.user, "x": g.item, "c": lambda *s: g.Add(g.weight(1, *s), g.Mul(g.user(1, 1), zero))}
    parts: list[tuple[str, int]] = []
    for s in sides:
        if parts and parts[-1][0] == s:
            parts[-1] = (s, parts[-1][1] + 1)
        else:
            parts.append((s, 1))
    x = [make[s](n, width) for s, n in parts]
    both = g.Concat(*x, axis=1) if len(x) > 1 else x[0]
    return g.Transpose(both, perm=[1, 0, 2]) if time_first else both


def recurrent(g: Graph, op: str, x: str, width: int, hidden: int, dirs: int, **how: object) -> list[str]:
    """The node with weights of its own, states and peepholes as given, and all outputs."""
    gates = GATES[op] * hidden
    inputs = [x, g.weight(dirs, gates, width), g.weight(dirs, gates, hidden)]
    inputs.append(g.weight(dirs, 2 * gates) if how.pop("bias", True) else "")
    inputs.append(how.pop("lengths", ""))  # type: ignore[arg-type]
    inputs.append(how.pop("h", ""))  # type: ignore[arg-type]
    if op == "LSTM":
        inputs += [how.pop("c", ""), g.weight(dirs, 3 * hidden) if how.pop("peepholes", False) else ""]  # type: ignore[list-item]
    while not inputs[-1]:
        inputs.pop()
    asked = how.pop("asked", [True] * 3)
    names = [g.name() if on else "" for on in asked[: 3 if op == "LSTM" else 2]]  # type: ignore[index]
    return g.nodes_of(op, inputs, names, hidden_size=hidden, **how)


@st.composite
def sequences(draw: Draw) -> Graph:
    g = Graph(draw(st.sampled_from((14, 17, 21))), seed=draw(st.integers(0, 3)))
    op = draw(st.sampled_from(tuple(GATES)))
    sides = "".join(draw(st.lists(st.sampled_from(("u", "uu", "uuu", "x", "xx", "c")), min_size=1, max_size=4)))
    direction = draw(st.sampled_from(("forward", "reverse", "bidirectional")))
    dirs = 2 if direction == "bidirectional" else 1
    layout = draw(st.sampled_from((0, 0, 1)))
    width, hidden = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    asked = draw(st.integers(1, 3))
    how: dict[str, object] = {"bias": draw(st.booleans()), "peepholes": draw(st.booleans())}
    for name in "hc":
        side = draw(st.sampled_from(("", "", "user", "item")))
        if side:
            state = g.input(side, "N", dirs, hidden)
            how[name] = state if layout else g.Transpose(state, perm=[1, 0, 2])
    if op != "LSTM":
        how.pop("c", None), how.pop("peepholes")
    if op == "GRU":
        how["linear_before_reset"] = draw(st.integers(0, 1))
    if layout or draw(st.booleans()):
        how["layout"] = layout
    if dirs > 1 or direction == "reverse" or draw(st.booleans()):
        how["direction"] = direction
    how["asked"] = [k < asked for k in range(3)]
    outs = [o for o in recurrent(g, op, steps(g, sides, width, not layout), width, hidden, dirs, **how) if o]
    return g.output(*(g.Sin(o) for o in outs), g.Mul(g.user(1), g.item(1)))


@given(sequences())
def test_steps_apart_are_the_same(g: Graph) -> None:
    check(g, candidates=MANY)


def computed(g: Graph, result: Rewrite, op: str) -> float:
    """Steps of the operator that one more candidate costs."""
    few, many = (traced(result.model, g.feeds(n, once=result.changed)) for n in (3, 7))
    total = 0
    for node in result.model.graph.node:
        if node.op_type == op:
            dirs = few[node.input[1]].shape[0]
            total += dirs * (many[node.input[0]].size - few[node.input[0]].size) // few[node.input[0]].shape[2]
    return total / 4


@pytest.mark.parametrize("op", sorted(GATES))
@pytest.mark.parametrize(
    ("sides", "direction", "each"),
    [
        ("uuuuux", "forward", 1),
        ("xuuuuu", "reverse", 1),
        ("uuuuxuu", "forward", 3),
        ("uuxuuuu", "reverse", 3),
        ("uuuuux", "bidirectional", 1 + 6),
        ("uuuxuuu", "bidirectional", 4 + 4),
        ("uuuuux", "reverse", 6),
    ],
)
def test_steps_for_each_candidate(op: str, sides: str, direction: str, each: int) -> None:
    g = Graph(17)
    outs = recurrent(g, op, steps(g, sides, 4), 4, 5, 1 + (direction == "bidirectional"), direction=direction)
    g.output(*outs, g.Mul(g.user(1), g.item(1)))
    result = check(g, candidates=MANY)
    assert computed(g, result, op) == each


@pytest.mark.parametrize("op", sorted(GATES))
def test_layers_stay_apart(op: str) -> None:
    """Two layers, and the last state: one step of each for a candidate."""
    g = Graph(17)
    y, *_ = recurrent(g, op, steps(g, "uuuuuux", 4), 4, 5, 1)
    _, h, *_ = recurrent(g, op, g.squeeze(y, [1]), 5, 5, 1)
    g.output(g.MatMul(g.squeeze(h, [0]), g.weight(5, 3)))
    result = check(g, candidates=MANY)
    assert computed(g, result, op) == 2
    assert repeated(g, result) == []


def test_what_saves_less_than_a_node_is_left() -> None:
    g = Graph(17)
    g.output(*recurrent(g, "GRU", steps(g, "uux", 2), 2, 2, 1), g.Mul(g.user(1), g.item(1)))
    result = check(g, candidates=10)
    assert computed(g, result, "GRU") == 3
    assert any("would save less" in (n.reason or "") for n in result.nodes)


@pytest.mark.parametrize("state", ["h", "c"])
def test_a_state_of_the_candidate_is_in_every_step(state: str) -> None:
    g = Graph(17)
    how = {state: g.Transpose(g.item(1, 2), perm=[1, 0, 2])}
    g.output(*recurrent(g, "LSTM", steps(g, "uuuuux", 2), 2, 2, 1, **how), g.Mul(g.user(1), g.item(1)))
    assert computed(g, check(g, candidates=MANY), "LSTM") == 6


def test_the_candidate_first_is_in_every_step() -> None:
    g = Graph(17)
    g.output(*recurrent(g, "GRU", steps(g, "xuuuuu", 2), 2, 2, 1), g.Mul(g.user(1), g.item(1)))
    result = check(g, candidates=MANY)
    assert computed(g, result, "GRU") == 6
    assert any("the first step" in (n.reason or "") for n in result.nodes)


# ---- by onnxruntime ------------------------------------------------------------------------------------------------


def ran(g: Graph) -> Rewrite:
    """Compared by onnxruntime in float32."""
    model = g.model()
    with unweighed():
        result = rewrite(model, g.sides, Options(candidates=MANY))
    assert result.changed
    for n in (1, 3, 7):
        feeds = [g.feeds(n), g.feeds(n, once=True)]
        want, have = (
            ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, f)
            for m, f in zip((model, result.model), feeds, strict=True)
        )
        for a, b in zip(want, have, strict=True):
            np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-6)
    return result


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    ("op", "functions", "how"),
    [
        ("GRU", ["Sigmoid", "Relu", "Tanh", "Sigmoid"], {"clip": 0.5}),
        ("LSTM", ["Sigmoid", "Tanh", "Relu", "Tanh", "Sigmoid", "Tanh"], {"clip": 0.7, "peepholes": True}),
        ("LSTM", None, {"input_forget": 1}),
        ("RNN", None, {"clip": 0.3}),
    ],
)
def test_each_direction_keeps_its_activations(
    op: str, functions: list[str] | None, how: dict[str, object], direction: str
) -> None:
    g = Graph(17, dtype=np.float32)
    dirs = 2 if direction == "bidirectional" else 1
    if functions:
        how = {**how, "activations": functions[: dirs * len(functions) // 2]}
    outs = recurrent(g, op, steps(g, "uuuxuu", 4), 4, 5, dirs, direction=direction, **how)
    result = ran(g.output(*outs, g.Mul(g.user(1), g.item(1))))
    assert computed(g, result, op) == {"forward": 3, "reverse": 4, "bidirectional": 7}[direction]


@pytest.mark.parametrize("which", ["hc", "c", "yc", "h"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_outputs_that_nobody_asks_for_are_left_out(which: str, direction: str) -> None:
    """By onnxruntime: the evaluator takes an output without a name for every input without one."""
    g = Graph(17, dtype=np.float32)
    dirs = 2 if direction == "bidirectional" else 1
    asked = [o in which for o in "yhc"]
    outs = recurrent(g, "LSTM", steps(g, "uuuxuu", 4), 4, 5, dirs, direction=direction, asked=asked)
    ran(g.output(*filter(None, outs), g.Mul(g.user(1), g.item(1))))


@pytest.mark.parametrize("given", ["parameters", "lengths", "full"])
def test_what_two_directions_share_a_list_for_and_lengths_are_left(given: str) -> None:
    g = Graph(17, dtype=np.float32)
    x = steps(g, "uuuuux", 4)
    how: dict[str, object] = {}
    if given == "parameters":
        how = {"activations": ["Affine", "Affine"], "direction": "bidirectional"}
        how |= {"activation_alpha": [0.2, 0.5], "activation_beta": [0.1, 0.3]}
    else:
        lengths = g.Expand(g.const([6 if given == "full" else 5], np.int32), g.size(x, 1))
        how = {"lengths": lengths}
    y, h = recurrent(g, "RNN", x, 4, 5, 2 if given == "parameters" else 1, **how)
    g.output(y, h, g.Mul(g.user(1), g.item(1)))
    assert computed(g, ran(g), "RNN") == {"parameters": 12, "lengths": 6, "full": 1}[given]


def test_a_dynamic_history_is_left() -> None:
    g = Graph(17)
    x = g.Concat(g.input("user", "N", "T", 2), g.item(1, 2), axis=1)
    g.output(*recurrent(g, "GRU", g.Transpose(x, perm=[1, 0, 2]), 2, 3, 1), g.Mul(g.user(1), g.item(1)))
    result = check(g, candidates=MANY)
    assert actions(result)["GRU"] == ["kept"]
