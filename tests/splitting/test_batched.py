"""Several requests in one run of a split: states of different users, rows from one store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.api import as_source, sides_of
from mari_onnx.choices import options_for
from mari_onnx.cli.main import run
from mari_onnx.errors import BadFeatures, CannotBatch, ModelError, OtherModel
from mari_onnx.splitting import manifest as manifests
from mari_onnx.splitting.batched import FILE
from mari_onnx.splitting.files import put
from mari_onnx.splitting.make import split_source
from tests.splitting.graphs import model, split, three_sides

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "models").glob("*.onnx"), *(ROOT / "tests/data/interop").glob("*.onnx")])
FORMS = ("grid", "index", "offsets")
WIDTHS = {"u": 96, "x": 64, "c": 32}


@pytest.fixture(scope="module", params=FORMS)
def made(request):
    return split(three_sides(), counts=(2,), batched=request.param)


@pytest.fixture(scope="module")
def ranker(made):
    return made.ranker()


def features(n, seed=0):
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal((1 if k == "u" else n, w)).astype(np.float32) for k, w in WIDTHS.items()}


def handed(ranker, given):
    return ranker.user(given), ranker.items(given), {"c": given["c"]}


def expected(given, source=None):
    source = source or three_sides()
    session = onnxruntime.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {**given, "u": np.repeat(given["u"], len(given["x"]), 0)}
    return session.run(None, feed)[0]


@pytest.fixture
def runs(ranker, monkeypatch):
    """How many requests each run of score.batched.onnx had."""
    found, whole = [], ranker.in_one_run
    monkeypatch.setattr(ranker, "in_one_run", lambda *given: found.append(len(given[3])) or whole(*given))
    return found


@pytest.mark.parametrize("counts", [[], [3], [2, 3], [1, 7, 0, 2, 40, 0, 5], [0, 4], [4, 0], [0, 0]])
def test_several_requests_are_scored_as_each_by_itself(ranker, runs, counts):
    given = [features(n, seed) for seed, n in enumerate(counts)]
    answers = ranker.score_many([handed(ranker, each) for each in given])
    assert len(answers) == len(counts)
    for each, answer in zip(given, answers, strict=True):
        assert answer["score"].shape == (len(each["x"]), 1)
        np.testing.assert_allclose(answer["score"], expected(each), rtol=1e-4, atol=1e-4)
    assert runs == ([len(counts)] if len(counts) > 1 and any(counts) else [])


def test_rows_that_were_gathered_for_all_requests_at_once(ranker, runs):
    catalogue, counts = features(50), [4, 1, 6]
    rows, given, states, cross, want = ranker.items(catalogue), [], [], [], []
    rng = np.random.default_rng(0)
    for seed, n in enumerate(counts):
        places, each = rng.integers(0, 50, n), features(n, seed)
        given.append(places)
        states.append(ranker.user(each))
        cross.append({"c": each["c"]})
        want.append(expected({**each, "x": catalogue["x"][places]}))
    answers = ranker.score_together(states, rows.take(np.concatenate(given)), counts, cross)
    for answer, scores in zip(answers, want, strict=True):
        np.testing.assert_allclose(answer["score"], scores, rtol=1e-4, atol=1e-4)
    with pytest.raises(BadFeatures, match="there are rows of 50 items for 11 candidates"):
        ranker.score_together(states, rows, counts, cross)
    assert runs == [3]


def test_no_more_candidates_are_in_a_run_than_pay(made, monkeypatch):
    """Requests with more run by themselves."""
    limited = replace(made.manifest, batched=replace(made.manifest.batched, most=10))
    ranker, found = made.ranker(), []
    ranker.manifest, whole = limited, ranker.in_one_run
    monkeypatch.setattr(ranker, "in_one_run", lambda *given: found.append(given[3]) or whole(*given))
    given = [features(n, seed) for seed, n in enumerate([4, 6, 1, 20, 3, 2, 11])]
    answers = ranker.score_many([handed(ranker, each) for each in given])
    for each, answer in zip(given, answers, strict=True):
        np.testing.assert_allclose(answer["score"], expected(each), rtol=1e-4, atol=1e-4)
    assert found == [[4, 6], [3, 2]]


def test_what_is_wrong_with_a_request_is_its_own_answer(ranker):
    other = split(three_sides(seed=1), counts=(2,)).ranker()
    counts = [2, 3, 4, 5]
    given = [features(n, seed) for seed, n in enumerate(counts)]
    rows = ranker.items({"x": np.concatenate([each["x"] for each in given])})
    states = [ranker.user(each) for each in given]
    states[1] = other.user(given[1])
    cross = [{"c": each["c"]} for each in given]
    cross[2] = {"c": given[2]["c"][:3]}
    answers = ranker.score_together(states, rows, counts, cross)
    assert isinstance(answers[1], OtherModel)
    assert isinstance(answers[2], BadFeatures)
    assert "c 3 for 4 candidates" in str(answers[2])
    for at in (0, 3):
        np.testing.assert_allclose(answers[at]["score"], expected(given[at]), rtol=1e-4, atol=1e-4)
    with pytest.raises(OtherModel, match="the items' rows were made by the model"):
        ranker.score_many([handed(ranker, given[0]), (states[0], other.items(given[0]), cross[0])])
    with pytest.raises(OtherModel, match="the user's state was made by the model"):
        ranker.score_many([handed(ranker, given[0]), (states[1], ranker.items(given[1]), cross[1])])


def test_a_run_that_fails_is_made_for_each_request_by_itself():
    """An id that the model's table does not have harms nobody else."""
    rng = np.random.default_rng(0)
    weights = {"table": (8, 16), "W": (16, 16), "V": (32, 16)}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "c"], ["e"]),
            helper.make_node("MatMul", ["x", "V"], ["p"]),
            helper.make_node("MatMul", ["u", "W"], ["q"]),
            helper.make_node("Add", ["p", "q"], ["s"]),
            helper.make_node("Mul", ["s", "e"], ["score"]),
        ],
        "ids",
        [
            helper.make_tensor_value_info("u", TensorProto.FLOAT, ["N", 16]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32]),
            helper.make_tensor_value_info("c", TensorProto.INT64, ["N"]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 16])],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), k) for k, s in weights.items()],
    )
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    ranker = split(source, batched="offsets").ranker()
    given = [
        {
            "u": rng.standard_normal((1, 16), np.float32),
            "x": rng.standard_normal((3, 32), np.float32),
            "c": np.array(ids),
        }
        for ids in ([1, 2, 3], [4, 99, 5], [6, 7, 0])
    ]
    states, rows = [ranker.user(each) for each in given], ranker.items({"x": np.concatenate([g["x"] for g in given])})
    answers = ranker.score_together(states, rows, [3, 3, 3], [{"c": each["c"]} for each in given])
    assert isinstance(answers[1], ModelError)
    for at in (0, 2):
        np.testing.assert_allclose(answers[at]["score"], expected(given[at], source), rtol=1e-4, atol=1e-4)


def test_outputs_of_the_user_alone_and_of_the_item_alone(made):
    form = made.manifest.batched.form
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["u", "U"], ["q"]),
        helper.make_node("Squeeze", ["q", "rows"], ["taste"]),
        helper.make_node("MatMul", ["x", "W"], ["embedding"]),
        helper.make_node("Mul", ["embedding", "q"], ["score"]),
    ]
    arrays = {k: rng.standard_normal((32, 16)).astype(np.float32) for k in ("U", "W")}
    shapes = {"score": ["N", 16], "embedding": ["N", 16], "taste": [16]}
    source = model(nodes, {"u": 32, "x": 32}, shapes, {**arrays, "rows": np.array([0])})
    source.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    ranker = split(source, batched=form).ranker()
    given = [
        {"u": rng.standard_normal((1, 32), np.float32), "x": rng.standard_normal((n, 32), np.float32)} for n in (2, 5)
    ]
    answers = ranker.score_many([(ranker.user(each), ranker.items(each), {}) for each in given])
    for each, answer in zip(given, answers, strict=True):
        q, e = each["u"] @ arrays["U"], each["x"] @ arrays["W"]
        for name, want in (("score", q * e), ("embedding", e), ("taste", q[0])):
            np.testing.assert_allclose(answer[name], want, rtol=1e-4, atol=1e-4)


def test_the_manifest_says_how_it_is_fed(made):
    schema = json.loads(manifests.SCHEMA.read_text())
    said = json.loads((made.folder / manifests.FILE).read_text())
    jsonschema.validate(said, schema)
    form = said["batched"]["form"]
    assert manifests.read(made.folder) == made.manifest
    assert said["batched"] == {
        "form": form,
        "index": {"index": "request_index", "offsets": "request_offsets"}.get(form),
        "axes": {"score": 0},
        "most": None,
    }
    file = onnx.load(made.folder / FILE)
    assert [i.name for i in file.graph.input] == said["parts"]["batched"]["inputs"]
    users = [[d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim] for i in file.graph.input
             if i.name in {t["name"] for t in said["state"]}]  # fmt: skip
    assert users == [["R", *t["shape"]] for t in said["state"]]
    for wrong in ({"form": "rows"}, {"index": 3}, {"axes": {"score": -1}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**said, "batched": {**said["batched"], **wrong}}, schema)
    assert made.together.ok


def without_users(file, states):
    """All candidates are those of request 0: of each state the first one is read."""
    for name in states:
        _read_as(file, name, [("Shape", ["{0}"]), ("Gather", ["{0}", "mutant/zero"]), ("Expand", ["{2}", "{1}"])])
    file.graph.initializer.append(numpy_helper.from_array(np.array([0]), "mutant/zero"))


def shifted(file, _):
    """Offsets between the first and the last one are one too small."""
    steps = [
        ("ReduceMax", ["{0}"]),
        ("Less", ["{0}", "{1}"]),
        ("Greater", ["{0}", "mutant/zero"]),
        ("And", ["{2}", "{3}"]),
        ("Cast", ["{4}"]),
        ("Sub", ["{0}", "{5}"]),
    ]
    _read_as(file, "request_offsets", steps)
    next(n for n in file.graph.node if n.op_type == "Cast" and n.name.startswith("mutant")).attribute.append(
        helper.make_attribute("to", TensorProto.INT32)
    )
    file.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int32), "mutant/zero"))


def turned(file, _):
    """The first and the last candidate change users."""
    _read_as(file, "request_index", [("Slice", ["{0}", "mutant/last", "mutant/first", "mutant/axis", "mutant/step"])])
    for name, value in (("last", -1), ("first", -(1 << 40)), ("axis", 0), ("step", -1)):
        file.graph.initializer.append(numpy_helper.from_array(np.array([value]), f"mutant/{name}"))


def _read_as(file, name, steps):
    """Puts nodes between an input and its readers; {0} is the input, {k} the result of step k."""
    made = [name, *(f"mutant/{name}/{k}" for k in range(len(steps)))]
    for node in file.graph.node:
        node.input[:] = [made[-1] if x == name else x for x in node.input]
    nodes = [
        helper.make_node(op, [made[int(i[1:-1])] if i.startswith("{") else i for i in read], [made[k + 1]], made[k + 1])
        for k, (op, read) in enumerate(steps)
    ]
    for node in reversed(nodes):
        file.graph.node.insert(0, node)


MUTANTS = [
    ("grid", without_users),
    ("index", without_users),
    ("offsets", without_users),
    ("offsets", shifted),
    ("index", turned),
]


@pytest.mark.parametrize(("form", "mutate"), MUTANTS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_a_wrong_file_is_found(form, mutate, tmp_path, capsys):
    made = split(three_sides(), counts=(2,), batched=form)
    folder, source = tmp_path / "split", tmp_path / "model.onnx"
    made.save(folder)
    onnx.save(three_sides(), source)
    command = ["check", str(source), str(folder), "--provider", "cpu", "--candidates", "2,7", "--coverage", "0"]
    assert run(command) == 0
    assert "requests of different users in one run" in capsys.readouterr().out
    file = onnx.load(folder / FILE)
    mutate(file, [t.name for t in made.manifest.state])
    onnx.checker.check_model(file)
    onnx.save(file, folder / FILE)
    part = manifests.read(folder).parts["batched"]
    parts = {
        **made.manifest.parts,
        "batched": type(part)(**{**vars(part), "sha256": manifests.digest([folder / FILE])}),
    }
    put(folder, type(made.manifest)(**{**vars(made.manifest), "parts": parts}))
    assert run(command) == 1
    assert "score.batched.onnx: several requests in one run: output score" in capsys.readouterr().err


def test_what_mixes_candidates_is_refused(tmp_path, capsys):
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"]),
        helper.make_node("MatMul", ["u", "W"], ["q"]),
        helper.make_node("Add", ["a", "q"], ["s"]),
        helper.make_node("Softmax", ["s"], ["score"], axis=0),
    ]
    weights = {"W": np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)}
    source = model(nodes, {"u": 64, "x": 64}, {"score": ["N", 8]}, weights)
    with pytest.raises(CannotBatch, match="depends on other candidates"):
        split(source, batched="offsets")
    onnx.save(source, tmp_path / "model.onnx")
    flags = ["--user", "u", "--item", "x", "--provider", "cpu", "--batched", "index"]
    assert run(["split", str(tmp_path / "model.onnx"), str(tmp_path / "split"), *flags]) == 2
    assert "leave --batched out" in capsys.readouterr().err
    assert not (tmp_path / "split").exists()


def test_users_with_states_of_other_shapes_run_apart():
    """A history is as long as it is."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["history", "W"], ["h"]),
        helper.make_node("MatMul", ["x", "V"], ["p"]),
        helper.make_node("Transpose", ["h"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["p", "t"], ["a"]),
        helper.make_node("Softmax", ["a"], ["s"], axis=-1),
        helper.make_node("MatMul", ["s", "h"], ["pooled"]),
        helper.make_node("Mul", ["pooled", "p"], ["score"]),
    ]
    arrays = {
        "W": rng.standard_normal((16, 16)).astype(np.float32),
        "V": rng.standard_normal((32, 16)).astype(np.float32),
    }
    source = model(nodes, {"x": 32}, {"score": ["N", 16]}, arrays)
    source.graph.input.insert(0, helper.make_tensor_value_info("history", TensorProto.FLOAT, ["T", 16]))
    made = split(source, {"history": "user", "x": "item"}, batched="grid")
    ranker, found = made.ranker(), []
    whole = ranker.in_one_run
    ranker.in_one_run = lambda *given: found.append(len(given[3])) or whole(*given)
    given = [
        {"history": rng.standard_normal((t, 16), np.float32), "x": rng.standard_normal((n, 32), np.float32)}
        for t, n in ((5, 2), (9, 4), (5, 3), (7, 1))
    ]
    answers = ranker.score_many([(ranker.user(each), ranker.items(each), {}) for each in given])
    assert found == [2]
    session = onnxruntime.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    for each, answer in zip(given, answers, strict=True):
        np.testing.assert_allclose(answer["score"], session.run(None, each)[0], rtol=1e-4, atol=1e-4)


def test_the_command_and_what_else_takes_the_folder(tmp_path, capsys):
    source, folder = tmp_path / "model.onnx", tmp_path / "split"
    onnx.save(three_sides(), source)
    flags = [
        "--user",
        "u",
        "--item",
        "x",
        "--cross",
        "c",
        "--provider",
        "cpu",
        "--batched",
        "offsets",
        "--state",
        "float16",
    ]
    assert run(["split", str(source), str(folder), *flags, "--json", str(tmp_path / "s.json")]) == 0
    out = capsys.readouterr().out
    assert "score.batched.onnx: several requests in one run (offsets, with one more input request_offsets)" in out
    assert "16 requests in one run, against one request per run" in out
    said = json.loads((tmp_path / "s.json").read_text())
    assert said["together"]["verdict"] == "equal"
    assert sorted(f.name for f in folder.iterdir()) == [
        "item.onnx", "manifest.json", "score.batched.onnx", "score.onnx", "user.onnx"
    ]  # fmt: skip
    assert run(["inspect", str(source), str(folder), "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert parts["batched"]["flops"] <= 1.01 * parts["score"]["flops"]
    assert run(["inspect", str(source), str(folder)]) == 0
    assert "several requests in one run: offsets, by the input request_offsets" in capsys.readouterr().out
    bench = ["bench", str(source), str(folder), "--candidates", "7", "--users-per-run", "1,4", "--seconds", "0.01"]
    assert run([*bench, "--json", "-"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [each["requests"] for each in results] == [1, 4]
    for each in results:
        figures = each["variants"]
        assert all(figure["max_difference"] < 0.1 for figure in figures.values())
        assert "gather + score.batched.onnx, all requests in one run (offsets)" in figures
    assert run(bench) == 0


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.removesuffix(".onnx"))
def test_every_model_that_optimize_batches_is_split_so(path, form):
    source = as_source(path)
    found = sides_of(source, None, batched=form)
    checked = {"candidates": (2, 7, 64), "coverage": 0, "count": 1, "providers": ("cpu",)}
    refused = {
        "request_grid": "no input is tagged",
        "dcnmix": "number of dimensions of the output score is not known",
        "hstu": "it needs a tensor of one request",
        "phoenix": "it needs a tensor of one request",
    }
    for name, why in refused.items():
        if path.name.startswith(name):
            with pytest.raises(CannotBatch, match=why):
                split_source(source, found, options_for(500), **checked)
            return
    made = split_source(source, found, options_for(500), **checked)
    assert made.together is not None
    assert made.together.ok, str(made.together)
    assert any("in one run" in note for note in made.together.notes)


def test_an_output_that_is_the_state_is_the_callers_own():
    """Who normalizes it in place must not change the state that is kept, nor another request's output."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["history", "W"], ["user"]),
        helper.make_node("Mul", ["user", "x"], ["p"]),
        helper.make_node("MatMul", ["p", "V"], ["score"]),
    ]
    arrays = {"W": rng.standard_normal((16, 8)).astype(np.float32), "V": np.ones((8, 1), np.float32)}
    source = model(nodes, {}, {"score": ["N", "T", 1], "user": ["T", 8]}, arrays)
    for name, shape in (("history", ["T", 16]), ("x", ["N", 1, 8])):
        source.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    ranker = split(source, {"history": "user", "x": "item"}, batched="offsets").ranker()
    state = ranker.user({"history": np.ones((3, 16), np.float32)})
    rows = ranker.items({"x": np.ones((2, 1, 8), np.float32)})
    first, second = ranker.score_many([(state, rows, None), (state, rows, None)])
    before = state.arrays["user"].copy()
    first["user"][:] = 0
    np.testing.assert_array_equal(state.arrays["user"], before)
    np.testing.assert_array_equal(second["user"], before)
