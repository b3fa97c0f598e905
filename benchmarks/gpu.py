"""All that is measured on CUDA, in ten minutes: `make bench-gpu`.

The parity of all sample models, the forms of one layer, the grid, feature layouts, and whole models, in float32 and
float16; everything on the device already, transfers counted apart. One JSON file has the device's name, driver and
library versions, what was found, and what did not run and why. It is written after each part, and what an earlier run
finished on the same device is kept. `--provider cpu` rehearses the same on the CPU, with small sizes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import grid, layout, whole
from benchmarks.demo.model import sides_of
from benchmarks.graphs import Graph
from benchmarks.interop.run import fingerprint
from benchmarks.side_by_side import Setting, timed
from mari_onnx import api
from mari_onnx.choices import options_for
from mari_onnx.errors import MariError, ProviderError, first_line
from mari_onnx.model.load import read
from mari_onnx.model.save import write_text
from mari_onnx.parity import check
from mari_onnx.runtime import session
from mari_onnx.timing.machine import machine

COMMAND = "make bench-gpu"
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "gpu.json"
REHEARSED = ROOT / "build" / "gpu-rehearsal.json"
SECONDS = 570.0
"""All of it together; what does not fit is left out, and said so."""
SAMPLES = (*sorted((ROOT / "models").glob("*.onnx")), *sorted((ROOT / "tests" / "data" / "interop").glob("*.onnx")))
CHECKED = (2, 7, 64, 500)  # a sample fails at 1 itself
Entry = dict[str, Any]
TYPES: dict[str, type] = {"float32": np.float32, "float16": np.float16}
# N, item width, hidden
LAYERS = ((100, 64, 128), (500, 256, 512), (4000, 512, 512))


def form(name: str, item: int, hidden: int, dtype: type) -> onnx.ModelProto:
    """`x W + user part`, then Relu, written in one of three forms."""
    g = Graph(dtype=dtype)
    u, x = g.input("user", [1, hidden]), g.input("item", ["N", item])
    weight = g.weight(item, hidden)
    if name == "gemm_c":
        y = g.op("Gemm", x, weight, u)
    elif name == "matmul_add":
        y = g.op("Add", g.op("MatMul", x, weight), u)
    else:  # the user part as a row of the weights: one product over [x | 1]
        rows = g.op("Concat", g.rows_of(x), g.ints(1), axis=0)
        one = g.op("Expand", g.const(np.ones((1, 1), dtype)), rows)
        y = g.op("MatMul", g.op("Concat", x, one, axis=1), g.op("Concat", weight, u, axis=0))
    g.op("Relu", y)
    return g.model("score", ["N", hidden])


@dataclass(frozen=True)
class Plan:
    """What is run, and how.

    Attributes:
        provider: "cuda", or "cpu" for a rehearsal, with sizes that tell nothing.
        samples: models whose parity is checked.
        whole: names of industrial models to time; those that are missing are built.
    """

    provider: str = "cuda"
    samples: Sequence[Path] = SAMPLES
    whole: Sequence[str] = ()

    @property
    def small(self) -> bool:
        return self.provider == "cpu"

    @property
    def setting(self) -> Setting:
        if self.small:
            return Setting(provider=self.provider, seconds=0.02, least=2)
        return Setting(provider=self.provider, seconds=0.3, least=20)

    def parts(self) -> dict[str, Callable[[type], Iterator[Entry]]]:
        """Name -> what yields its results one by one, for an element type; the most wanted first."""
        small = {"parity": self.parity, "forms": self.forms, "grid": self.grid}
        return {**small, "layout": self.layout, "models": self.models}

    def parity(self, dtype: type) -> Iterator[Entry]:
        """Each sample, and what `--target cuda` makes of it, both on the provider; errors are against float64.

        A rehearsal may differ in float16 where numbers leave its range: the CPU has few kernels of float16, so
        onnxruntime computes in float32 and rounds only where one has them (Slice, Concat). dcnv2 multiplies
        raw features of 2,000 and is NaN there in the output alone; rounded at each node, in the source as well.
        """
        for path in self.samples:
            with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
                yield {"model": path.stem, **_checked(path, Path(folder), dtype, self.provider)}

    def forms(self, dtype: type) -> Iterator[Entry]:
        """Which form of the split layer is fastest."""
        names = ("gemm_c", "matmul_add", "fused_row")
        for n, item, hidden in LAYERS[:1] if self.small else LAYERS:
            rng = np.random.default_rng(1)
            timing, _ = timed(
                {name: form(name, item, hidden, dtype) for name in names},
                {"user": rng.standard_normal((1, hidden), np.float32).astype(dtype)},
                {"item": rng.standard_normal((n, item), np.float32).astype(dtype)},
                self.setting,
            )
            yield {"n": n, "item": item, "hidden": hidden, **timing.to_dict("gemm_c")}

    def grid(self, dtype: type) -> Iterator[Entry]:
        """The paper's grid, a cell at a time."""
        axes = grid.Axes((100,), (256,), (64,), (128,)) if self.small else grid.THINNED
        for n, user, item, hidden in axes.cells():
            cell = grid.Axes((n,), (user,), (item,), (hidden,))
            yield from grid.by_cell(grid.measure(cell, self.setting, dtype))

    def layout(self, dtype: type) -> Iterator[Entry]:
        """Neat, fragmented and packed features."""
        yield from layout.by_case(self.setting, dtype, self.small)

    def models(self, dtype: type) -> Iterator[Entry]:
        """Source, peers, ours and floor of industrial models."""
        for name in self.whole:
            if notes := whole.build([name]):
                yield {"model": name, "not_run": "; ".join(notes)}
            if not (whole.FOLDER / f"{name}.npz").is_file():
                continue
            try:
                found = whole.run(name, seconds=0.5, provider=self.provider, half=dtype is np.float16)
            except MariError as error:
                yield {"model": name, "not_run": first_line(error)}
                continue
            yield {
                "model": name,
                "all": [each.to_dict() for each in found.all.values()],
                "against_floor": [each.to_dict() for each in found.close.values()],
                "with_user_part": [each.to_dict() for each in found.once.values()],
                "notes": found.notes,
            }


def _checked(path: Path, folder: Path, dtype: type, provider: str) -> dict[str, Any]:
    """The verdict on one sample, or why there is none."""
    try:
        sides = sides_of(path)
        if dtype is np.float16:
            path = whole.in_half(path, folder / path.name)
        source = read(path)
        done = api.rewritten(source, sides, options_for(target="cuda"))
        done.save(folder / "ours.onnx")
        found = check(path, folder / "ours.onnx", sides, candidates=CHECKED, coverage=0, providers=[provider])
    except Exception as error:  # converters of types raise all kinds; the other models are worth having
        return {"not_run": f"{type(error).__name__}: {first_line(error)}"}
    return {"verdict": found.verdict, "max_error": found.max_error, "reasons": found.reasons[:2]}


@dataclass
class Run:
    """Results on their way into a file, which is written after each of them.

    Attributes:
        path: the file.
        ends: when no further result is begun, by `time.monotonic`.
        answer: what is in the file: type -> part -> results, `finished` parts, and what was `not_run`.
    """

    path: Path
    ends: float
    answer: dict[str, Any] = field(default_factory=dict)

    def begin(self, provider: str, again: bool) -> None:
        """Starts from what an earlier run of the same engine finished on the same machine, unless `again` is said."""
        made_by = {"provider": provider, "machine": machine(provider), "code": fingerprint()}
        self.answer = {"schema": "mari-onnx/bench-gpu", "version": 2, **made_by, "finished": []}
        if not again and self.path.is_file():
            old = json.loads(self.path.read_text(encoding="utf-8"))
            if {key: old.get(key) for key in made_by} == made_by:
                self.answer = old
        self.answer["not_run"] = []

    def take(self, name: str, part: str, work: Iterator[Entry]) -> None:
        """All results of one part, as far as there is time for them."""
        key = f"{name} {part}"
        if key in self.answer["finished"]:
            return
        found = self.answer.setdefault(name, {})[part] = []
        try:
            while time.monotonic() < self.ends:
                entry = next(work, None)
                if entry is None:
                    self.answer["finished"].append(key)
                    return
                found.append(entry)
                if "not_run" in entry:
                    self.answer["not_run"].append(f"{key}, {entry['model']}: {entry['not_run']}")
                self.write()
            self.answer["not_run"].append(f"{key}: the time was up after {len(found)} results")
        except Exception as error:  # the other parts are worth having
            self.answer["not_run"].append(f"{key}: {type(error).__name__}: {first_line(error)}")
        finally:
            self.write()

    def write(self) -> None:
        write_text(self.path, json.dumps(self.answer, indent=1) + "\n")


def measure(plan: Plan, path: Path, seconds: float = SECONDS, again: bool = False, only: Sequence[str] = ()) -> Entry:
    """Runs the plan's parts into a file, each in both types before the next. only: these parts alone."""
    run = Run(path, time.monotonic() + seconds)
    run.begin(plan.provider, again)
    for part, work in plan.parts().items():
        for name, dtype in TYPES.items():
            if not only or part in only:
                run.take(name, part, work(dtype))
    run.write()
    return run.answer


def page() -> str:
    """The section of docs/benchmarks.md."""
    lines = ["## On a GPU", f"```sh\n{COMMAND}\n```", ""]
    if not RESULTS.is_file():
        return "\n".join([*lines, "Not yet measured.", ""])
    answer = json.loads(RESULTS.read_text(encoding="utf-8"))
    device = answer["machine"].get("device", {})
    about = f"{device.get('name', '?')}, driver {device.get('driver_version', '?')}"
    lines += [f"One run on {about}; all figures are in [gpu.json](gpu.json).", ""]
    for name in TYPES:
        verdicts = [each.get("verdict", "not run") for each in answer.get(name, {}).get("parity", ())]
        counted = ", ".join(f"{verdicts.count(each)} {each}" for each in sorted(set(verdicts)))
        lines += [f"Parity in {name}, sample models and what `--target cuda` makes of them: {counted}.", ""]
    lines += ["| type, N, user, item, hidden | one-shot ms | ours ms | ours / floor |"]
    lines += ["|---|---:|---:|---:|"]
    for name in TYPES:
        for cell in answer.get(name, {}).get("grid", ()):
            sizes = ", ".join(str(cell[key]) for key in ("n", "user", "item", "hidden"))
            shot, ours, least = (cell[k]["median_ms"] for k in ("one-shot", "ours", "floor"))
            lines.append(f"| {name}, {sizes} | {shot:.3f} | {ours:.3f} | {ours / least:.2f} |")
    if answer["not_run"]:
        lines += ["", "Not run: " + "; ".join(answer["not_run"]) + "."]
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("parts", nargs="*", help="by default all: " + " ".join(Plan().parts()))
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="all of it together")
    parser.add_argument("--again", action="store_true", help="keep nothing that an earlier run finished")
    parser.add_argument("--output", type=Path, help="by default docs/gpu.json; of a rehearsal in build/")
    args = parser.parse_args()
    plan = Plan(args.provider, whole=whole.names()[:1] if args.provider == "cpu" else whole.names())
    if unknown := set(args.parts) - set(plan.parts()):
        parser.error(f"no part {', '.join(sorted(unknown))}")
    try:
        session(form("gemm_c", 2, 2, np.float32), args.provider)
    except ProviderError as error:
        print(f"nothing was run: {error}", file=sys.stderr)
        return error.exit_code
    output = args.output or (RESULTS if args.provider == "cuda" else REHEARSED)
    output.parent.mkdir(parents=True, exist_ok=True)
    answer = measure(plan, output, args.seconds, args.again, args.parts)
    print(f"wrote {output}: finished {', '.join(answer['finished']) or 'nothing'}")
    for each in answer["not_run"]:
        print(f"not run: {each}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
