"""Does a candidate's score depend on the other candidates of the run? Found by running the source with candidates
together and apart.

In an output for several requests the candidates of all of them are the rows of one tensor. A Softmax over candidates,
a CumSum along them, their rank as a feature, or the mean of the user's rows would then be taken over all requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx

from mari_onnx import runtime
from mari_onnx.model.nodes import reads
from mari_onnx.model.ops import Fact, row
from mari_onnx.parity import float64
from mari_onnx.parity.coverage.empty import fragile, survivors
from mari_onnx.parity.requests.bags import joined
from mari_onnx.parity.requests.draw import Drawer
from mari_onnx.parity.requests.request import Request

if TYPE_CHECKING:
    import onnxruntime

    from mari_onnx.parity.domains.domains import Domains
    from mari_onnx.parity.layout import Layout
    from mari_onnx.runtime import ModelLike

COUNTS = ((5, 3), (5, 3), (2, 1), (1, 1))
"""Candidates of the two requests that are run together and apart. Many may have the same largest element (by which
a dynamic quantization scales) apart and together, few have not; one alone is not what every source runs on, and last.
"""
TRIES = 5
"""Requests that are drawn for one on which a recurrence does not end the process."""
CLOSE = 1e-4
"""How far apart, of the largest element, outputs of a float64 run may be; beyond, candidates mix."""


def _over_all_rows(source: ModelLike) -> str | None:
    """A node that combines all rows of a run, which the values of a single run may not show: a dynamic quantization,
    whose scale is that of all rows, and an If or a Loop whose condition is computed from data.
    """
    graph = float64.light(source).graph
    given = {i.name for i in graph.input} - {t.name for t in graph.initializer}
    for node in graph.node:
        facts = row(node.op_type).facts
        if Fact.SIZES in facts or not any(name in given for name in reads(node)):
            continue
        if Fact.ONE_SCALE in facts:
            why = "scales by the extremes of all rows, so a score depends on other candidates"
            return f"{node.op_type} {node.name!r} {why}"
        deciding = 1 if node.op_type == "If" else 2 if node.op_type == "Loop" else 0
        if any(name in given for name in node.input[:deciding]):
            why = "takes a decision that is computed from all rows of a run, so requests cannot be told apart"
            return f"{node.op_type} {node.name!r} {why}"
        given.update(node.output)
    return None


def mixes(source: ModelLike, layout: Layout, domains: Domains) -> str | None:
    """Where candidates mix, in a few words; None where they do not, or where no run tells."""
    shared = _over_all_rows(source)
    if shared is not None:
        return shared
    drawer = Drawer(layout, domains, [0, 5])
    free = {name: 5 + k for k, name in enumerate(layout.free)}
    model = float64.light(source)
    tries = TRIES if fragile([model]) else 1
    pairs: list[tuple[Request, Request, str]] = []
    for counts in COUNTS:
        drawn = ((drawer.request(n, free=free) for _ in range(tries)) for n in counts)
        found = [next((r for r in several if survivors(model, [r])), None) for several in drawn]
        first, second = found
        if first is None or second is None:
            continue
        own = {name for name in second.user if _has_rows(layout, name) or name in layout.sides.listed}
        theirs = {k: v if k in own else first.user[k] for k, v in second.user.items()}
        pairs.append((first, replace(second, user=first.user, literal=first.literal), ""))
        pairs.append((first, replace(second, user=theirs, literal=first.literal), " of another user"))
    for (first, second, whose), runs in zip(pairs, _runs(source, [p[:2] for p in pairs], layout, None), strict=False):
        for k, output in enumerate(model.graph.output):
            if not together(*(run[k] for run in runs)):
                where = _first(source, model, (first, second), layout)
                see = f"; the first node that does so is {where}" if where else ""
                return f"output {output.name} of a candidate depends on other candidates{whose} in the same run{see}"
    return None


def together(both: np.ndarray, a: np.ndarray, b: np.ndarray) -> bool:
    """Whether an output of both requests is that of one behind that of the other, or the same in all."""
    if both.shape == a.shape == b.shape:
        return _close(both, a) and _close(both, b)
    if not both.ndim == a.ndim == b.ndim:
        return False
    for axis in range(both.ndim):
        fits = a.shape[axis] + b.shape[axis] == both.shape[axis]
        if fits and len({tuple(np.delete(x.shape, axis)) for x in (both, a, b)}) == 1:
            return _close(both, np.concatenate([a, b], axis))
    return False


def _close(have: np.ndarray, want: np.ndarray) -> bool:
    if have.dtype.kind not in "fc":
        return bool(np.array_equal(have, want))
    scale = float(np.abs(want[np.isfinite(want)]).max(initial=0))
    return bool(np.allclose(have, want, rtol=CLOSE, atol=CLOSE * max(scale, 1e-30), equal_nan=True))


def _runs(
    source: ModelLike, pairs: Sequence[tuple[Request, Request]], layout: Layout, names: list[str] | None
) -> Iterator[list[list[np.ndarray]]]:
    """For each pair the outputs, or the named tensors, of both requests in one run of the source and in one each.

    In float64, or if that fails as the source is. Ends where that fails too, as a check then has to tell.
    """
    for runner in (float64.float64(source, outputs=names), _as_it_is(source, names)):
        with suppress(Exception), runner as run:
            for pair in pairs:
                feeds = [_rows(layout, pair), *(r.feed(layout.signature.inputs) for r in pair)]
                yield [[np.asarray(x) for x in run.run(feed)] for feed in feeds]
            return


class _Session:
    def __init__(self, session: onnxruntime.InferenceSession):
        self.session = session

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return runtime.run(self.session, dict(feed), "the source")


@contextmanager
def _as_it_is(source: ModelLike, names: list[str] | None) -> Iterator[_Session]:
    """The source, with the named tensors as outputs."""
    model = source
    if names is not None:
        model = onnx.ModelProto()
        model.CopyFrom(float64.light(source))
        float64.expose(model, names)
    yield _Session(runtime.session(model, optimize=False, what="the source"))


def _has_rows(layout: Layout, name: str) -> bool:
    """Whether the source takes an input with a row for each candidate."""
    axis, shape = layout.axis_of(name), layout.signature.input(name).shape
    return axis is not None and name not in layout.whole and len(shape) > axis and shape[axis] != 1


def _rows(layout: Layout, requests: Sequence[Request]) -> Mapping[str, np.ndarray]:
    """The candidates of all requests behind each other, each with the rows of its user where the source takes rows."""
    feeds = [r.feed(layout.signature.inputs) for r in requests]
    found = {}
    for each in layout.signature.inputs:
        arrays = [feed[each.name] for feed in feeds]
        if layout.is_count(each.name):
            found[each.name] = np.sum(arrays, 0).astype(each.dtype)
        elif _has_rows(layout, each.name):
            axis = layout.axis_of(each.name)
            found[each.name] = np.concatenate(arrays, axis if axis is not None else 0)
        else:
            found[each.name] = arrays[0]
    return {**found, **joined(feeds, layout.sides.bags)}


def _first(
    source: ModelLike, model: onnx.ModelProto, pair: tuple[Request, Request], layout: Layout
) -> str | None:
    """The first node of the source whose result mixes candidates, as `name (operator)`."""
    made = {o: node for node in model.graph.node for o in node.output if o}
    for runs in _runs(source, [pair], layout, list(made)):
        for (name, node), both, a, b in zip(made.items(), *runs, strict=True):
            if both.dtype.kind == "f" and both.size and not together(both, a, b):
                return f"{node.name or name} ({node.op_type})"
    return None
