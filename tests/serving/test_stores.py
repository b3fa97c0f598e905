"""Rows by id: what was written is found, and what is missing is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mari_onnx.errors import (
    BadFeatures,
    MariError,
    MissingItems,
    ModelError,
    ModelNotFound,
    StoreUnavailable,
    UsageError,
)
from mari_onnx.serving import merge as merging
from mari_onnx.serving.opening import open_store
from mari_onnx.serving.redis_store import RedisStore, load
from mari_onnx.serving.row_format import Column, RowFormat, ids_to_numpy
from mari_onnx.serving.store import ArrowStore
from mari_onnx.splitting.rows import ItemRows

KEY = "a" * 64
COLUMNS = (
    Column("vector", "float32", (3, 2), 0),
    Column("half", "float16", (), 0),
    Column("flag", "bool", (2,), 0),
    Column("brain", "bfloat16", (1,), 0),
    Column("turned", "int64", (4,), 1),
    Column("title", "string", (2,), 0),
)


def rows(format: RowFormat, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {}
    for c in format.columns:
        shape = (count, *c.shape)
        if c.dtype == "string":
            made[c.name] = np.array([f"t{x}" for x in rng.integers(0, 99, int(np.prod(shape)))], object).reshape(shape)
        else:
            made[c.name] = (rng.standard_normal(shape) * 5).astype(c.element)
    return made


def write(path, format, ids, arrays, runs=1, places=None):
    """A store of rows that were written in several runs."""
    ids = ids_to_numpy(ids)
    places = np.arange(len(ids)) if places is None else places
    files = []
    for number, at in enumerate(np.array_split(np.arange(len(ids)), runs)):
        files.append(path.with_name(f"{path.name}.run-{number:04d}"))
        part = (
            ids[at].astype(f"S{max(1, max((len(x) for x in ids[at].tolist()), default=1))}")
            if ids.dtype.kind == "S"
            else ids[at]
        )
        merging.write_run(
            files[-1], format, part, np.zeros(len(at), np.uint64), places[at], {k: v[at] for k, v in arrays.items()}, {}
        )
    return merging.merge(files, path, format)


@settings(deadline=None)
@given(data=st.data())
def test_rows_are_found_under_their_ids(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("store") / "items.arrow"
    kinds = st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 40)
    texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
    ids = data.draw(st.lists(kinds, max_size=60) | st.lists(texts, max_size=60))
    format = RowFormat(KEY, COLUMNS[: data.draw(st.integers(0, len(COLUMNS)))])
    old = merging.WIDTH, merging.STEP, merging.BLOCK
    merging.WIDTH, merging.STEP, merging.BLOCK = (
        data.draw(st.integers(2, 4)),
        data.draw(st.integers(1, 9)),
        data.draw(st.integers(1, 20)),
    )
    try:
        arrays = rows(format, len(ids))
        done = write(path, format, ids, arrays, runs=data.draw(st.integers(1, 12)))
    finally:
        merging.WIDTH, merging.STEP, merging.BLOCK = old
    first = {x: at for at, x in reversed(list(enumerate(ids)))}
    assert (done.rows, done.duplicates) == (len(first), len(ids) - len(first))
    store = ArrowStore(path)
    assert store.count == len(first)
    assert [x for block, _ in store.blocks() for x in block.tolist()] == sorted(ids_to_numpy(list(first)).tolist())
    wanted = data.draw(st.lists(st.sampled_from(ids), max_size=20)) if ids else []
    found = store.get_many(wanted)
    assert found.missing == ()
    for c in format.columns:
        np.testing.assert_array_equal(
            np.moveaxis(found.rows.arrays[c.name], c.axis, 0), arrays[c.name][[first[x] for x in wanted]]
        )
    if ids:
        other = data.draw(texts if isinstance(ids[0], str) else kinds)
        _, here = store.find(ids_to_numpy([other, ids[0]]))
        assert list(here) == [other in first, True]


def test_what_is_missing_is_named_or_filled(tmp_path):
    format = RowFormat(KEY, COLUMNS)
    arrays = rows(format, 4)
    write(tmp_path / "s", format, [1, 2, 3, 4], arrays)
    with pytest.raises(MissingItems, match=r"no rows of the items 9, 7$") as error:
        ArrowStore(tmp_path / "s").get_many([9, 1, 7, 9])
    assert error.value.ids == (9, 7)

    default = format.item_rows(rows(format, 1, seed=5), 1)
    found = ArrowStore(tmp_path / "s", default=default).get_many([9, 1, 7])
    assert found.missing == (9, 7)
    np.testing.assert_array_equal(
        found.rows.arrays["vector"],
        np.stack([default.arrays["vector"][0], arrays["vector"][0], default.arrays["vector"][0]]),
    )

    asked = []

    def compute(ids):
        asked.append(list(ids))
        return format.item_rows(rows(format, len(ids), seed=7), len(ids))

    found = ArrowStore(tmp_path / "s", compute=compute).get_many([9, 1, 7])
    assert asked == [[9, 7]]
    assert found.missing == (9, 7)
    np.testing.assert_array_equal(found.rows.arrays["vector"][[0, 2]], rows(format, 2, seed=7)["vector"])
    np.testing.assert_array_equal(found.rows.arrays["vector"][1], arrays["vector"][0])

    other = ItemRows(default.arrays, default.axes, 1, "b" * 64)
    with pytest.raises(BadFeatures, match="default row"):
        ArrowStore(tmp_path / "s", default=other)
    with pytest.raises(BadFeatures, match="did not answer one row"):
        ArrowStore(tmp_path / "s", compute=lambda _: default).get_many([9, 8])
    with pytest.raises(MariError, match="computing the rows of the items 9 failed: KeyError: 9"):
        ArrowStore(tmp_path / "s", compute=lambda ids: {}[ids[0]]).get_many([9, 1])


def test_ids_of_another_kind_are_refused(tmp_path):
    format = RowFormat(KEY, COLUMNS[:1])
    write(tmp_path / "s", format, ["a", "bb"], rows(format, 2))
    with pytest.raises(BadFeatures, match="ids are integers, and those of the store are texts"):
        ArrowStore(tmp_path / "s").get_many([1])
    with pytest.raises(MissingItems, match="much longer than any"):
        ArrowStore(tmp_path / "s").get_many(["much longer than any", "a"])
    with pytest.raises(UsageError, match="NUL"):
        ids_to_numpy(["a\0"])
    with pytest.raises(UsageError, match="above"):
        ids_to_numpy(np.array([2**63], np.uint64))
    with pytest.raises(UsageError, match="not Unicode"):
        ids_to_numpy(["a", "\ud800"])
    with pytest.raises(UsageError, match="ids are one text, 'abc'"):
        ids_to_numpy("abc")


def test_files_that_are_no_store(tmp_path, folder):
    with pytest.raises(ModelNotFound):
        open_store(tmp_path / "nothing.arrow")
    with pytest.raises(ModelError, match="no store of item rows"):
        open_store(folder / "item.onnx")
    format = RowFormat(KEY, COLUMNS)
    write(tmp_path / "s", format, [1, 2, 3], rows(format, 3))
    whole = (tmp_path / "s").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="no store of item rows"):
        open_store(tmp_path / "cut")


def test_redis_answers_what_the_file_has(tmp_path, redis_url):
    format = RowFormat(KEY, tuple(c for c in COLUMNS if c.dtype != "string"))
    ids = [5, -1, 2**62, 17]
    write(tmp_path / "s", format, ids, rows(format, 4))
    file = ArrowStore(tmp_path / "s")
    assert load(file, redis_url, "one") == 4
    store = RedisStore(redis_url, "one")
    asked = [17, 5, 17, -1, 2**62]
    for name, array in file.get_many(asked).rows.arrays.items():
        np.testing.assert_array_equal(store.get_many(asked).rows.arrays[name], array)
    with pytest.raises(MissingItems) as error:
        store.get_many([5, 6])
    assert error.value.ids == (6,)
    with pytest.raises(ModelNotFound):
        RedisStore(redis_url, "two")


def test_a_store_in_redis_is_switched_as_a_whole(tmp_path, redis_url):
    format = RowFormat(KEY, COLUMNS[:1])
    versions = []
    for seed in range(4):
        write(tmp_path / f"s{seed}", format, [1, 2], rows(format, 2, seed))
        load(ArrowStore(tmp_path / f"s{seed}"), redis_url, "switched")
        versions.append(RedisStore(redis_url, "switched"))
    for seed in (2, 3):  # who reads the store before the last one is still answered by it
        np.testing.assert_array_equal(
            versions[seed].get_many([1, 2]).rows.arrays["vector"], rows(format, 2, seed)["vector"]
        )
    with pytest.raises(StoreUnavailable, match="no longer has the rows"):
        versions[1].get_many([1])


def test_a_server_that_is_not_there():
    with pytest.raises(StoreUnavailable, match="does not answer"):
        RedisStore("redis://127.0.0.1:1/0", seconds=0.1)
    with pytest.raises(UsageError, match="no URL"):
        RedisStore("elsewhere")


def test_texts_do_not_go_to_redis(tmp_path, redis_url):
    format = RowFormat(KEY, COLUMNS)
    write(tmp_path / "s", format, [1], rows(format, 1))
    with pytest.raises(UsageError, match="title is a tensor of texts"):
        load(ArrowStore(tmp_path / "s"), redis_url)


def test_a_server_that_lost_its_rows_and_got_others_does_not_pass_them_off_as_the_old_ones(tmp_path, redis_url):
    import redis

    format, other = RowFormat(KEY, COLUMNS[:1]), RowFormat("b" * 64, COLUMNS[:1])
    for name, each, seed in (("old", format, 0), ("new", other, 1)):
        write(tmp_path / name, each, [1, 2], rows(each, 2, seed))
    client = redis.Redis.from_url(redis_url)
    client.flushall()
    load(ArrowStore(tmp_path / "old"), redis_url, "lost")
    store = RedisStore(redis_url, "lost")
    client.flushall()  # as after a start without its data
    load(ArrowStore(tmp_path / "new"), redis_url, "lost")
    client.close()
    with pytest.raises(StoreUnavailable, match="no longer has the rows"):
        store.get_many([1])


def test_two_loads_at_once_are_refused(tmp_path, redis_url):
    """Each would remove the other's rows as those of a load that was killed."""
    format = RowFormat(KEY, COLUMNS[:1])
    write(tmp_path / "s", format, [1, 2], rows(format, 2))
    store, blocks = ArrowStore(tmp_path / "s"), []

    def second():
        with pytest.raises(UsageError, match="another load of the store 'busy' is running"):
            load(ArrowStore(tmp_path / "s"), redis_url, "busy")
        blocks.append(1)
        yield from ArrowStore.blocks(store)

    store.blocks = second
    assert load(store, redis_url, "busy") == 2
    assert blocks == [1]
    assert RedisStore(redis_url, "busy").get_many([2, 1]).rows.count == 2
    del store.blocks
    assert load(store, redis_url, "busy") == 2


def test_messages_have_no_password():
    with pytest.raises(StoreUnavailable) as error:
        RedisStore("redis://user:secret@127.0.0.1:1/0?socket_timeout=1", seconds=0.1)
    assert "redis://127.0.0.1:1/0 does not answer" in str(error.value)
    assert "secret" not in str(error.value)
