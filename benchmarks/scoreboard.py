"""Our output beside other optimizers and runtimes, on the same models in one run: `make scoreboard`.

Prints a table and writes it into docs/benchmarks.md. All run one request of N candidates in turns, on one thread, and
are timed by what that thread itself ran; OpenVINO runs in a process of its own environment, which is told when to run
and answers its thread time. What is found of a model is kept in build/scoreboard/; `--again` measures all anew.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.demo.model import sides_of, widened
from benchmarks.environments import NotThere, Remote
from benchmarks.ikbo import NotForThisModel, ikbo
from benchmarks.run import PAGE
from benchmarks.tables import Section, milliseconds, replaced
from mari_onnx import runtime
from mari_onnx.errors import MariError
from mari_onnx.model.load import Source, read
from mari_onnx.model.save import write_text
from mari_onnx.parity.requests.draw import Request
from mari_onnx.report.terminal import console
from mari_onnx.sides.resolve import Sides
from mari_onnx.timing.clock import Timing, clock_for, interleaved
from mari_onnx.timing.machine import machine
from mari_onnx.timing.measure import OURS, Variant, draw, variants_of
from mari_onnx.timing.memory import peak_bytes
from mari_onnx.timing.peers import TOOLS

COMMAND = "make scoreboard"
ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "scoreboard"
MODELS = (*sorted((ROOT / "models").glob("*.onnx")), *sorted((ROOT / "tests" / "data" / "interop").glob("*.onnx")))
N = 500
SECONDS = 1.5
WRONG = 1e-3
"""A difference, relative to the largest number of the output, above which an output is wrong."""
IKBO, OPENVINO, OURS_THERE = "IKBO", "OpenVINO", "mari-onnx, OpenVINO"
COLUMNS = ("source", *TOOLS, OPENVINO, IKBO, OURS, OURS_THERE)
HEADINGS = {"source": "onnxruntime", OURS: "ours", OURS_THERE: "ours on OpenVINO"}

Outputs = Sequence[np.ndarray]


class Account:
    """Seconds that runs took, added up: a clock for `interleaved` that goes on wherever a run happens."""

    def __init__(self) -> None:
        self.spent = 0.0

    def __call__(self) -> float:
        return self.spent

    def here(self, session: Any, feed: Mapping[str, np.ndarray]) -> Callable[[int], object]:
        """A run of a session in this process."""
        _, clock = clock_for()

        def run(_: int) -> None:
            started = clock()
            session.run(None, feed)
            self.spent += clock() - started

        return run

    def there(self, remote: Remote) -> Callable[[int], object]:
        """A run in another process, which says how long it took."""

        def run(_: int) -> None:
            self.spent += remote.run()

        return run


def scored(path: Path, folder: Path, seconds: float = SECONDS, n: int = N) -> dict[str, Any]:
    """Times, memory and differences of one model.

    "ms": name -> median; "faster": name -> its time over ours, median of the pairs; "spread" of that; "apart": name ->
    the largest difference to the source's outputs, relative; "memory": peak bytes of source and ours; "notes".
    """
    source, sides = read(path), sides_of(path)
    request = draw(source, sides, n, 1)[0]
    made, notes = variants_of(source, sides, folder, candidates=None, with_peers=True)
    try:
        made.insert(-1, _by_ikbo(source, sides, request, folder))
    except NotForThisModel as why:
        notes.append(f"IKBO: {why}")
    account, runs, outputs, remotes = Account(), {}, {}, []
    try:
        for each in made:
            session = runtime.session(each.path)
            feed = each.feed(request, session.get_inputs())
            outputs[each.name] = runtime.run(session, feed, each.name)
            runs[each.name] = account.here(session, feed)
            if each.name in ("source", OURS):
                name = OPENVINO if each.name == "source" else OURS_THERE
                try:
                    remotes.append(Remote("openvino", each.path, feed, [o.name for o in session.get_outputs()]))
                    outputs[name] = remotes[-1].outputs
                    runs[name] = account.there(remotes[-1])
                except NotThere as why:
                    notes.append(f"{name}: {why}")
        timing = interleaved(runs, seconds=seconds, least=9, clock=account, wall=time.perf_counter)
    finally:
        for remote in remotes:
            remote.close()
    return _figures(timing, outputs, notes) | {"memory": _memory(made, request)}


def _by_ikbo(source: Source, sides: Sides, request: Request, folder: Path) -> Variant:
    """Raises NotForThisModel where it cannot be written, or is wrong."""
    inputs = runtime.session(source.path).get_inputs()
    few, more = (widened(request, k).feed(inputs) for k in (3, 5))
    try:
        onnx.save(ikbo(source.model, sides, few, more), folder / "ikbo.onnx")
        runtime.session(folder / "ikbo.onnx")
    except MariError as error:
        raise NotForThisModel(str(error)) from error
    return Variant(IKBO, folder / "ikbo.onnx")


def _figures(timing: Timing, outputs: Mapping[str, Outputs], notes: list[str]) -> dict[str, Any]:
    """See `scored`; without an output of ours, the source is taken for it."""
    ours = OURS if OURS in timing.names else "source"
    return {
        "ms": {name: timing.median(name) * 1e3 for name in timing.names},
        "faster": {name: timing.ratio(name, ours) for name in timing.names},
        "spread": {name: timing.ratio_spread(name, ours) for name in timing.names},
        "apart": {name: apart(outputs["source"], each) for name, each in outputs.items()},
        "notes": notes,
    }


def apart(expected: Outputs, got: Outputs) -> float:
    """The largest difference of any number, relative to the largest of its output (or to 1)."""
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(expected, got, strict=True)]
    return max(float(np.abs(a - b).max(initial=0) / max(1.0, np.abs(a).max(initial=0))) for a, b in pairs)


def _memory(made: Sequence[Variant], request: Request) -> dict[str, int | None]:
    """Peak bytes of a process with a session of the source, and of ours, that runs the request."""
    found = {}
    for each in made:
        if each.name in ("source", OURS):
            feed = each.feed(request, runtime.session(each.path).get_inputs())
            found[each.name] = peak_bytes(each.path, feed)
    return found


def section(found: Mapping[str, Mapping[str, Any]], load: float) -> Section:
    """The table. found: model -> what `scored` answers. load: average of the machine."""
    from mari_onnx.timing.clock import LARGE

    versions = ", ".join(f"{name} {version}" for name, version in machine()["libraries"].items())
    result = Section(
        "Scoreboard",
        f"Milliseconds of a request of {N} candidates, median; {versions}; on {machine()['processor']}, load average "
        f"{load:.1f}. All get the same file, run on one thread in turns and are timed by what the thread itself ran. "
        "onnxruntime: the source with all of its optimizations. onnxsim, onnxslim, onnxscript: what each makes of the "
        "source, run by onnxruntime. OpenVINO: the source, by the runtime of the package `openvino` in an environment "
        "of its own (one thread, one stream, float32). IKBO: the method of Meta's kernels, written in ONNX by "
        "`benchmarks/ikbo.py`: products over both sides split, the user's part computed once and gathered by an index; "
        "run by onnxruntime. Ours: `mari-onnx optimize` without flags, run by onnxruntime; the same file on OpenVINO "
        "in the last column of times. Faster: the pairs' median of the time of onnxruntime, and of the fastest other "
        "that is right, over ours on onnxruntime. Memory: peak of a process beyond what it had before it loaded the "
        "model, source and ours, MB. An empty cell did not run; * marks outputs that are wrong, and ~ a spread above "
        f"{LARGE:.0%}.",
        COMMAND,
        ["model", *(HEADINGS.get(name, name) for name in COLUMNS), "faster than onnxruntime", "than best other", "MB"],
    )  # fmt: skip
    for model, one in found.items():
        cells = []
        for name in COLUMNS:
            marks = "*" if one["apart"].get(name, 0) > WRONG else ""
            cells.append(milliseconds(one["ms"][name] / 1e3) + marks if name in one["ms"] else "")
        best = best_other(one)
        shaky = ["~" if one["spread"][name] > LARGE else "" for name in ("source", best)]
        memory = [f"{one['memory'][k] / 1e6:.0f}" for k in ("source", OURS) if one["memory"].get(k) is not None]
        faster = [f"{one['faster'][name]:.2f}{mark}" for name, mark in zip(("source", best), shaky, strict=True)]
        result.rows.append([model, *cells, *faster, " -> ".join(memory)])
        result.notes += [f"{model}: {note}" for note in one["notes"]]
    means = [_mean(found.values(), name) for name in COLUMNS]
    least = [one["faster"][best_other(one)] for one in found.values()]
    result.rows.append(["time over ours, geometric mean", *means, "", f"{_geometric(least):.2f}", ""])
    return result


def best_other(one: Mapping[str, Any]) -> str:
    """The fastest of those that are not ours and whose outputs are right."""
    right = [name for name in one["ms"] if name not in (OURS, OURS_THERE) and one["apart"][name] <= WRONG]
    return min(right, key=lambda name: one["faster"][name])


def _mean(found: Any, name: str) -> str:
    ratios = [one["faster"][name] for one in found if name in one["faster"]]
    return f"{_geometric(ratios):.2f}x" if ratios else ""


def _geometric(ratios: Sequence[float]) -> float:
    return float(np.exp(np.log(ratios).mean()))


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="by default models/*.onnx and tests/data/interop/*.onnx")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of timing for each model")
    parser.add_argument("--again", action="store_true", help="take no earlier results")
    args = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    found, failed = {}, []
    for path in args.models or MODELS:
        kept = KEPT / f"{path.stem}.json"
        try:
            if args.again or not kept.is_file():
                with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
                    write_text(kept, json.dumps(scored(path, Path(folder), args.seconds)) + "\n")
                print(path.name, file=sys.stderr)
            found[path.stem] = json.loads(kept.read_text(encoding="utf-8"))
        except MariError as error:
            failed.append(f"{path.stem}: not run: {error}")
    result = section(found, os.getloadavg()[2])
    result.notes += failed
    result.show(console())
    if not args.models:
        write_text(PAGE, replaced(PAGE.read_text(encoding="utf-8"), "scoreboard", result.markdown()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
