"""Ray Data: the same store as one process writes, the same scores, the same verdict."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pandas
import pytest
from click.testing import CliRunner
from onnx import helper

pytest.importorskip("ray")

from mari_onnx.cli.main import cli, run
from mari_onnx.errors import UsageError
from mari_onnx.model.signature import signature
from mari_onnx.parity import check
from mari_onnx.serving import precompute as module
from mari_onnx.serving.catalogue import Catalogue
from mari_onnx.serving.offline import requests, score
from mari_onnx.serving.offline.parity import joined
from mari_onnx.serving.offline.rows import on_ray
from mari_onnx.serving.offline.scoring import Scorer
from mari_onnx.serving.precompute import precompute
from mari_onnx.serving.store import ArrowStore
from mari_onnx.sides.resolve import METADATA_KEY, Sides
from tests.serving.conftest import ROWS, SIDES, features, ranking_model, write_catalogue
from tests.serving.test_precompute import bad_catalogue
from tests.serving.test_service import ITEMS, close, expected, request, source
from tests.splitting.graphs import model as tiny

DOCS = Path(__file__).resolve().parents[2] / "docs/serving.md"
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own modules


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 300)


def frame(asked, name):
    """A recorded request as a table with a row for each candidate."""
    count, items = len(asked.item_ids), features(ITEMS)
    return pandas.DataFrame({
        "request_id": [name] * count,
        "u": list(np.repeat(asked.user["u"], count, 0)),
        "x": list(items["x"][asked.item_ids]),
        "genre": items["genre"][asked.item_ids],
        "c": list(asked.cross["c"]),
    })  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Requests in two files; the rows of one request are in both."""
    folder = tmp_path_factory.mktemp("recorded")
    asked = {f"r{seed}": request(2 + seed % 7, seed) for seed in range(30)}
    table = pandas.concat([frame(each, name) for name, each in asked.items()])
    table[:61].to_parquet(folder / "0.parquet", row_group_size=40)
    table[61:].to_parquet(folder / "1.parquet", row_group_size=40)
    assert table[:61]["request_id"].iloc[-1] == table[61:]["request_id"].iloc[0]
    return folder, asked


@pytest.fixture(scope="module")
def source_file(tmp_path_factory):
    return saved(ranking_model(), tmp_path_factory.mktemp("source") / "source.onnx")


def saved(model, path):
    sides = {side: [name for name, its in SIDES.items() if its == side] for side in ("user", "item", "cross")}
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(sides)})
    onnx.save(model, path)
    return path


@pytest.mark.slow
def test_a_run_of_one_process_is_finished_by_ray(ray_here, folder, ranker, tmp_path, small_pieces):
    """Bad rows, an id that comes twice, pieces that are there: the same file and the same counts."""
    items = features(3000)
    items["genre"][[700, 1900]] = ROWS + 2
    (tmp_path / "items").mkdir()
    for number, at in enumerate((slice(0, 1650), slice(1650, 3000))):
        ids = np.arange(3000)[at] % 2990  # ten come again
        write_catalogue(tmp_path / f"items/{number}.parquet", ids, {k: v[at] for k, v in items.items()})
    catalogue = Catalogue(tmp_path / "items", ranker.manifest)
    want = precompute(ranker, catalogue, tmp_path / "local.arrow", skip_bad=True)
    assert (want.bad, want.duplicates, want.written) == (2, 10, 2988)

    def stop(done, total):
        if done > 600:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        precompute(ranker, catalogue, tmp_path / "ray.arrow", skip_bad=True, progress=stop)
    got = precompute(ranker, catalogue, tmp_path / "ray.arrow", skip_bad=True, make=on_ray(folder))
    assert got.resumed >= 600
    assert got.made + got.resumed == want.made
    same = {"store", "made", "resumed"}
    assert {k: v for k, v in asdict(got).items() if k not in same} == {
        k: v for k, v in asdict(want).items() if k not in same
    }
    assert (tmp_path / "ray.arrow").read_bytes() == (tmp_path / "local.arrow").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["items", "local.arrow", "ray.arrow"]


@pytest.mark.slow
def test_since_on_ray(ray_here, folder, ranker, tmp_path, small_pieces):
    items, ids = features(900), [f"item {n}" for n in range(900)]
    path = write_catalogue(tmp_path / "1.parquet", ids, items)
    precompute(ranker, Catalogue(path, ranker.manifest), tmp_path / "1.arrow")
    items["genre"] = np.where(np.arange(900) % 100 == 7, (items["genre"] + 1) % ROWS, items["genre"])
    path = write_catalogue(tmp_path / "2.parquet", ids[50:], {k: v[50:] for k, v in items.items()})
    catalogue, since = Catalogue(path, ranker.manifest), ArrowStore(tmp_path / "1.arrow")
    want = precompute(ranker, catalogue, tmp_path / "local.arrow", since=since)
    args = [str(folder), str(path), str(tmp_path / "ray.arrow"), "--since", str(tmp_path / "1.arrow"), "--json", "-"]
    answer = CliRunner().invoke(cli, ["precompute", *args, "--engine", "ray"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout) == {**want.to_dict(), "store": str(tmp_path / "ray.arrow")}
    assert (want.reused, want.gone) == (842, 50)
    assert (tmp_path / "ray.arrow").read_bytes() == (tmp_path / "local.arrow").read_bytes()


@pytest.mark.slow
def test_what_is_wrong_with_a_catalogue_is_said_as_here(ray_here, folder, ranker, tmp_path):
    catalogue = Catalogue(bad_catalogue(tmp_path / "i.parquet"), ranker.manifest)
    with pytest.raises(UsageError, match=r"row 1 of .* is no item: x has not 16 elements"):
        precompute(ranker, catalogue, tmp_path / "s.arrow", make=on_ray(folder))
    assert not (tmp_path / "s.arrow").exists()
    (tmp_path / "i.parquet").write_text("no table")
    with pytest.raises(UsageError, match="cannot read the items in"):  # of a worker, as it was raised there
        precompute(ranker, catalogue, tmp_path / "t.arrow", make=on_ray(folder))


@pytest.mark.slow
def test_recorded_requests_are_scored(ray_here, folder, recorded, tmp_path, source_file, monkeypatch):
    data, asked = recorded
    monkeypatch.chdir(tmp_path)
    for name, path in {"ranking-v7": folder, "requests": data}.items():
        (tmp_path / name).symlink_to(path)
    code = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[-1]
    exec(code, {"shared_folder": str(tmp_path / "scores")})
    table = pandas.read_parquet(tmp_path / "scores")
    assert table["error"].isna().all()
    for name, each in asked.items():
        mine = table[table["request"].str.endswith(f"={name}")].sort_values("candidate")
        close(mine["score"].to_numpy()[:, None], expected(each, source()))
    for name in ("right", "wrong"):
        arrays = {key: np.stack(column) for key, column in frame(asked["r0"], name).items() if key != "request_id"}
        arrays["genre"][1] += ROWS * (name == "wrong")
        (tmp_path / "some").mkdir(exist_ok=True)
        np.savez(tmp_path / f"some/{name}.npz", **arrays)
    for model in (folder, source_file):
        some = score(model, tmp_path / "some").to_pandas().sort_values(["request", "candidate"])
        right, failed = (some[some["request"] == f"{name}.npz"] for name in ("right", "wrong"))
        close(right["score"].to_numpy()[:, None], expected(asked["r0"], source()))
        assert len(failed) == 1
        assert "out of data bounds" in failed["error"].iloc[0] or "indices" in failed["error"].iloc[0]


@pytest.mark.slow
def test_a_split_is_checked_over_recorded_requests(ray_here, batched_folder, recorded, source_file, tmp_path):
    command = ["check", str(source_file), str(batched_folder), "--data", str(recorded[0]), "--json", "-"]
    here, there = (
        json.loads(CliRunner().invoke(cli, [*command, "--engine", engine, "--dump", str(tmp_path)]).stdout)
        for engine in ("local", "ray")
    )
    assert there["verdict"] == here["verdict"] == "equal"
    assert there["requests"] == here["requests"] == 30
    assert there["candidates"] == here["candidates"]
    for mine, want in zip(there["outputs"], here["outputs"], strict=True):
        for key in ("name", "max_abs", "values", "compared", "numbers", "max_ulp"):
            assert mine[key] == pytest.approx(want[key])
    listed = json.loads((tmp_path / "worst.json").read_text())
    errors = [each["error"] for each in listed if each["output"] == "score"]
    assert 0 < len(errors) <= 20  # ten of score.onnx, ten of score.batched.onnx
    assert len({each["request"] for each in listed}) == len(list(tmp_path.glob("*.npz")))


@pytest.mark.slow
def test_the_worst_requests_are_dumped(ray_here, source_file, tmp_path):
    """One row of a table differs, so the requests that have it are the worst ones, and their dump shows the fault."""
    model = ranking_model()
    (table,) = (t for t in model.graph.initializer if t.name == "table")
    changed = onnx.numpy_helper.to_array(table).copy()
    changed[7] += 1
    table.CopyFrom(onnx.numpy_helper.from_array(changed, "table"))
    other, data = saved(model, tmp_path / "other.onnx"), tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        asked = request(6, number)
        genre = rng.integers(8, ROWS, 6)
        genre[3] = 7 if number in (4, 11) else 9
        np.savez(data / f"{number:02d}.npz", u=asked.user["u"], c=asked.cross["c"], x=features(6)["x"], genre=genre)
    command = ["check", str(source_file), str(other), "--engine", "ray", "--dump", str(tmp_path / "worst")]
    answer = CliRunner().invoke(cli, [*command, "--data", str(data), "--json", str(tmp_path / "r.json")])
    assert answer.exit_code == 1, answer.output
    listed = json.loads((tmp_path / "worst/worst.json").read_text())
    assert sorted(each["request"] for each in listed[:2]) == ["04.npz", "11.npz"]
    assert all(each["error"] < 1e-6 < 1e-2 < listed[1]["error"] for each in listed[2:])
    (output,) = json.loads((tmp_path / "r.json").read_text())["outputs"]
    assert output["dumped"] == str(tmp_path / "worst" / listed[0]["file"])
    assert not check(source_file, other, requests=output["dumped"]).ok


def test_results_of_parts_are_those_of_the_whole(source_file, folder, recorded):
    from mari_onnx.model.signature import signature
    from mari_onnx.parity.check import find_sides
    from mari_onnx.parity.requests.recorded import load
    from mari_onnx.splitting.assembly import Assembly

    model = onnx.load(source_file)
    asked = load(recorded[0], signature(model), find_sides([source_file], [model]))
    split = Assembly(folder)
    whole = check(source_file, split, requests=asked)
    parts = joined([check(source_file, split, requests=some) for some in (asked[:11], asked[11:12], asked[12:])])
    assert (parts.verdict, parts.requests, parts.candidates) == (whole.verdict, 30, whole.candidates)
    (mine,), (want,) = parts.outputs, whole.outputs
    for name in ("max_abs", "mean_abs", "max_rel", "max_ulp", "compared", "values", "numbers"):
        assert getattr(mine, name) == pytest.approx(getattr(want, name))
    assert mine.ranking == want.ranking


def test_without_ray_one_line_says_what_to_install(folder, source_file, recorded, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("mari_onnx.serving.offline")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    for command in (
        ["precompute", str(folder), str(recorded[0]), "store.arrow"],
        ["check", str(source_file), str(folder), "--data", str(recorded[0])],
    ):
        with pytest.raises(UsageError, match="this needs ray") as error:
            cli.main([*command, "--engine", "ray"], standalone_mode=False)
        assert error.value.hint == "pip install 'mari-onnx[serving,ray]'"
    with pytest.raises(UsageError, match="--engine ray compares recorded requests"):
        cli.main(["check", str(source_file), str(folder), "--engine", "ray"], standalone_mode=False)


def test_an_output_without_candidates_is_a_list_in_each_row(tmp_path):
    """Also where it is as long as the request has candidates."""
    nodes = [
        helper.make_node("Add", ["u", "x"], ["score"]),
        helper.make_node("ReduceMax", ["u", "first"], ["top"], keepdims=0),
    ]
    made = tiny(nodes, {"u": 4, "x": 4}, {"score": ["N", 4], "top": [4]}, {"first": np.array([0])})
    onnx.save(made, tmp_path / "m.onnx")
    scorer = Scorer(str(tmp_path / "m.onnx"), Sides({"u": "user", "x": "item"}), signature(made), "cpu", 1, ())
    rows = []
    for count in (4, 2):
        user = np.tile(np.arange(4, dtype=np.float32), (count, 1))
        np.savez(tmp_path / f"{count}.npz", u=user, x=np.zeros((count, 4), np.float32))
        rows += requests._of_file({"path": str(tmp_path / f"{count}.npz")}, ("u", "x"))
    table = scorer({key: np.array([row[key] for row in rows], object) for key in rows[0]})
    assert table.column("error").null_count == 6
    assert table.column("top").to_pylist() == table.column("score").to_pylist() == [[0, 1, 2, 3]] * 6


def test_tables_of_requests_that_differ(source_file, recorded, tmp_path):
    table = frame(recorded[1]["r0"], "r0")
    table.to_parquet(tmp_path / "0.parquet")
    table.drop(columns="genre").to_parquet(tmp_path / "1.parquet")
    with pytest.raises(UsageError, match=r"1.parquet has no column 'genre', which .*0.parquet has"):
        requests._of_tables(
            tmp_path, [str(tmp_path / f"{n}.parquet") for n in (0, 1)], signature(ranking_model()), "request_id"
        )


@pytest.mark.parametrize("error", [ConnectionError("timeout"), ValueError("Invalid address format")], ids=str)
def test_a_cluster_that_does_not_answer(folder, tmp_path, monkeypatch, capsys, error):
    def refuse(**_):
        raise error

    import ray

    path = write_catalogue(tmp_path / "i.parquet", np.arange(5), features(5))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    command = ["precompute", str(folder), str(path), str(tmp_path / "s.arrow"), "--engine", "ray"]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert run(command) == 2
    assert f"no cluster of Ray answers at 127.0.0.1:1 (RAY_ADDRESS): {error}" in capsys.readouterr().err
    monkeypatch.delenv("RAY_ADDRESS")
    assert run(command) == 3
    assert f"Ray does not start on this machine: {error}" in capsys.readouterr().err
