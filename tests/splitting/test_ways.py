"""Which of several ways to split is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mari_onnx import engine
from mari_onnx.api import as_source, sides_of
from mari_onnx.choices import options_for
from mari_onnx.splitting.plan import Planner
from mari_onnx.splitting.timed import contenders, fastest
from mari_onnx.splitting.ways import Budget
from mari_onnx.splitting.work import Work
from tests.splitting.graphs import SIDES, three_sides


@pytest.fixture(scope="module")
def planned():
    """A planner, and the ways of a rewrite in which the item's part stays apart."""
    source = three_sides()
    options = replace(options_for(500, assume=True), split="apart", slower=frozenset())
    sides = sides_of(as_source(source), SIDES)
    made = engine.rewrite(source, sides, options)
    planner = Planner(source, sides, options.prices, 500, Budget(), "cpu")
    return planner, planner.ways([made])[0]


def choose(planner, monkeypatch, found):
    monkeypatch.setattr(planner, "_ways", lambda _: found)
    return planner.ways([None])[0]


def test_of_ways_that_take_as_long_the_one_that_leaves_least_work_then_the_one_of_fewest_bytes(planned, monkeypatch):
    planner, (way, *_) = planned
    ways = [
        replace(way, seconds=1.00, flops=120.0, item_bytes=100),
        replace(way, seconds=1.01, flops=100.0, item_bytes=800),
        replace(way, seconds=1.02, flops=100.4, item_bytes=400),
        replace(way, seconds=1.06, flops=50.0, item_bytes=50),
    ]
    first, *others = choose(planner, monkeypatch, ways)
    assert first.item_bytes == 400
    assert [each.item_bytes for each in others] == [100, 800, 50]


def test_points_are_what_no_other_beats_and_what_leaves_least(planned, monkeypatch):
    planner, (way, *_) = planned
    monkeypatch.setattr(planner, "_ways", lambda _: [
        replace(way, seconds=seconds, flops=flops, item_bytes=size)
        for seconds, flops, size in ((3.0, 9.0, 10), (2.0, 8.0, 20), (2.5, 8.0, 30), (2.1, 5.0, 40), (2.2, 5.0, 50))
    ])  # fmt: skip
    found = [(point.item_bytes, point.seconds, point.flops) for point in planner.ways([None])[1]]
    assert found == [(10, 3.0, 9.0), (20, 2.0, 8.0), (40, 2.1, 5.0)]


def test_what_is_timed(planned):
    _, (way, *_) = planned
    without = (way.rewrite.draft.stored["x"],)  # an input that is passed on
    ways = [
        replace(way, seconds=1.0, graph="a"),
        replace(way, seconds=1.04, graph="b"),
        replace(way, seconds=1.04, graph="b"),
        replace(way, seconds=1.06, graph="c"),
        replace(way, seconds=1.3, graph="d", rows=without),
        replace(way, seconds=1.31, graph="e", rows=without),
    ]
    assert [each.graph for each in contenders(ways)] == ["a", "d", "b"]
    ways[4] = replace(ways[4], seconds=1.4)
    ways[5] = replace(ways[5], seconds=1.4)
    assert [each.graph for each in contenders(ways)] == ["a", "b"]


def test_a_way_that_is_timed_is_one_of_those_given():
    source = as_source(three_sides())
    sides = sides_of(source, SIDES)
    options = options_for(7, assume=True)
    work = Work(source, sides, options, Budget(), True, None, None)
    work.rewritten(source.model, sides, options)
    ways = work.planner.ways([work.plan.way.rewrite])[0]
    placed = []

    def place(way):
        placed.append(way)
        return work._written(work.planner.made(way))

    assert fastest(ways[:2], place, source.model, sides, 7) in ways[:2]
    assert placed == ways[:2]


def test_ways_that_cannot_be_run_are_left_to_the_prices(tmp_path):
    source = as_source(three_sides())
    sides = sides_of(source, SIDES)
    assert fastest([None, None], lambda _: tmp_path, source.model, sides, 7) is None
