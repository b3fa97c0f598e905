"""item.onnx over a catalogue: every item once, whatever happens on the way."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from mari_onnx.cli.main import cli
from mari_onnx.errors import MariError, ModelError, OutputInTheWay, UsageError
from mari_onnx.model.save import hold
from mari_onnx.serving import precompute as module
from mari_onnx.serving.catalogue import Catalogue
from mari_onnx.serving.precompute import precompute
from mari_onnx.serving.redis_store import RedisStore
from mari_onnx.serving.store import ArrowStore
from mari_onnx.splitting.ranker import Ranker
from tests.serving.conftest import ROWS, features, make_split, write_catalogue


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 300)


def run(ranker, path, store, **given):
    return precompute(ranker, Catalogue(path, ranker.manifest), store, **given)


def holds(store, ranker, ids, items):
    """The store has the rows of exactly these items."""
    opened = ArrowStore(store)
    assert opened.count == len(ids)
    want, got = ranker.items(items), opened.get_many(ids).rows
    for name, array in want.arrays.items():
        np.testing.assert_allclose(got.arrays[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["integers", "texts"])
def test_every_item_has_its_row(ranker, tmp_path, kind):
    numbers = np.random.default_rng(1).permutation(1500)
    ids = numbers if kind == "integers" else [f"item {n}" for n in numbers]
    path, items = write_catalogue(tmp_path / "i.parquet", ids, features(1500)), features(1500)
    done = run(ranker, path, tmp_path / "s.arrow", batch=128)
    assert (done.read, done.written, done.made, done.bad, done.duplicates) == (1500, 1500, 1500, 0, 0)
    holds(tmp_path / "s.arrow", ranker, ids, items)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i.parquet", "s.arrow"]
    with pytest.raises(OutputInTheWay):
        run(ranker, path, tmp_path / "s.arrow")


def test_several_files_and_columns_side_by_side(ranker, tmp_path):
    (tmp_path / "items").mkdir()
    items = features(40)
    for number, at in enumerate((slice(0, 15), slice(15, 40))):
        columns = {f"x_{i}": items["x"][at, i].astype(np.float64) for i in range(16)}
        columns |= {
            "item_id": np.arange(40)[at],
            "genre": items["genre"][at].astype(np.int16),
            "other": ["-"] * len(items["x"][at]),
        }
        pq.write_table(pa.table(columns), tmp_path / "items" / f"{number}.parquet")
    run(ranker, tmp_path / "items", tmp_path / "s.arrow")
    holds(tmp_path / "s.arrow", ranker, np.arange(40), items)


def table_of(ids, **columns):
    """Items of these ids; columns: instead of, or beside, those that they have."""
    items = features(len(ids))
    x = pa.FixedSizeListArray.from_arrays(pa.array(items["x"].reshape(-1)), 16)
    whole = {"item_id": ids, "x": x, "genre": items["genre"], **columns}
    return pa.table({name: column for name, column in whole.items() if column is not None})


def folder_of(path, *tables):
    path.mkdir()
    for number, table in enumerate(tables):
        pq.write_table(table, path / f"{number:03d}.parquet")
    return path


def test_files_that_differ(ranker, tmp_path):
    """In their columns and types: what cannot be read is said before anything is made."""
    for name, second, words in (
        ("lacks", table_of([3, 4], genre=None), "001.parquet has no column genre"),
        ("ids", table_of(["a", "b"]), "item_id holds texts in .*001.parquet, and integers in files before it"),
        ("times", table_of([3, 4], genre=pa.array([1, 2], pa.timestamp("s"))), "genre holds timestamp"),
        ("bytes", table_of([b"a", b"b"]), "ids is binary; ids are integers or texts"),
    ):
        with pytest.raises(UsageError, match=words):
            run(ranker, folder_of(tmp_path / name, table_of([1, 2]), second), tmp_path / "s.arrow")
    empty = table_of(["a"]).slice(0, 0)
    run(ranker, folder_of(tmp_path / "empty", empty, table_of([0, 1])), tmp_path / "s.arrow")
    holds(tmp_path / "s.arrow", ranker, np.arange(2), features(2))


def test_a_file_without_any_item(ranker, tmp_path):
    """A column in which all is null has a type of its own."""
    for name, second, why in (
        ("genre", table_of([3, 4], genre=pa.nulls(2)), "genre is null"),
        ("x", table_of([3, 4], x=pa.nulls(2)), "x is null"),
        ("ids", table_of(pa.nulls(2)), "item_id is null"),
    ):
        path = folder_of(tmp_path / name, table_of([1, 2]), second)
        done = run(ranker, path, tmp_path / f"{name}.arrow", skip_bad=True)
        assert (done.written, [bad.why for bad in done.bad_rows]) == (2, [why, why])


def test_columns_with_a_dictionary(ranker, tmp_path):
    """Categories of pandas."""
    ids = pa.array(["b", "a", "c"]).dictionary_encode()
    path = folder_of(tmp_path / "i", table_of(ids, genre=pa.array(features(3)["genre"]).dictionary_encode()))
    run(ranker, path, tmp_path / "s.arrow")
    holds(tmp_path / "s.arrow", ranker, np.array(["b", "a", "c"]), features(3))


def test_more_files_than_a_process_may_have_open(ranker, tmp_path):
    path = folder_of(tmp_path / "i", *(table_of([i]) for i in range(150)))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, before[1]))
    try:
        assert run(ranker, path, tmp_path / "s.arrow").written == 150
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@settings(deadline=None)
@given(data=st.data())
def test_pieces_are_read_from_anywhere(ranker, tmp_path_factory, data):
    """However a file groups its rows, stretches of pieces hold what the file has there."""
    path = tmp_path_factory.mktemp("pieces")
    counts = data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=3))
    first = 0
    for number, count in enumerate(counts):
        ids, x = np.arange(first, first + count), [[float(n)] * 16 for n in range(first, first + count)]
        table = pa.table({"item_id": ids, "x": pa.array(x, pa.list_(pa.float32())), "genre": ids % ROWS})
        pq.write_table(table, path / f"{number}.parquet", row_group_size=data.draw(st.integers(1, 50)))
        first += count
    catalogue = Catalogue(path, ranker.manifest)
    parts = catalogue.parts(data.draw(st.integers(1, 25)))
    assert sum(part.count for part in parts) == catalogue.count == first
    for file in range(len(counts)):
        mine = [part for part in parts if part.file == file]
        some = mine[slice(*sorted(data.draw(st.tuples(st.integers(0, len(mine)), st.integers(0, len(mine))))))]
        for part, raw in zip(some, catalogue.read(some), strict=True):
            piece = catalogue.convert(raw, part.first)
            np.testing.assert_array_equal(piece.ids, np.arange(part.first, part.first + part.count))
            np.testing.assert_array_equal(piece.features["x"][:, 5], piece.ids)
            np.testing.assert_array_equal(piece.features["genre"], piece.ids % ROWS)


def bad_catalogue(path):
    """Ten items, of which 0, 3, 8 and 9 are good, and 9 comes twice."""
    x = [[float(i)] * 16 for i in range(11)]
    genre: list[float | None] = [1.0] * 11
    ids: list[int | None] = [*range(10), 9]
    x[1], genre[2], ids[4], genre[5], genre[6] = x[1][:15], None, None, float(ROWS + 3), 1.5
    x[7][2] = None  # type: ignore[call-overload]
    pq.write_table(pa.table({"item_id": ids, "x": x, "genre": genre}), path)
    return path


def test_bad_rows_are_named(ranker, tmp_path):
    path = bad_catalogue(tmp_path / "i.parquet")
    with pytest.raises(UsageError, match=r"row 1 of .*i.parquet \(id 1\) is no item: x has not 16 elements"):
        run(ranker, path, tmp_path / "s.arrow")
    done = run(ranker, path, tmp_path / "s.arrow", skip_bad=True)
    assert not (tmp_path / ".s.arrow.partial").exists()
    why = {bad.row: bad.why for bad in done.bad_rows}
    assert done.bad == len(why) == 6
    assert why[1] == "x has not 16 elements"
    assert why[2] == "genre is null"
    assert why[4] == "item_id is null"
    assert "53" in why[5] or "bounds" in why[5]  # the model itself says so
    assert why[6] == "genre holds a value that int64 cannot hold"
    assert why[7] == "x holds a null"
    assert (done.duplicates, done.duplicate_ids, done.written) == (1, [9], 4)
    good = np.array([0, 3, 8, 9])
    holds(
        tmp_path / "s.arrow",
        ranker,
        good,
        {"x": np.repeat(good[:, None], 16, 1).astype(np.float32), "genre": np.ones(4, np.int64)},
    )


def test_an_id_that_comes_twice_is_an_error_unless_skipped(ranker, tmp_path):
    path = write_catalogue(tmp_path / "i.parquet", [1, 2, 1], features(3))
    with pytest.raises(UsageError, match="1 rows of ids that came before: 1"):
        run(ranker, path, tmp_path / "s.arrow")
    assert not (tmp_path / "s.arrow").exists()


def test_a_model_that_fails_on_every_item(ranker, tmp_path):
    items = {**features(5), "genre": np.full(5, ROWS + 1)}
    with pytest.raises(ModelError, match="none of the first 5 rows is an item"):
        run(ranker, write_catalogue(tmp_path / "i.parquet", range(5), items), tmp_path / "s.arrow", skip_bad=True)


def test_columns_that_are_not_there(ranker, tmp_path):
    pq.write_table(pa.table({"id": [1], "genre": [1]}), tmp_path / "i.parquet")
    with pytest.raises(UsageError, match="no column x, item_id"):
        Catalogue(tmp_path / "i.parquet", ranker.manifest)
    (tmp_path / "text.parquet").write_text("no table")
    for path in (tmp_path / "text.parquet", tmp_path / "nothing.parquet"):
        with pytest.raises(UsageError, match="cannot read the items"):
            Catalogue(path, ranker.manifest)


def test_since_keeps_what_has_not_changed(ranker, tmp_path):
    items = features(900)
    run(ranker, write_catalogue(tmp_path / "1.parquet", np.arange(900), items), tmp_path / "1.arrow")
    items["genre"] = np.where(np.arange(900) % 100 == 7, (items["genre"] + 1) % ROWS, items["genre"])
    ids = np.arange(50, 950)  # 50 items are gone, 50 are new, 9 have changed
    path = write_catalogue(tmp_path / "2.parquet", ids, {k: np.roll(v, -50, 0) for k, v in items.items()})
    done = run(ranker, path, tmp_path / "2.arrow", since=ArrowStore(tmp_path / "1.arrow"))
    assert (done.written, done.reused, done.made, done.gone) == (900, 842, 58, 50)
    run(ranker, path, tmp_path / "new.arrow")
    assert (tmp_path / "2.arrow").read_bytes() == (tmp_path / "new.arrow").read_bytes()


def test_rows_of_another_model_are_not_kept(ranker, tmp_path):
    path = write_catalogue(tmp_path / "i.parquet", np.arange(20), features(20))
    other = Ranker(make_split(tmp_path / "other", seed=3))
    run(other, path, tmp_path / "other.arrow")
    done = run(ranker, path, tmp_path / "s.arrow", since=ArrowStore(tmp_path / "other.arrow"))
    assert (done.made, done.reused) == (20, 0)
    assert "another model" in done.notes[0]


def test_a_run_goes_on_where_it_stopped(ranker, tmp_path, monkeypatch):
    path = write_catalogue(tmp_path / "i.parquet", np.arange(1500), features(1500))

    def stop(done, total):
        if done > 900:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ranker, path, tmp_path / "s.arrow", progress=stop)
    assert not (tmp_path / "s.arrow").exists()
    done = run(ranker, path, tmp_path / "s.arrow")
    assert done.resumed >= 600
    assert done.resumed + done.made == done.written == 1500
    holds(tmp_path / "s.arrow", ranker, np.arange(1500), features(1500))


def test_what_was_done_before_a_bad_row_is_kept(ranker, tmp_path):
    items = features(900)
    items["genre"][700] = ROWS + 2
    path = write_catalogue(tmp_path / "i.parquet", np.arange(900), items)
    with pytest.raises(UsageError, match="row 700"):
        run(ranker, path, tmp_path / "s.arrow")
    done = run(ranker, path, tmp_path / "s.arrow", skip_bad=True)
    assert (done.resumed, done.made, done.bad) == (600, 299, 1)


def test_another_catalogue_does_not_go_on_with_the_old_rows(ranker, tmp_path):
    path = write_catalogue(tmp_path / "i.parquet", np.arange(1500), features(1500))

    def stop(done, total):
        if done > 900:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ranker, path, tmp_path / "s.arrow", progress=stop)
    os.utime(write_catalogue(path, np.arange(1500), features(1500, seed=4)), ns=(1, 1))
    assert run(ranker, path, tmp_path / "s.arrow").resumed == 0
    holds(tmp_path / "s.arrow", ranker, np.arange(1500), features(1500, seed=4))


def test_two_runs_at_once_on_one_store(ranker, tmp_path):
    path = write_catalogue(tmp_path / "i.parquet", np.arange(20), features(20))
    (tmp_path / ".s.arrow.partial").mkdir()
    with hold(tmp_path / ".s.arrow.partial"), pytest.raises(UsageError, match="another run writes"):
        run(ranker, path, tmp_path / "s.arrow")
    assert run(ranker, path, tmp_path / "s.arrow").written == 20


@pytest.mark.slow
def test_a_kill_leaves_no_row_lost_doubled_or_torn(folder, ranker, tmp_path):
    count = 60_000
    path = write_catalogue(tmp_path / "i.parquet", np.arange(count), features(count))
    code = "import mari_onnx.serving.precompute as p; p.PIECE = 2000; from mari_onnx.cli.start import main; main()"
    command = [sys.executable, "-c", code, "precompute", str(folder), str(path), str(tmp_path / "s.arrow"), "-q"]
    begun = time.monotonic()
    subprocess.run(command, check=True)
    whole, expected = time.monotonic() - begun, (tmp_path / "s.arrow").read_bytes()
    (tmp_path / "s.arrow").unlink()
    first = subprocess.Popen(command)
    while not (tmp_path / ".s.arrow.partial/plan.json").exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # however fast it is
    second = subprocess.run(command, check=False, capture_output=True, text=True)
    first.send_signal(signal.SIGCONT)
    assert (second.returncode, first.wait()) == (2, 0)  # two at once
    assert "another run writes" in second.stderr
    assert (tmp_path / "s.arrow").read_bytes() == expected
    kills, draw, ended = 0, random.Random(0), 0
    while kills < int(os.environ.get("MARI_ONNX_KILLS", "6")):
        (tmp_path / "s.arrow").unlink(missing_ok=True)
        for _ in range(4):
            process = subprocess.Popen(command)
            try:
                process.wait(draw.uniform(0.3, 1.1) * whole)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
            if (tmp_path / "s.arrow").exists():
                assert (tmp_path / "s.arrow").read_bytes() == expected
                (tmp_path / "s.arrow").unlink()
        else:
            subprocess.run(command, check=True)
        ended += 1
        assert (tmp_path / "s.arrow").read_bytes() == expected
    print(f"{kills} kills, {ended} stores, all whole")


def test_the_command(folder, ranker, tmp_path, redis_url):
    path = bad_catalogue(tmp_path / "i.parquet")
    args = ["precompute", str(folder), str(path), str(tmp_path / "s.arrow")]
    answer = CliRunner().invoke(cli, [*args, "--bad-rows", "skip", "--redis", redis_url, "--redis-name", "cli"])
    assert answer.exit_code == 0, answer.output
    said = " ".join(answer.output.split())
    assert "4 items (5 made now)" in said
    assert "6 of 11 rows are no item" in said
    assert "row 2, id 2: genre is null" in said
    assert "loaded 4 rows" in said
    assert RedisStore(redis_url, "cli").get_many([0, 9]).missing == ()
    answer = CliRunner().invoke(cli, [*args, "--bad-rows", "skip", "--force", "--json", "-"])
    assert json.loads(answer.stdout)["written"] == 4


def test_what_would_fail_after_the_run_fails_before_it(folder, tmp_path):
    path = write_catalogue(tmp_path / "i.parquet", np.arange(3), features(3))
    args = ["precompute", str(folder), str(path), str(tmp_path / "s.arrow")]
    for more, code, words in (
        (["--redis", "redis://user:secret@127.0.0.1:1/0"], 10, "the store at redis://127.0.0.1:1/0 does not answer"),
        (["--redis", "127.0.0.1"], 2, "127.0.0.1 is no URL of Redis"),
        (["--custom-ops", str(tmp_path / "ops.so")], 2, "there is no library of custom operators"),
    ):
        answer = CliRunner().invoke(cli, [*args, *more], standalone_mode=False)
        assert isinstance(answer.exception, MariError)
        assert answer.exception.exit_code == code
        assert words in answer.exception.message
    assert not (tmp_path / "s.arrow").exists()
    (tmp_path / "s.arrow").mkdir()
    answer = CliRunner().invoke(cli, args, standalone_mode=False)
    assert "is a folder" in str(answer.exception)
