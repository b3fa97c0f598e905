"""The parity check over recorded requests on many machines.

In: a source, a split or an optimized file, recorded requests. Out: one `CheckResult`, with the requests on which the
models are the furthest apart. Each worker checks some requests at a time, as the check on one machine would check a
file of them.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mari_onnx import runtime
from mari_onnx.comparison import Pair
from mari_onnx.errors import UsageError, WriteError
from mari_onnx.model.signature import Signature
from mari_onnx.parity import CheckResult, Settings
from mari_onnx.parity.judge.metrics import Errors, OutputResult, Ranking
from mari_onnx.parity.requests.recorded import REQUEST_ID, Reader
from mari_onnx.parity.result import FURTHEST
from mari_onnx.serving.offline import cluster, requests
from mari_onnx.sides.resolve import Sides

BATCH = 256
"""Requests that are checked together."""
WORST = "worst.json"


def check_on_ray(
    source: Path,
    optimized: Path,
    data: Path,
    signature: Signature,
    sides: Sides,
    settings: Settings,
    *,
    request_id: str = REQUEST_ID,
    batch: int = BATCH,
    progress: Callable[[str, int, int], None] | None = None,
) -> CheckResult:
    """Compares two models on recorded requests.

    Args:
        source: the model. optimized: a model file, or the folder of a split. data: as `mari-onnx check` takes it.
        signature, sides: of the source.
        settings: `dump` gets the inputs of the requests on which the models are the furthest apart, and `worst.json`
            with their ids and errors.
        batch: requests that are judged together.

    Raises:
        UsageError: there are no such requests, or one is wrong. WriteError: `dump` cannot be written.
    """
    begun = time.perf_counter()
    given = {
        "source": str(source.resolve()), "optimized": str(optimized.resolve()), "signature": signature, "sides": sides,
        "settings": replace(settings, dump=None), "libraries": runtime.custom_ops_in_use(),
    }  # fmt: skip
    found: list[CheckResult] = []
    with cluster.quiet():
        dataset = requests.read(data, signature, request_id).map_batches(
            Checker, batch_size=batch, compute=cluster.workers(settings.threads or 1), fn_constructor_kwargs=given
        )
        for row in cluster.rows(dataset):
            found.append(pickle.loads(row["result"]))
            if progress is not None:
                progress(f"{sum(each.requests for each in found)} requests", len(found), 0)
    if not found:
        raise UsageError(f"{data} contains no request")
    result = joined(found)
    result.source, result.optimized, result.settings = str(source), str(optimized), settings
    result.seconds = time.perf_counter() - begun
    if settings.dump is not None:
        _dump(result, Path(os.fspath(settings.dump)))
    return result


class Checker:
    """Checks some requests at a time, in a process of Ray."""

    def __init__(
        self,
        source: str,
        optimized: str,
        signature: Signature,
        sides: Sides,
        settings: Settings,
        libraries: tuple[str, ...],
    ):
        self._models, self._sides, self._settings, self._libraries = (source, optimized), sides, settings, libraries
        self._reader = Reader(signature, sides)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        """A `CheckResult`, pickled."""
        asked = list(requests.requests_of(batch, self._reader))
        with runtime.custom_ops(self._libraries):
            result = Pair(*self._models).check(self._sides, requests=asked, settings=self._settings)
        result.failing = result.failing[:FURTHEST]
        return {"result": [pickle.dumps(result)]}


def joined(results: Sequence[CheckResult]) -> CheckResult:
    """Several results of the same models, of different requests, as one.

    A bound that holds for each of them holds for all requests together: it is a multiple of the source's own error and
    of the output's scale, which are larger over all requests. What kept some requests from being compared is a note;
    it is a verdict only if nothing was compared at all.
    """
    first = results[0]
    made = CheckResult(first.source, first.optimized, first.settings, reference=first.reference)
    made.providers = list(dict.fromkeys(p for each in results for p in each.providers))
    made.requests, made.recorded = sum(e.requests for e in results), sum(e.recorded for e in results)
    made.candidates = sorted({n for each in results for n in each.candidates})
    made.failures = _once(each.failures for each in results)
    made.failing = [r for each in results for r in each.failing][:FURTHEST]
    made.notes = _once(each.notes for each in results)
    left = [each for each in results if each.cannot_compare]
    reasons = _once(each.cannot_compare for each in left)
    if len(left) == len(results):
        made.cannot_compare = reasons
    else:
        made.notes += [f"in {len(left)} of {len(results)} batches: {reason}" for reason in reasons]
    groups: dict[tuple[str, str], list[OutputResult]] = {}
    for each in results:
        for output in each.outputs:
            groups.setdefault((output.name, output.provider), []).append(output)
    made.outputs = [_output(group) for group in groups.values()]
    for key in groups:
        far = [f for each in results for f in each.furthest if (f.output, f.provider) == key]
        made.furthest += sorted(far, key=lambda f: -f.error)[:FURTHEST]
    return made


def _output(group: Sequence[OutputResult]) -> OutputResult:
    """One output over all batches; what is said of it is that of the batch nearest to a bound, one that fails first."""
    most = max(group, key=lambda each: (not each.ok, _strain(each.overall), _strain(each.by_request)))
    values = sum(each.values for each in group)
    losses = [each.tau_loss for each in group if each.tau_loss is not None]
    return replace(
        most,
        max_abs=max(each.max_abs for each in group),
        mean_abs=sum(each.mean_abs * each.values for each in group) / max(values, 1),
        max_rel=max(each.max_rel for each in group),
        max_ulp=max(each.max_ulp for each in group),
        overall=max((each.overall for each in group), key=_strain),
        by_request=max((each.by_request for each in group), key=_strain),
        nonfinite=sum(each.nonfinite for each in group),
        stepped=sum(each.stepped for each in group),
        compared=sum(each.compared for each in group),
        values=values,
        numbers=sum(each.numbers for each in group),
        ranking=_ranking([each.ranking for each in group if each.ranking is not None]),
        tau_loss=max(losses) if losses else None,
    )


def _strain(errors: Errors) -> float:
    return errors.strain()


def _ranking(found: Sequence[Ranking]) -> Ranking | None:
    if not found:
        return None
    ks = sorted({k for each in found for k in each.top_k})
    top = {k: min(each.top_k.get(k, 1.0) for each in found) for k in ks}
    return Ranking(top, min(each.tau for each in found), sum(each.swaps for each in found))


def _once(lists: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(text for each in lists for text in each))


def _dump(result: CheckResult, folder: Path) -> None:
    """Writes the inputs of the furthest requests, which `--data` reads, and a list of them."""
    files: dict[str, str] = {}
    listed = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for far in result.furthest:
            label = far.request.label
            if label not in files:
                files[label] = f"{len(files):03d}-{_safe(label)}.npz"
                np.savez(folder / files[label], **far.request.arrays())  # type: ignore[arg-type]
            listed.append({
                "request": label, "candidates": far.request.n, "output": far.output, "provider": far.provider,
                "error": far.error, "file": files[label],
            })  # fmt: skip
        (folder / WORST).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise WriteError(f"cannot write into {folder}: {error.strerror or error}") from error
    for output in result.outputs:
        mine = [far for far in result.furthest if (far.output, far.provider) == (output.name, output.provider)]
        if mine and not output.ok:
            output.dumped = str(folder / files[mine[0].request.label])


def _safe(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-_.=" else "_" for c in label)[:100]
