"""What must hold for every case with several requests in one run: the outputs are those of separate runs of the source,
or the model is refused with a reason: by the engine, or because candidates mix.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np

from mari_onnx.engine import Options, Rewrite, rewrite
from mari_onnx.model.signature import signature
from mari_onnx.parity.domains.domains import domains
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.several.mixing import mixes
from mari_onnx.sides.resolve import Sides
from tests.engine.graphs import N, run
from tests.fuzz.case import Case
from tests.fuzz.oracle import TOLERANCE, Fault, _by_onnxruntime, _shaky, differs, kept, session, strictly

RUNS = ((1, 3), (2, 1), (7, 2), (2, 5))
"""Requests in a run, and candidates of each."""


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
    for size, n in RUNS:
        bad = _different(case, sides, result, size, n, seen)
        if bad is None:
            continue
        layout = Layout(signature(case.model), sides)
        if mixes(case.model, layout, domains(case.model, layout)[0]):
            seen["refused: candidates mix"] += 1
            return
        if session(case.model) is None:
            seen["onnxruntime does not take the source, so there is no check"] += 1
            return
        if "shape" not in bad and "dtype" not in bad and _shaky(case, n, np.dtype(case.graph.dtype).name):
            seen["ill-conditioned"] += 1
            return
        raise Fault("several", f"{form}, {size} requests of {n}: {bad}")
    seen[f"equal, {form}"] += 1


def _rewritten(case: Case, sides: Sides) -> Rewrite:
    try:
        with strictly(False), kept():
            return rewrite(case.model, sides, Options(candidates=case.candidates))
    except Exception as error:
        raise Fault("crash", f"{type(error).__name__}: {error}") from error


def _different(case: Case, sides: Sides, result: Rewrite, size: int, n: int, seen: Counter[str]) -> str | None:
    """How a run of several requests differs from separate runs of the source."""
    graph, kind = case.graph, np.dtype(case.graph.dtype).name
    requests = [graph.feeds(n, once=True, request=k + 1) for k in range(size)]
    try:
        want = [run(case.model, graph.feeds(n, request=k + 1)) for k in range(size)]
    except Exception:
        seen["source does not run"] += 1
        return None
    feed = {}
    for name, given in graph.inputs.items():
        arrays = [request[name] for request in requests]
        if given.side == "user" and given.shape[:1] == (N,):
            arrays = [array[0] for array in arrays]
        feed[name] = np.stack(arrays)
    try:
        have = run(result.model, feed)
    except Exception as error:
        found = _by_onnxruntime(result.model, feed)
        if found is None:
            return f"does not run: {type(error).__name__}: {str(error)[:200]}"
        have = found
    for k, name in enumerate(graph.outputs):
        bad = differs(np.stack([outputs[k] for outputs in want]), have[k], TOLERANCE[kind])
        if bad is not None:
            return f"{bad} ({name})"
    return None
