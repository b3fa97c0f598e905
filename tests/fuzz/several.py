"""What must hold for every case with several requests in one run: the outputs are those of separate runs of the source,
or the model is refused with a reason: by the engine, or because candidates mix.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mari_onnx.api import optimize
from mari_onnx.engine import Options, Rewrite, rewrite
from mari_onnx.errors import MariError
from mari_onnx.model.signature import signature
from mari_onnx.parity.coverage.empty import ran
from mari_onnx.parity.domains.domains import domains
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.several.mixing import mixes
from mari_onnx.sides.resolve import Sides
from tests.engine.graphs import Graph, N, run
from tests.fuzz.case import Case
from tests.fuzz.oracle import TOLERANCE, Fault, _by_onnxruntime, _shaky, differs, kept, session, strictly

RUNS = ((3,), (1, 1), (2,) * 7, (5, 5))
"""The candidates of each request of a run."""
UNEVEN = ((3,), (1, 4), (2, 1, 3, 2, 5, 1, 2), (5, 2))
"""The same where requests need not have equally many; one without any is put among them."""


def judge_several(case: Case, form: str, tally: Counter[str] | None = None) -> None:
    """Raises `Fault`. Counts in ``tally`` what was compared, and what was refused and why."""
    seen: Counter[str] = Counter() if tally is None else tally
    sides = replace(case.graph.sides, batched=form)
    if not sides or case.graph.fixed or case.graph.axis:
        seen["not for several requests"] += 1
        return
    result = _rewritten(case, sides)
    if not result.changed:
        seen["refused: " + re.sub(r"'?[a-z][0-9]+'?", "#", str(result.reason))[:90]] += 1
        return
    for counts in RUNS if form == "grid" else UNEVEN:
        size, n = len(counts), max(counts)
        bad = _different(case, sides, result, counts, seen)
        if bad is None:
            continue
        layout = Layout(signature(case.model), sides)
        if mixes(case.model, layout, domains(case.model, layout)[0]):
            seen["refused: candidates mix"] += 1
            return
        if session(case.model) is None:
            seen["onnxruntime does not take the source, so there is no check"] += 1
            return
        told = _told(case, sides)
        if told is not None:
            seen[f"told by the check: {told}"] += 1
            return
        if "shape" not in bad and "dtype" not in bad and _shaky(case, n, np.dtype(case.graph.dtype).name):
            seen["ill-conditioned"] += 1
            return
        raise Fault("several", f"{form}, {size} requests of {', '.join(map(str, counts))}: {bad}")
    bad = _without_requests(case, sides, result, seen)
    if bad is not None:
        raise Fault("several", f"{form}, no request: {bad}")
    seen[f"equal, {form}"] += 1


def _told(case: Case, sides: Sides) -> str | None:
    """What kind of refusal a user gets who asks for this output with the check; None if he gets the output."""
    try:
        optimize(case.model, case.graph.sides, batched=sides.batched, providers=("cpu",))
    except MariError as error:
        return type(error).__name__
    return None


def _rewritten(case: Case, sides: Sides) -> Rewrite:
    try:
        with strictly(False), kept():
            return rewrite(case.model, sides, Options(candidates=case.candidates))
    except Exception as error:
        raise Fault("crash", f"{type(error).__name__}: {error}") from error


def _different(
    case: Case, sides: Sides, result: Rewrite, counts: Sequence[int], seen: Counter[str]
) -> str | None:
    """How a run of several requests differs from separate runs of the source."""
    graph, kind = case.graph, np.dtype(case.graph.dtype).name
    try:
        want = [run(case.model, graph.feeds(n, request=k + 1)) for k, n in enumerate(counts)]
    except Exception:
        seen["source does not run"] += 1
        return None
    requests = [graph.feeds(n, once=True, request=k + 1) for k, n in enumerate(counts)]
    feed = _grid(graph, requests) if sides.batched == "grid" else _rows(graph, requests, counts, sides)
    try:
        have = run(result.model, feed)
    except Exception as error:
        found = _by_onnxruntime(result.model, feed)
        if found is None:
            return f"does not run: {type(error).__name__}: {str(error)[:200]}"
        have = found
    for k, name in enumerate(graph.outputs):
        mine = [outputs[k] for outputs in want]
        try:
            together = np.stack(mine) if sides.batched == "grid" else _behind(mine, counts, have[k], sides)
        except ValueError as error:
            return f"an output's shape: {error} ({name})"
        bad = differs(together, have[k], TOLERANCE[kind])
        if bad is not None:
            return f"{bad} ({name})"
    return None


def _without_requests(case: Case, sides: Sides, result: Rewrite, seen: Counter[str]) -> str | None:
    """What is wrong with a run of no request at all: a dimension of an output is twice that of a run of one request
    less that of a run of two, each of two candidates.
    """
    graph, runs = case.graph, []
    for size in (1, 2):
        requests = [graph.feeds(2, once=True, request=k + 1) for k in range(size)]
        counts = (2,) * size
        runs.append(_grid(graph, requests) if sides.batched == "grid" else _rows(graph, requests, counts, sides, False))
    nothing = {name: value[: name == "request_offsets"] for name, value in runs[0].items()}
    try:
        one, two = (run(result.model, feed) for feed in runs)
    except Exception:
        seen["no request: the evaluator does not run"] += 1
        return None
    try:
        have = run(result.model, nothing)
    except Exception:  # numpy knows no largest element of nothing
        seen[f"no request: onnxruntime {ran(result.model, nothing)}"] += 1
        return None
    for name, a, b, mine in zip(graph.outputs, one, two, have, strict=True):
        want = [2 * x - y for x, y in zip(a.shape, b.shape, strict=True)]
        if list(mine.shape) != want:
            return f"an output's shape: {list(mine.shape)}, not {want} ({name})"
    seen["no request: of the right shape"] += 1
    return None


def _user_rows(graph: Graph, requests: Sequence[dict[str, np.ndarray]], name: str) -> list[np.ndarray]:
    """A user's input of all requests, without the dimension of his rows."""
    given = graph.inputs[name]
    rows = given.side == "user" and given.shape[:1] == (N,)
    return [request[name][0] if rows else request[name] for request in requests]


def _grid(graph: Graph, requests: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack(_user_rows(graph, requests, name)) for name in graph.inputs}


def _order(counts: Sequence[int], sides: Sides) -> np.ndarray:
    """Where the candidates of a run stand: with an index in any order."""
    rows = np.arange(sum(counts))
    return rows if sides.batched == "offsets" else np.random.default_rng(len(counts)).permutation(rows)


def _rows(
    graph: Graph,
    requests: Sequence[dict[str, np.ndarray]],
    counts: Sequence[int],
    sides: Sides,
    bare: bool = True,
) -> dict[str, np.ndarray]:
    """The feed of a run. bare: request 1, counted from 0, is one without candidates."""
    users = [*requests[:1], requests[-1], *requests[1:]] if bare else requests
    sizes = [*counts[:1], 0, *counts[1:]] if bare else counts
    feed, order = {}, _order(counts, sides)
    for name, given in graph.inputs.items():
        if given.side in ("item", "cross", "packed"):
            feed[name] = np.concatenate([request[name] for request in requests])[order]
        else:
            feed[name] = np.stack(_user_rows(graph, users, name))
    if sides.batched == "index":
        feed["request_index"] = np.repeat(np.arange(len(sizes)), sizes)[order].astype(np.int32)
    else:
        feed["request_offsets"] = np.cumsum([0, *sizes]).astype(np.int32)
    return feed


def _behind(mine: Sequence[np.ndarray], counts: Sequence[int], have: np.ndarray, sides: Sides) -> np.ndarray:
    """The output of all requests: a row for each of them, or the rows of all candidates, along any dimension."""
    if have.ndim == mine[0].ndim + 1:
        return np.stack([*mine[:1], mine[-1], *mine[1:]])
    total, order = sum(counts), _order(counts, sides)
    for axis in range(have.ndim):
        each = have.shape[axis] // total
        if each and all(x.shape[axis] == n * each for x, n in zip(mine, counts, strict=True)):
            rows = np.concatenate(mine, axis)
            if rows.shape == have.shape:
                rest = rows.shape[axis + 1 :]
                return np.take(rows.reshape(*rows.shape[:axis], total, each, *rest), order, axis).reshape(have.shape)
    raise ValueError(f"{list(have.shape)} for {[list(x.shape) for x in mine]}")
