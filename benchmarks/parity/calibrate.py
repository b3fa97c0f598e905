"""Errors against float64 of sources and outputs: the table and plot of `docs/parity-details.md`.

    python -m benchmarks.parity.calibrate [FOLDER ...] [--results FILE.json]

Every `.onnx` of the folders (by default the sample models and the interop corpus, as far as it is
there) is rewritten and checked. Results are kept, and taken again where the file has them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / "models", ROOT / "build" / "interop")
PLOT = ROOT / "docs" / "parity-calibration.svg"
QUANTILES = (0.5, 0.9, 0.99, 1.0)


def one(path: Path) -> dict[str, Any]:
    """A graph's outputs, or why there are none."""
    import onnx

    from mari_onnx.engine import Options, rewrite
    from mari_onnx.parity import check
    from mari_onnx.parity.check import find_sides

    try:
        source = onnx.load(path)
        sides = find_sides([path], [source])
        made = rewrite(source, sides, Options())
        result = check(path, made.model, sides, coverage=50)
    except Exception as error:
        return {"graph": path.stem, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {
        "graph": path.stem,
        "ok": result.ok,
        "reasons": result.reasons[:2],
        "notes": result.notes,
        "reference": result.reference,
        "outputs": [
            [getattr(o.overall, f) for f in ("source_error", "error", "source_mean_error")]
            + [o.overall.mean_error, o.by_request.source_error, o.by_request.error]
            for o in result.outputs
        ],
    }


def table(found: list[dict[str, Any]]) -> str:
    """Quantiles over all outputs, and how many graphs passed."""
    good = [f for f in found if "outputs" in f]
    values = np.array([o for f in good for o in f["outputs"] if o[0] > 0])
    tiny = np.finfo(np.float32).eps / 8  # below it a ratio says nothing
    ratios = (values[:, [1, 3, 5]] + tiny) / (values[:, [0, 2, 4]] + tiny)
    rows = [
        ("source, largest error", values[:, 0]),
        ("optimized, largest error", values[:, 1]),
        ("source, mean error", values[:, 2]),
        ("optimized, mean error", values[:, 3]),
        ("largest, optimized over source", ratios[:, 0]),
        ("mean, optimized over source", ratios[:, 1]),
        ("largest by request, optimized over source", ratios[:, 2]),
    ]
    lines = [
        f"{len(good)} graphs with {len(values)} outputs, {sum(f['ok'] for f in good)} pass; "
        "errors against float64, relative to the output's scale.",
        "",
        "| | median | 90% | 99% | most |",
        "|---|---|---|---|---|",
    ]
    for name, column in rows:
        cells = " | ".join(
            f"{q:.2f}" if "over" in name else f"{q:.1e}" for q in np.quantile(column, QUANTILES)
        )
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def plot(found: list[dict[str, Any]], target: Path) -> None:
    """Error of the output over error of the source, with the bound."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "parity"
    from matplotlib import pyplot

    from mari_onnx.parity.judge.verdict import FLOOR_ULPS
    from mari_onnx.parity.settings import MULTIPLE

    values = np.array([o for f in found for o in f.get("outputs", ()) if o[0] > 0 and o[1] > 0])
    figure, axes = pyplot.subplots(figsize=(5, 4), constrained_layout=True)
    axes.loglog(values[:, 0], values[:, 1], "o", markersize=3, alpha=0.5, label="outputs")
    line = np.geomspace(values[:, 0].min() / 2, values[:, 0].max() * 2, 100)
    axes.loglog(line, line, color="grey", linewidth=0.8, label="equal errors")
    eps = float(np.finfo(np.float32).eps)
    axes.loglog(line, MULTIPLE * line + FLOOR_ULPS * eps, "r--", linewidth=0.8, label="allowed")
    axes.set_xlabel("source: largest error against float64")
    axes.set_ylabel("optimized")
    axes.legend(frameon=False)
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity.calibrate")
    parser.add_argument("folders", type=Path, nargs="*", default=FOLDERS)
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "calibration.json")
    chosen = parser.parse_args()
    found: dict[str, Any] = {}
    if chosen.results.exists():
        found = {f["graph"]: f for f in json.loads(chosen.results.read_text())}
    chosen.results.parent.mkdir(parents=True, exist_ok=True)
    for path in sorted(p for folder in chosen.folders for p in folder.glob("*.onnx")):
        if path.stem in found:
            continue
        found[path.stem] = one(path)
        chosen.results.write_text(json.dumps(list(found.values()), indent=1))
        if not found[path.stem].get("ok"):
            print(path.stem, found[path.stem].get("error") or found[path.stem]["reasons"])
    print(table(list(found.values())))
    plot(list(found.values()), PLOT)


if __name__ == "__main__":
    main()
