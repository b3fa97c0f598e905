"""Whole models: every model of models/ at industrial width, against its peers and its floor.

User part ten times the item part, history of 200, layers of 1024-512-256, random weights; built by
models/industrial.py (which needs torch) into build/industrial/, and kept there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.demo.model import sides_of, widened
from benchmarks.tables import Section, Target, milliseconds
from mari_onnx.errors import MariError
from mari_onnx.model.load import read
from mari_onnx.model.signature import signature
from mari_onnx.parity.requests.draw import Request
from mari_onnx.parity.requests.recorded import load
from mari_onnx.report.terminal import console
from mari_onnx.timing.measure import FLOOR, OURS, Measured, Variant, measure, variants_of
from mari_onnx.timing.peers import TOOLS, peers

COMMAND = "python -m benchmarks.whole"
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "industrial"
CANDIDATES = (500, 2000)
# A source slower than this at the smaller N is not run at the larger one, unless --full: five
# sessions of a model with attention over the history keep more memory than machines have.
PATIENCE_MS = 400.0
WRONG = 1e-3
# How tables and JSON call what is computed once per request, alone: ours less the floor.
USER_PART = "user part"
ENOUGH = 0.9


@dataclass
class Model:
    """Times of one model: of everything, of ours against the floor, and with the user part alone.

    The last only where ours is below `ENOUGH`; apart, so that one measurement is as good as another.
    """

    name: str
    all: dict[int, Measured] = field(default_factory=dict)
    close: dict[int, Measured] = field(default_factory=dict)
    once: dict[int, Measured] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def names() -> list[str]:
    """The models of models/, by their sides files; MODEL.torchscript.onnx is the same model."""
    return sorted(path.name.split(".")[0] for path in (ROOT / "models").glob("*.sides.toml"))


def build(wanted: Sequence[str]) -> list[str]:
    """Exports models that are missing, and what peers make of them, two at a time.

    Answers why some are not there.
    """
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        return [note for notes in pool.map(_build, wanted) for note in notes]


def _build(name: str) -> list[str]:
    path = FOLDER / f"{name}.onnx"
    if _stale(path.with_suffix(".npz")):
        for folder in (FOLDER / name, FOLDER / f"{name}.float16"):
            shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, str(ROOT / "models" / "industrial.py"), name, str(FOLDER)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            return [f"{name}: not run, as it could not be built ({lines[-1]})"]
    return _optimized_by_peers(name, path, FOLDER / name)


def _optimized_by_peers(name: str, path: Path, folder: Path) -> list[str]:
    """Lets peers work on the model once; answers why some have not."""
    if not folder.is_dir():
        folder.mkdir()
        missing = [peer for peer in peers(path, folder) if peer.path is None]
        reasons = [f"{name}: no {peer.tool} ({peer.reason})" for peer in missing]
        (folder / "notes.txt").write_text("\n".join(reasons), encoding="utf-8")
    return (folder / "notes.txt").read_text(encoding="utf-8").splitlines()


def _stale(built: Path) -> bool:
    """Not built yet, or before the models were last changed."""
    sources = [*(ROOT / "models").glob("*.py"), *(ROOT / "models" / "zoo").glob("*.py")]
    latest = max(path.stat().st_mtime for path in sources)
    return not built.is_file() or built.stat().st_mtime < latest


def run(
    name: str,
    full: bool = False,
    seconds: float = 1.5,
    provider: str = "cpu",
    half: bool = False,
) -> Model:
    """Times one built model, in float16 if `half` is set (inputs and outputs stay float32).

    Raises MariError where it cannot be optimized or run.
    """
    path, folder = FOLDER / f"{name}.onnx", FOLDER / name
    notes: list[str] = []
    if half:
        path, folder = in_half(path, path.with_suffix(".float16.onnx")), FOLDER / f"{name}.float16"
        notes = _optimized_by_peers(name, path, folder)
    source, sides = read(path), sides_of(path)
    recorded = load(FOLDER / f"{name}.npz", signature(source.model), sides)[0]
    requests: dict[int, list[Request]] = {n: [widened(recorded, n)] for n in CANDIDATES}
    made, missing = variants_of(source, sides, folder, target=provider, with_floor=True)
    result = Model(name, notes=[*notes, *(f"{name}: {note}" for note in missing)])
    ours = [each for each in made if each.name in (OURS, FLOOR)]
    user = [_user_part(each, folder) for each in ours if each.floor and each.floor.cut]
    files = [(tool, folder / f"{tool}.onnx") for tool in TOOLS]
    slow = [made[0], *(Variant(tool, file) for tool, file in files if file.is_file())]
    everything = [*slow, *(each for each in ours if each.name == OURS)]
    how: dict[str, Any] = {"seconds": seconds, "provider": provider}
    wrong = WRONG * 50 if half else WRONG
    for n, drawn in requests.items():
        just = {n: drawn}
        if ours:
            (result.close[n],) = measure(ours, just, least=5, **how)
            timing = result.close[n].timing
            if user and timing.ratio(FLOOR, OURS) < ENOUGH:
                (result.once[n],) = measure([*ours, *user], just, least=5, **how)
        first = result.all.get(CANDIDATES[0])
        if first and not full and first.timing.median("source") * 1e3 > PATIENCE_MS:
            result.notes.append(f"{name}: source and peers not run at N = {n}, too large (--full).")
            continue
        least = 3 if full else 1  # the slowest take seconds per run
        (measured,) = measure(everything, just, least=least, **how)
        for peer in [peer for peer, apart in measured.apart.items() if not apart < wrong]:
            result.notes.append(f"{name}: outputs of {peer} differ by {measured.apart[peer]:.1e}.")
        result.all[n] = measured
    return result


def _user_part(floor: Variant, folder: Path) -> Variant:
    """What makes the tensors that the floor is fed."""
    assert floor.floor is not None
    onnx.save(floor.floor.probe, folder / "user_part.onnx")
    return Variant(USER_PART, folder / "user_part.onnx")


def in_half(path: Path, target: Path) -> Path:
    """Writes the model with its inside in float16 to `target`, which it answers."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted = OnnxModel(convert_float_to_float16(onnx.load(path), keep_io_types=True))
    converted.topological_sort()
    onnx.save(converted.model, target)
    return target


def section(
    wanted: Sequence[str] = (), full: bool = False, seconds: float = 1.5, notes: Sequence[str] = ()
) -> Section:
    result = Section(
        "Whole models at industrial width",
        "Every model of models/ with a user part ten times the item part, a history of 200 and "
        "layers of 1024-512-256; one thread. Peers work on the same source. The floor is ours with "
        "its user part cut away and fed ready made. Medians in ms of one run, ratios pair by pair. "
        f"Where ours is below {ENOUGH} of the floor's speed, both are timed in turns once more, the user "
        "part alone with them, and a note says what is possible.",
        COMMAND + (" --full" if full else ""),
        ["N, model", "source", *TOOLS, "ours", "floor", "source / ours", "best peer / ours",
         "floor / ours"],
        notes=list(notes),
    )  # fmt: skip
    gains, floors = [], {}
    for name in wanted or names():
        if not (FOLDER / f"{name}.npz").is_file():
            continue
        try:
            model = run(name, full, seconds)
        except MariError as error:
            result.notes.append(f"{name}: not run: {error}")
            result.targets.append(Target(f"{name} runs", "failed", False))
            continue
        result.notes += model.notes
        for n in CANDIDATES:
            cells, gain, floor = _row(model, n)
            result.rows.append([f"{n}, {name}", *cells])
            gains += [gain] if gain else []
            if floor:
                floors[f"{name}, N={n}"] = floor
                result.notes += [_bound(f"{name}, N={n}", model.once.get(n))] if floor < ENOUGH else []
    if gains:
        mean = float(np.exp(np.log(gains).mean()))
        name = "at least 2.5x the best peer's speed, geometric mean"
        result.targets.append(Target.at_least(name, mean, 2.5, "x"))
        result.targets.append(
            Target.at_least("none slower than 0.98 of the best peer", min(gains), 0.98, "x")
        )
    for name, ratio in floors.items():
        result.targets.append(
            Target.at_least(f"{name}: at least {ENOUGH} of the floor's speed", ratio, ENOUGH)
        )
    return result


def _row(model: Model, n: int) -> tuple[list[str], float | None, float | None]:
    """Cells of the table, the gain over the best peer, and the ratio to the floor."""
    every, close = model.all.get(n), model.close.get(n)
    cells, gain, gains, floor = [], None, ["", ""], None
    for name in ("source", *TOOLS):
        known = every is not None and name in every.timing.names
        cells.append(milliseconds(every.timing.median(name)) if every and known else "")
    if every is not None and OURS in every.timing.names:
        right = [name for name in every.timing.names if every.apart[name] < WRONG and name != OURS]
        best = min(right, key=every.timing.median)
        gain = every.timing.ratio(best, OURS)
        gains = [f"{every.timing.ratio('source', OURS):.2f}", f"{gain:.2f}"]
    ours = close or every
    for name in (OURS, FLOOR):
        known = ours is not None and name in ours.timing.names
        cells.append(milliseconds(ours.timing.median(name)) if ours and known else "")
    if close is not None and {OURS, FLOOR} <= set(close.timing.names):
        floor = close.timing.ratio(FLOOR, OURS)
    return [*cells, *gains, f"{floor:.3f}" if floor else ""], gain, floor


def _bound(name: str, measured: Measured | None) -> str:
    """Why ours is no closer to its floor: the time of what is done once per request."""
    if measured is None:
        return f"{name}: the floor is fed nothing, so all that is above it could be saved."
    timing = measured.timing
    floor, once = timing.of(FLOOR), timing.of(USER_PART)
    bound = float(np.median(floor / (floor + once)))
    taken = float(np.median(timing.of(OURS) / (floor + once)))
    return (
        f"{name}: the candidates' part takes {milliseconds(timing.median(FLOOR))} ms and the user part alone "
        f"{milliseconds(timing.median(USER_PART))} ms beside it, so a graph that computes both gets to about "
        f"{bound:.3f} of the floor's speed here; ours takes {taken:.3f} times the two together."
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("models", nargs="*", help="by default all")
    parser.add_argument("--full", action="store_true", help="also what takes minutes")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each measurement")
    args = parser.parse_args()
    wanted = args.models or names()
    result = section(wanted, args.full, args.seconds, build(wanted))
    result.show(console())
    return 0 if result.met else 1


if __name__ == "__main__":
    sys.exit(main())
