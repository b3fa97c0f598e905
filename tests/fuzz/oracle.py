"""What must hold for every case: no exception, a valid model that onnxruntime loads, and the source's numbers."""

from __future__ import annotations

import os
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeAlias
from zlib import crc32

import numpy as np
import onnx
import pytest

from mari_onnx import engine
from mari_onnx.engine import Options, Rewrite, interpreter, rewrite
from mari_onnx.engine.rules import dequantized, quantized
from mari_onnx.parity.assumptions import Refuted, settle
from mari_onnx.parity.float64 import float64
from tests.engine.checks import unweighed
from tests.engine.graphs import Graph, run, runner
from tests.fuzz.case import Case

TOLERANCE = {"float64": 1e-9, "float32": 3e-5, "float16": 3e-2, "bfloat16": 2e-1}
Run: TypeAlias = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]
TIMES = 16
"""How many times the source's own error an output may have."""
NEAR = 8
"""Inputs beside those that are compared, at which the source's error is measured where it may be small by chance."""
ROUNDING = {"float64": 1e-13, "float32": 1e-7, "float16": 5e-4, "bfloat16": 4e-3}
"""How far the arithmetic of a type is off at each step."""


class Fault(AssertionError):
    """A case that fails.

    kind: crash, trip, invalid, signature, load, wrong, nan, empty (at N = 0), finite (in one alone), cancels, written.
    """

    def __init__(self, kind: str, what: str):
        super().__init__(f"{kind}: {what}")
        self.kind, self.what = kind, what

    @property
    def signature(self) -> str:
        """The same for the same fault, as far as that can be told."""
        return f"{self.kind}: {re.sub(r'[0-9]+|<[^>]*>', '#', self.what)[:120]}"


@contextmanager
def kept() -> Iterator[None]:
    """Rewrites are kept though they save nothing, so that what is compared is never the source itself."""
    outcome = interpreter.outcome

    def moved(*args: Any) -> interpreter.NodeReport:
        return replace(outcome(*args), action="lifted")

    with unweighed(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "outcome", moved)
        patch.setattr(quantized, "apart", lambda *_: True)  # however few columns there are
        patch.setattr(dequantized, "apart", lambda *_: True)
        patch.setattr(dequantized, "start_pays", lambda *_: True)
        patch.setattr(quantized, "_enough", lambda *_: True)
        yield


@contextmanager
def strictly(on: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "STRICT", on)
        yield


def judge(case: Case, tally: Counter[str] | None = None) -> None:
    """Raises `Fault`. Counts in ``tally`` what was compared."""
    seen: Counter[str] = Counter() if tally is None else tally
    before = case.model.SerializeToString(deterministic=True)
    result = _rewritten(case)
    if case.model.SerializeToString(deterministic=True) != before:
        raise Fault("written", "the source was written to")
    seen["changed" if result.changed else "unchanged"] += 1
    seen["something is assumed"] += bool(result.assumptions)
    for report in result.nodes:
        if report.reason and report.reason.startswith("the rule failed"):
            raise Fault("trip", f"{report.op}: {report.reason}")
    if not result.changed:
        return
    _valid(case, result)
    source, output = runner(case.model), runner(result.model)
    for n in case.counts:
        _equal(case, result, n, seen, source, output)
    _loads(case, result, seen)
    if np.dtype(case.graph.dtype).name in ("float32", "float64") and not case.graph.columns:
        _finite(case, seen)
    if np.dtype(case.graph.dtype).name == "float32":
        _as_precise(case, result, seen)


def _left_alone(case: Case) -> frozenset[str] | None:
    """Of a third of the cases a fifth of the nodes, as time or the check may choose any."""
    if case.candidates % 3:
        return None
    names = (node.name or node.output[0] for node in case.model.graph.node)
    return frozenset(name for name in names if crc32(name.encode()) % 5 == 0)


def _rewritten(case: Case) -> Rewrite:
    """What is assumed is verified as `optimize` does it, by onnx's evaluator."""
    options = Options(candidates=case.candidates, assume=True, slower=_left_alone(case))
    with strictly(case.strict), nullcontext() if case.weighed else kept():
        try:
            made, _ = settle(
                case.model,
                options,
                lambda options: rewrite(case.model, case.graph.sides, options),
                lambda made: refuted(case.graph, case.model, made, TOLERANCE[np.dtype(case.graph.dtype).name]),
            )
            return made
        except Exception as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "mari_onnx" in f.filename]
            where = f"{os.path.basename(frames[-1].filename)} {frames[-1].name}" if frames else ""
            kind = "trip" if case.strict else "crash"
            raise Fault(kind, f"{type(error).__name__} in {where}: {error}") from error


def refuted(g: Graph, source: onnx.ModelProto, made: Rewrite, tolerance: float) -> Refuted | None:
    """What runs at one candidate say against the assumptions of a rewrite."""
    if not made.assumptions:
        return None
    try:
        want = run(source, g.feeds(1))
    except Exception as error:
        return Refuted(f"the source fails at N = 1: {error}")
    try:
        have = run(made.model, g.feeds(1, once=True))
    except Exception as error:
        return Refuted(f"the rewrite fails at N = 1: {error}")
    bad = {name for name, a, b in zip(g.outputs, want, have, strict=True) if differs(a, b, tolerance)}
    return Refuted("outputs differ at N = 1", bad) if bad else None


def _valid(case: Case, result: Rewrite) -> None:
    try:
        onnx.checker.check_model(result.model, full_check=False)
    except Exception as error:
        raise Fault("invalid", str(error)) from error
    for was, new in (
        (case.model.graph.input, result.model.graph.input),
        (case.model.graph.output, result.model.graph.output),
    ):
        pairs = [[(i.name, i.type.tensor_type.elem_type) for i in infos] for infos in (was, new)]
        if pairs[0] != pairs[1]:
            raise Fault("signature", f"{pairs[1]} was {pairs[0]}")


def _equal(case: Case, result: Rewrite, n: int, seen: Counter[str], source: Run, output: Run) -> None:
    """By the reference evaluator, in the model's own type."""
    feeds, once = case.graph.feeds(n), case.graph.feeds(n, once=True)
    kind = np.dtype(case.graph.dtype).name
    try:
        want = source(feeds)
    except Exception:
        seen["source does not run"] += 1
        return
    try:
        have = output(once)
    except Exception as error:
        # some of the evaluator's kernels do not broadcast (Mean) or take no empty tensor
        found = _by_onnxruntime(result.model, once)
        if found is None:
            what = f"does not run at N={n}: {type(error).__name__}: {str(error)[:200]}"
            raise Fault("wrong" if n else "empty", what) from error
        have = found
    for name, a, b in zip(case.graph.outputs, want, have, strict=True):
        bad = differs(a, b, TOLERANCE[kind])
        if bad is None or (n == 0 and ("NaN" in bad or "finite" in bad)):  # over no candidates
            continue
        if "shape" not in bad and "dtype" not in bad and _shaky(case, n, kind):
            seen["ill-conditioned"] += 1
            return
        kind = "empty" if n == 0 else "nan" if "NaN" in bad else "wrong"
        raise Fault(kind, f"values at N={min(n, 2)}: {bad} ({name} at N={n})")
    seen[f"compared, {kind}"] += 1
    if n == 0:
        seen["compared, N=0"] += 1


def _finite(case: Case, seen: Counter[str]) -> None:
    """Finite exactly where the source is, whatever one candidate or the user has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "carried", lambda _: False)  # attention over tokens that are no numbers is told apart
        result = _rewritten(case)
    n = max(case.counts)
    source, output = runner(case.model), runner(result.model)
    for spoilt in range(2 * len(case.graph.inputs)):
        try:
            want = source(case.graph.feeds(n, spoilt=spoilt))
            have = output(case.graph.feeds(n, once=result.changed, spoilt=spoilt))
        except Exception:
            seen["does not run on NaN"] += 1
            return
        for name, a, b in zip(case.graph.outputs, want, have, strict=True):
            if a.dtype.kind == "f" and not np.array_equal(np.isfinite(a), np.isfinite(b)):
                agree = _agree(case, result, n, spoilt)
                if agree is not False:
                    seen["NaN that numpy multiplies by 0" if agree else "NaN, and a source that cannot be run"] += 1
                    continue
                where = ("source", "output")[int((np.isfinite(a) & ~np.isfinite(b)).any())]
                raise Fault("finite", f"finite in the {where} alone ({name} at N={n}, spoilt={spoilt})")
    seen["compared, NaN"] += 1


def _agree(case: Case, result: Rewrite, n: int, spoilt: int) -> bool | None:
    """Whether onnxruntime has both finite in the same places: for numpy a product of one element with 0 is 0.

    None where onnxruntime does not take the source, which nobody can serve.
    """
    want = _by_onnxruntime(case.model, case.graph.feeds(n, spoilt=spoilt))
    if want is None:
        return None
    have = _by_onnxruntime(result.model, case.graph.feeds(n, once=result.changed, spoilt=spoilt))
    if have is None:
        return False
    pairs = [(a, b) for a, b in zip(want, have, strict=True) if a.dtype.kind == "f"]
    return all(np.array_equal(np.isfinite(a), np.isfinite(b)) for a, b in pairs)


def _as_precise(case: Case, result: Rewrite, seen: Counter[str]) -> None:
    """In float32 as near to the source in float64 as the source is, on inputs of large scales.

    The source's error may be small by chance (which of two scores of 1e12 a Softmax takes), so where an output is too
    far off, the source's errors on inputs that differ by their last bits count too.
    """
    source, made, n = session(case.model), session(result.model), max(case.counts)
    if source is None or made is None or not n:
        return
    known = {i.name for i in source.get_inputs()}
    runs = []
    with float64(case.model) as precise:
        try:
            for loud in (0, 3, 6):
                both = (case.graph.feeds(n, once, loud) for once in (False, True))
                feeds, once = ({k: v for k, v in each.items() if k in known} for each in both)
                runs.append((loud, feeds, precise.run(feeds), source.run(None, feeds), made.run(None, once)))
        except Exception:
            seen["does not run on large inputs"] += 1
        for loud, feeds, exact, want, have in runs:
            for k, (name, e, a, b) in enumerate(zip(case.graph.outputs, exact, want, have, strict=True)):
                if a.dtype.kind != "f" or not np.isfinite(a).all() or not np.isfinite(e).all() or not a.size:
                    continue
                own, new, scale = np.abs(a - e).max(), np.abs(b - e).max(), np.abs(e).max()
                if own > 1e-3 * scale or new <= TIMES * own + ROUNDING["float32"] * 20 * scale:
                    continue
                near = [_nudged(feeds, seed) for seed in range(NEAR)]
                if new <= TIMES * max(np.abs(source.run(None, x)[k] - precise.run(x)[k]).max() for x in near):
                    seen["large inputs: the source is as far off beside them"] += 1
                    continue
                what = f"error {new:.1e}, the source's is {own:.1e} at scale {scale:.1e} ({name}, {loud})"
                raise Fault("cancels", what)
    seen["compared, large inputs"] += bool(runs)


def _nudged(feeds: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Floats that are off by about their last bit; of a user's value all rows alike."""
    found = dict(feeds)
    for name, array in feeds.items():
        if array.dtype.kind == "f":
            signs = np.random.default_rng((seed, crc32(name.encode()))).choice((-1.0, 1.0), array.shape[1:])
            found[name] = (array * (1 + np.finfo(array.dtype).eps * signs)).astype(array.dtype)
    return found


def _by_onnxruntime(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
    made = session(model)
    if made is None:
        return None
    wanted = {i.name for i in made.get_inputs()}
    try:
        return list(made.run(None, {k: v for k, v in feeds.items() if k in wanted}))
    except Exception:
        return None


def differs(want: np.ndarray, have: np.ndarray, tolerance: float) -> str | None:
    if want.shape != have.shape:
        return f"shape {have.shape} is not {want.shape}"
    if want.dtype != have.dtype:
        return f"dtype {have.dtype} is not {want.dtype}"
    if want.dtype.kind in "biuOSU":
        return None if np.array_equal(want, have) else "other integers"
    a, b = want.astype(np.float64), have.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        places = np.isnan(a) & ~np.isnan(b)
        rest = differs(np.where(places, 0, a), np.where(places, 0, b), tolerance) if places.any() else ""
        return "NaN is a number" if rest is None else "not finite in other places"
    scale = max(1.0, float(np.abs(a[finite]).max(initial=0)))
    off = float(np.abs(a[finite] - b[finite]).max(initial=0))
    return None if off <= tolerance * scale * 2 else "other values"


def _shaky(case: Case, n: int, kind: str) -> bool:
    """Whether rounding alone moves the source's outputs: ties, thresholds, cancellation, overflow."""
    feeds = case.graph.feeds(n)
    try:
        want = run(case.model, feeds)
        for seed in range(4):
            rng = np.random.default_rng(seed)
            moved = {k: _moved(v, rng, ROUNDING[kind] * 4) for k, v in feeds.items()}
            model = onnx.ModelProto()
            model.CopyFrom(case.model)
            for t in model.graph.initializer:
                array = onnx.numpy_helper.to_array(t)
                t.CopyFrom(onnx.numpy_helper.from_array(_moved(array, rng, ROUNDING[kind] * 4), t.name))
            have = run(model, moved)
            if any(differs(a, b, TOLERANCE[kind] / 50) for a, b in zip(want, have, strict=True)):
                return True
    except Exception:
        return True
    return False


def _moved(array: np.ndarray, rng: np.random.Generator, by: float) -> np.ndarray:
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        return array
    with np.errstate(all="ignore"):
        noise = 1 + by * rng.standard_normal(array.shape)
        return np.asarray(np.where(np.isfinite(array), array * noise, array)).astype(array.dtype)


def session(model: onnx.ModelProto):  # type: ignore[no-untyped-def]
    """A session, or None where onnxruntime does not take the model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        session.why = str(error)  # type: ignore[attr-defined]
        return None


def _loads(case: Case, result: Rewrite, seen: Counter[str]) -> None:
    """onnxruntime takes the new model if it took the source, and gives the same numbers."""
    kind = np.dtype(case.graph.dtype).name
    made = session(result.model)
    if made is None:
        why = session.why  # type: ignore[attr-defined]
        if session(case.model) is None:
            seen["onnxruntime takes neither"] += 1
            return
        if kind == "bfloat16" and "NOT_IMPLEMENTED" in why:
            seen["onnxruntime lacks a bfloat16 kernel"] += 1  # Expand, on CPU
            return
        raise Fault("load", why[:300])
    source = session(case.model)
    if source is None:
        seen["onnxruntime takes only the new model"] += 1
        return
    n = case.counts[0]
    known = {i.name for i in source.get_inputs()}
    try:
        want = source.run(None, {k: v for k, v in case.graph.feeds(n).items() if k in known})
    except Exception:
        seen["source does not run in onnxruntime"] += 1
        return
    try:
        have = made.run(None, {k: v for k, v in case.graph.feeds(n, once=True).items() if k in known})
    except Exception as error:
        raise Fault("wrong", f"onnxruntime does not run it: {str(error)[:300]}") from error
    for name, a, b in zip(case.graph.outputs, want, have, strict=True):
        bad = differs(np.asarray(a), np.asarray(b), TOLERANCE[kind] * 3)
        if bad is None:
            continue
        if "shape" not in bad and "dtype" not in bad and _shaky(case, n, kind):
            seen["ill-conditioned"] += 1
            return
        raise Fault("nan" if "NaN" in bad else "wrong", f"onnxruntime at N={min(n, 2)}: {bad} ({name} at N={n})")
    seen["compared, onnxruntime"] += 1
