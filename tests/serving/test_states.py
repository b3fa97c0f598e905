"""States of users: made once, of one model, no longer than they may be kept."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mari_onnx.serving.states import StateCache, fingerprint
from mari_onnx.splitting.rows import UserState


def state(value: float = 0.0, size: int = 10) -> UserState:
    return UserState({"s": np.full(size, value)}, "model")


def test_a_state_is_made_once_for_all_who_wait():
    cache, made, go = StateCache(), [], threading.Event()

    def make():
        go.wait(5)
        made.append(1)
        return state(3)

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(cache.get, "u", "m", make) for _ in range(8)]
        while cache.counts.joined < 7:
            pass
        go.set()
        found = [each.result() for each in waiting]
    assert len(made) == 1
    assert sum(not there for _, there in found) == 1
    assert {id(each) for each, _ in found} == {id(found[0][0])}


def test_what_fails_is_raised_to_all_and_not_kept():
    cache = StateCache()

    def fail():
        raise ValueError("no features")

    for _ in range(2):
        with pytest.raises(ValueError, match="no features"):
            cache.get("u", "m", fail)
    assert cache.get("u", "m", state)[1] is False
    assert cache.counts.misses == 3


def test_states_grow_old_and_make_room():
    now = [0.0]
    cache = StateCache(max_bytes=1000, seconds=10, timer=lambda: now[0])
    cache.get("a", "m", state)
    assert cache.get("a", "m", state)[1]
    now[0] = 11
    assert not cache.get("a", "m", state)[1]
    for user in "bcd":
        cache.get(user, "m", state)
    assert cache.bytes <= 1000
    assert not cache.get("a", "m", state)[1]
    big = lambda: state(size=500)  # noqa: E731
    assert [cache.get("big", "m", big)[1] for _ in range(2)] == [False, False]


def test_another_model_or_other_features_make_another_state():
    cache = StateCache()
    one, other = ({"x": np.array([v], np.float32)} for v in (1, 2))
    assert cache.get("u", "m", lambda: state(1), fingerprint(one))[0].arrays["s"][0] == 1
    assert cache.get("u", "m2", lambda: state(5), fingerprint(one))[0].arrays["s"][0] == 5
    assert cache.get("u", "m", lambda: state(2), fingerprint(other))[0].arrays["s"][0] == 2
    found, there = cache.get("u", "m", lambda: state(9))  # a caller without features takes what there is
    assert (found.arrays["s"][0], there) == (2, True)
    cache.drop("u")
    assert cache.get("u", "m", lambda: state(9))[1] is False


def test_fingerprints_tell_features_apart():
    base = {"a": np.zeros((1, 2), np.float32), "t": np.array([["x", "yz"]], object)}
    changed = [
        {**base, "a": np.zeros((2, 1), np.float32)},
        {**base, "a": np.zeros((1, 2), np.int32)},
        {**base, "t": np.array([["xy", "z"]], object)},
        {**base, "t": np.array([["x", "y\ud800"]], object)},
        {"b": base["a"], "t": base["t"]},
    ]
    assert len({fingerprint(each) for each in [base, *changed]}) == 6
    assert fingerprint({k: v.copy() for k, v in base.items()}) == fingerprint(base)


def made_late(cache, value, features, meanwhile):
    """A call whose state is being made while `meanwhile` runs."""
    begun, go = threading.Event(), threading.Event()

    def make():
        begun.set()
        go.wait(5)
        return state(value)

    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(cache.get, "u", "m", make, features)
        begun.wait(5)
        meanwhile()
        go.set()
        return late.result()


def test_a_state_of_older_features_that_is_made_late_does_not_replace_a_newer_one():
    cache = StateCache()
    late, _ = made_late(cache, 1, "old", lambda: cache.get("u", "m", lambda: state(2), "new"))
    assert late.arrays["s"][0] == 1
    assert cache.get("u", "m", state)[0].arrays["s"][0] == 2


def test_a_state_that_is_made_while_the_user_is_dropped_is_not_kept():
    cache = StateCache()
    made_late(cache, 1, "features", lambda: cache.drop("u"))
    found, there = cache.get("u", "m", lambda: state(2))
    assert (found.arrays["s"][0], there) == (2, False)


def test_a_state_without_room_leaves_none_of_older_features():
    cache = StateCache(max_bytes=1000)
    cache.get("u", "m", state, "old")
    cache.get("u", "m", lambda: state(size=500), "new")
    assert cache.get("u", "m", state)[1] is False
