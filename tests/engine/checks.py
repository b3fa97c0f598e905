"""A graph and its rewrite: are their outputs equal, and what became of each node?

`check` rewrites a graph and compares it with its source by onnx's reference evaluator. `lifted` checks that nothing of
the user's part is computed again for each candidate, and counts multiply-adds. `actions` and `reasons` read the report.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mari_onnx import engine
from mari_onnx.engine import Options, Rewrite, rewrite
from mari_onnx.engine.cost.flops import Cost
from mari_onnx.prices.table import Prices
from tests.engine.graphs import Graph, run, runner

COUNTS = (1, 3, 7)
"""Numbers of candidates at which outputs are compared."""


@contextmanager
def unweighed() -> Iterator[None]:
    """Rewrites are kept though they save nothing, so the source is not compared with itself."""
    costs = itertools.cycle((Cost(1.0), Cost(0.0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_cost", lambda *_: next(costs))
        patch.setattr(engine, "GROWTH", float("inf"))
        yield


def check(
    g: Graph,
    counts: Sequence[int] = COUNTS,
    candidates: int = 500,
    weighed: bool = False,
    tolerance: float = 1e-9,
    skip: frozenset[str] = frozenset(),
    expect: Expected | None = None,
    prices: Prices | None = None,
) -> Rewrite:
    """Rewrite, and compare with the source at each N. Answers the rewrite.

    prices: of kernels, by which the engine then chooses.
    expect: what has to have become of every node beside, so that a rule that only ever declines fails the test:
        "batched": no node was merely copied on inputs that are written out
        "split": the same, and an operator was taken apart into the user's part and the candidates'
        "lifted": the same as "batched", and nothing of the user's part is computed for each candidate
    """
    source = g.model()
    onnx.checker.check_model(source)
    before = source.SerializeToString(deterministic=True)
    options = Options(candidates=candidates, skip=skip, prices=prices)
    if weighed:
        result = rewrite(source, g.sides, options)
    else:
        with unweighed():
            result = rewrite(source, g.sides, options)
    assert source.SerializeToString(deterministic=True) == before, "the source was written to"
    onnx.checker.check_model(result.model)
    for what, was, new in (
        ("inputs", source.graph.input, result.model.graph.input),
        ("outputs", source.graph.output, result.model.graph.output),
    ):
        before_, after = ([(i.name, i.type.tensor_type.elem_type) for i in each] for each in (was, new))
        assert before_ == after, f"names, order or types of the {what} changed: {before_} -> {after}"
    before_runner, after_runner = runner(source), runner(result.model)
    for n in (g.fixed,) if g.fixed else counts:
        want, have = before_runner(g.feeds(n)), after_runner(g.feeds(n, once=result.changed))
        for name, a, b in zip(g.outputs, want, have, strict=True):
            same(a, b, tolerance, f"output {name!r} at N={n}")
    if expect is not None:
        expected(g, result, expect)
    return result


Expected = Literal["batched", "split", "lifted"]


def expected(g: Graph, result: Rewrite, expect: Expected) -> None:
    """Fails, with a line for each node that is not what `check` was told to expect."""
    copied = [r for r in result.nodes if r.rule == "default" or r.action == "barrier"]
    lines = [f"  {r.op} {r.name!r} was only copied: {r.reason or 'no reason given'}" for r in copied]
    assert not lines, "\n".join([f"expected {expect}, but", *lines])
    if expect == "split":
        found = [f"  {r.op} {r.name!r}: {r.action}, rule {r.rule}" for r in result.nodes]
        assert any(r.action == "split" for r in result.nodes), "\n".join(["no operator was split:", *found])
    if expect == "lifted":
        lifted(g, result)


def same(want: np.ndarray, have: np.ndarray, tolerance: float, where: str) -> None:
    """Fails where shapes, types or values differ by more than the tolerance, and says where and by how much."""
    assert want.shape == have.shape, f"{where}: the rewrite has shape {have.shape}, the source {want.shape}"
    assert want.dtype == have.dtype, f"{where}: the rewrite has type {have.dtype}, the source {want.dtype}"
    scale = (
        max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0)))
        if want.dtype.kind == "f"
        else 0
    )
    np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance * scale, err_msg=where)


# ---- what is left to do for each candidate --------------------


def traced(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of a run."""
    open_ = onnx.ModelProto()
    open_.CopyFrom(model)
    del open_.graph.output[:]
    names = [o for node in model.graph.node for o in node.output if o]
    open_.graph.output.extend(onnx.ValueInfoProto(name=o) for o in names)
    found = dict(zip(names, run(open_, feeds), strict=True))
    found.update({i.name: numpy_helper.to_array(i) for i in model.graph.initializer})
    return found | dict(feeds)


def macs(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> int:
    """Multiply-adds of the products of a run."""
    seen = traced(model, feeds)
    total = 0
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            inner = seen[node.input[0]].shape[
                0 if any(a.name == "transA" and a.i for a in node.attribute) else -1
            ]
            total += seen[node.output[0]].size * inner
        counted = node.op_type != "Conv" and (node.op_type != "Einsum" or len(node.input) == 1)
        assert counted, "not counted here"
    return total


def macs_each(g: Graph, result: Rewrite) -> float:
    """Multiply-adds of products that one more candidate costs."""
    few, many = (macs(result.model, g.feeds(n, once=result.changed)) for n in (3, 7))
    return (many - few) / 4


MOVES = {
    "Expand",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Concat",
    "Split",
    "Identity",
    "Flatten",
}


def repeated(g: Graph, result: Rewrite) -> list[str]:
    """Operators on the user's data alone that compute the more, the more candidates there are."""
    mine = {n for n, i in g.inputs.items() if i.side != "user"}
    few, many = (traced(result.model, g.feeds(n, once=result.changed)) for n in (3, 7))
    free: set[str] = {n for n, i in g.inputs.items() if i.side == "user"}
    found = []
    for node in result.model.graph.node:
        if node.op_type in ("Shape", "Size"):
            continue
        if any(i in mine for i in node.input):
            mine.update(node.output)
        elif any(i in free for i in node.input):
            free.update(node.output)
            if node.op_type not in MOVES and any(
                few[o].shape != many[o].shape for o in node.output if o
            ):
                shape = list(many[node.output[0]].shape)
                found.append(f"{node.op_type} {node.name!r} {shape} at 7 candidates")
    return found


def lifted(g: Graph, result: Rewrite | None = None, per_candidate: int | None = None) -> Rewrite:
    """Checked, and nothing of the user's part is computed again for each candidate."""
    result = result or check(g)
    assert result.changed, f"the model was left as it is: {result.reason}"
    again = repeated(g, result)
    why = "".join(f"\n  {r.op} {r.name!r} was only copied: {r.reason}" for r in result.nodes if r.rule == "default")
    assert not again, f"computed again for each candidate, though they read user inputs only: {', '.join(again)}{why}"
    if per_candidate is not None:
        each = macs_each(g, result)
        assert each == per_candidate, (
            f"one more candidate costs {each:g} multiply-adds in products, and {per_candidate} were expected:\n"
            f"{products(g, result)}"
        )
    return result


def products(g: Graph, result: Rewrite) -> str:
    """The products of a rewrite, a line each: operator, name, shapes at N = 7."""
    seen = traced(result.model, g.feeds(7, once=result.changed))
    rows = [n for n in result.model.graph.node if n.op_type in ("MatMul", "Gemm")]
    shown = [(n, *(list(seen[x].shape) for x in (n.input[0], n.input[1], n.output[0]))) for n in rows]
    return "\n".join(f"  {n.op_type} {n.name!r}: {a} x {b} -> {out}" for n, a, b, out in shown) or "  none"


def actions(result: Rewrite) -> dict[str, list[str]]:
    """Actions by operator of the source."""
    assert result.nodes, f"the engine looked at no node: {result.reason}"
    found: dict[str, list[str]] = {}
    for report in result.nodes:
        found.setdefault(report.op, []).append(report.action)
    return found


def reasons(result: Rewrite) -> dict[str, list[str]]:
    """Reasons by operator of the source; "" for a node that has none."""
    assert result.nodes, f"the engine looked at no node: {result.reason}"
    found: dict[str, list[str]] = {}
    for report in result.nodes:
        found.setdefault(report.op, []).append(report.reason or "")
    return found
