"""The grid, feature layouts, the forms of one layer, and whole models on CUDA: `make bench-gpu`.

In float32 and float16; everything on the device already, transfers counted apart. Writes one JSON
file with the device's name, driver and library versions, and with what did not run and why.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import grid, layout, whole
from benchmarks.graphs import Graph
from benchmarks.side_by_side import Setting, timed
from mari_onnx.errors import MariError, ProviderError
from mari_onnx.model.save import write_text
from mari_onnx.runtime import session
from mari_onnx.timing.machine import machine

COMMAND = "make bench-gpu"
RESULTS = Path(__file__).resolve().parents[1] / "docs" / "gpu.json"
PROVIDER = "cuda"
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


def forms(dtype: type, setting: Setting) -> list[dict[str, Any]]:
    """Which form of the split layer is fastest."""
    found = []
    for n, item, hidden in LAYERS:
        names = ("gemm_c", "matmul_add", "fused_row")
        rng = np.random.default_rng(1)
        timing, _ = timed(
            {name: form(name, item, hidden, dtype) for name in names},
            {"user": rng.standard_normal((1, hidden), np.float32).astype(dtype)},
            {"item": rng.standard_normal((n, item), np.float32).astype(dtype)},
            setting,
        )
        found.append({"n": n, "item": item, "hidden": hidden, **timing.to_dict("gemm_c")})
    return found


def whole_models(dtype: type) -> dict[str, Any]:
    """Source, peers, ours and floor of every industrial model; those that are missing are built."""
    found: dict[str, Any] = {"models": {}, "not_run": whole.build(whole.names())}
    for name in whole.names():
        if not (whole.FOLDER / f"{name}.npz").is_file():
            continue
        try:
            model = whole.run(name, provider=PROVIDER, half=dtype is np.float16)
        except MariError as error:
            found["not_run"].append(f"{name}: {error}")
            continue
        found["models"][name] = {
            "all": [each.to_dict() for each in model.all.values()],
            "against_floor": [each.to_dict() for each in model.close.values()],
            "with_user_part": [each.to_dict() for each in model.once.values()],
            "notes": model.notes,
        }
    return found


def measure(tiny: bool = False) -> dict[str, Any]:
    """Everything, on whatever `PROVIDER` is."""
    setting = Setting(provider=PROVIDER, seconds=0.02 if tiny else 0.5, least=2 if tiny else 20)
    axes = grid.Axes((100,), (256,), (64,), (128,)) if tiny else grid.PAPER
    answer: dict[str, Any] = {"schema": "mari-onnx/bench-gpu", "version": 1, "not_run": []}
    answer["machine"] = machine(PROVIDER)
    for name, dtype in TYPES.items():
        parts: dict[str, Callable[[], Any]] = {
            "grid": lambda dtype=dtype: grid.by_cell(grid.measure(axes, setting, dtype)),
            "layout": lambda dtype=dtype: layout.by_case(setting, dtype, tiny),
            "forms": lambda dtype=dtype: forms(dtype, setting),
            "whole": lambda dtype=dtype: whole_models(dtype),
        }
        if tiny:
            del parts["whole"]
            answer["not_run"].append(f"{name} whole: left out by --tiny")
        answer[name] = {}
        for part, work in parts.items():
            try:
                answer[name][part] = work()
            except Exception as error:  # the other parts are worth having
                answer["not_run"].append(f"{name} {part}: {type(error).__name__}: {error}")
        missing = answer[name].get("whole", {}).get("not_run", ())
        answer["not_run"] += [f"{name} whole: {each}" for each in missing]
    return answer


def page() -> str:
    """The section of docs/benchmarks.md."""
    lines = ["## On a GPU", f"```sh\n{COMMAND}\n```", ""]
    if not RESULTS.is_file():
        return "\n".join([*lines, "Not yet measured.", ""])
    answer = json.loads(RESULTS.read_text(encoding="utf-8"))
    device = answer["machine"].get("device", {})
    about = f"{device.get('name', '?')}, driver {device.get('driver_version', '?')}"
    lines += [f"One run on {about}; all figures are in [gpu.json](gpu.json).", ""]
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
    parser.add_argument("--tiny", action="store_true", help="only show that everything runs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    try:
        session(form("gemm_c", 2, 2, np.float32), PROVIDER)
    except ProviderError as error:
        print(f"nothing was run: {error}", file=sys.stderr)
        return error.exit_code
    answer = measure(args.tiny)
    write_text(args.output, json.dumps(answer, indent=1) + "\n")
    print(f"wrote {args.output}")
    for each in answer["not_run"]:
        print(f"not run: {each}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
