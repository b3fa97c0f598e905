"""What `benchmarks.speed` found: how many outputs are slower than their source, and how good the prices are.

    python -m benchmarks.speed_table A.jsonl [B.jsonl...] [--plot docs/speed.png]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SLOW = {16: 0.9}
"""Source's time over the output's below which an output counts as slower, by N; 0.97 for others."""


def figures(lines: Sequence[dict[str, Any]], n: int) -> dict[str, Any]:
    """Of all graphs timed at N: slower ones, the median, and how the predicted ratios agree with the measured ones."""
    found = {x["graph"]: x[str(n)] for x in lines if str(n) in x}
    measured = np.array([x["ratio"] for x in found.values()])
    predicted = np.array([x["predicted_ms"][0] / x["predicted_ms"][1] for x in found.values()])
    limit = SLOW.get(n, 0.97)
    return {
        "graphs": len(found),
        "median": float(np.median(measured)),
        "geometric mean": float(np.exp(np.log(measured).mean())),
        "lowest": float(measured.min()),
        f"below {limit}": sorted(name for name, x in found.items() if x["ratio"] < limit),
        "rank correlation": float(np.corrcoef(_ranks(measured), _ranks(predicted))[0, 1]),
        "median error of the ratio": float(np.median(np.abs(np.log(measured / predicted)))),
        "pairs": np.stack([predicted, measured]),
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    ranks: np.ndarray = np.argsort(np.argsort(values)).astype(float)
    return ranks


def plot(by_n: dict[int, dict[str, Any]], path: Path) -> None:
    """Predicted against measured ratios, a panel for each N."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(by_n), figsize=(4 * len(by_n), 4), squeeze=False, constrained_layout=True)
    for panel, (n, found) in zip(panels[0], by_n.items(), strict=True):
        predicted, measured = found["pairs"]
        low, high = 0.5, float(max(predicted.max(), measured.max()))
        panel.loglog([low, high], [low, high], color="grey", linewidth=1)
        panel.loglog(predicted, measured, ".", markersize=4)
        panel.set_title(f"N = {n}: {found['graphs']} graphs\nrank correlation {found['rank correlation']:.2f}")
        panel.set_xlabel("predicted: source's time / output's")
        panel.set_ylabel("measured")
    figure.savefig(path, dpi=90)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    lines = [json.loads(line) for path in given.files for line in path.read_text().splitlines()]
    kept = [x["graph"] for x in lines if x.get("changed") is False]
    print(f"{len(lines)} graphs, {len(kept)} left as they are, {sum('error' in x for x in lines)} failed")
    numbers = sorted({int(key) for line in lines for key in line if key.isdigit()})
    by_n = {n: figures(lines, n) for n in numbers if sum(str(n) in x for x in lines) > 20}
    for n, found in by_n.items():
        said = (f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items() if k != "pairs")
        print(f"N = {n}: " + ", ".join(said))
    if given.plot is not None:
        plot(by_n, given.plot)


if __name__ == "__main__":
    main()
