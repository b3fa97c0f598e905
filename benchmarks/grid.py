"""MatMul alone, where user and candidate features meet: the grid of the MaRI paper.

Vanilla: the caller repeats the user's row N times. One-shot: the graph expands it just before the
Concat. Floor: the candidate's product, the user's part fed ready made.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.graphs import Graph
from benchmarks.side_by_side import Setting, cut, optimized, timed
from benchmarks.tables import Section, milliseconds
from mari_onnx.report.terminal import console
from mari_onnx.sides.resolve import Sides
from mari_onnx.timing.clock import Timing

COMMAND = "python -m benchmarks.grid"
IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIDES = Sides({"user": "user", "item": "item"})


@dataclass(frozen=True)
class Axes:
    """The sizes to run through: candidates, widths of the user's and the item's part, hidden."""

    candidates: Sequence[int] = (100, 500, 1000, 2000, 4000)
    user: Sequence[int] = (256, 1024, 4000)
    item: Sequence[int] = (64, 256, 512)
    hidden: Sequence[int] = (128, 256, 512)

    def cells(self) -> list[tuple[int, int, int, int]]:
        return list(itertools.product(self.candidates, self.user, self.item, self.hidden))


PAPER = Axes()
THINNED = Axes((100, 1000, 4000), (256, 1024, 4000), (64, 512), (128, 512))
Cell = tuple[int, int, int, int]


def layer(user: int, item: int, hidden: int, one_shot: bool, dtype: type) -> onnx.ModelProto:
    """`[user | item] W`, the user's row coming N times or expanded in the graph."""
    g = Graph(dtype=dtype)
    u = g.input("user", [1 if one_shot else "N", user])
    x = g.input("item", ["N", item])
    if one_shot:
        u = g.op("Expand", u, g.op("Concat", g.rows_of(x), g.ints(1), axis=0))
    g.op("MatMul", g.op("Concat", u, x, axis=1), g.weight(user + item, hidden))
    return g.model("score", ["N", hidden])


def measure(axes: Axes, setting: Setting, dtype: type = np.float32) -> dict[Cell, Timing]:
    """Times of vanilla, one-shot, ours and floor in each cell."""
    found = {}
    for n, user, item, hidden in axes.cells():
        vanilla = layer(user, item, hidden, False, dtype)
        one_shot = layer(user, item, hidden, True, dtype)
        ours = optimized(vanilla, SIDES, n, setting.provider)
        models = {
            "vanilla": vanilla,
            "one-shot": one_shot,
            "ours": ours.model,
            "floor": cut(ours, SIDES),
        }
        rng = np.random.default_rng(1)
        values = {
            "user": rng.standard_normal((1, user), np.float32).astype(dtype),
            "item": rng.standard_normal((n, item), np.float32).astype(dtype),
        }
        timing, outputs = timed(models, {"user": values["user"]}, {"item": values["item"]}, setting)
        limit = 1e-4 if dtype is np.float32 else 5e-2
        apart = float(np.abs(outputs["vanilla"] - outputs["ours"]).max())
        if apart > limit:
            raise RuntimeError(f"outputs are {apart:.1e} apart at {(n, user, item, hidden)}")
        found[n, user, item, hidden] = timing
    return found


def section(full: bool = False, setting: Setting | None = None) -> Section:
    axes = PAPER if full else THINNED
    setting = setting or Setting(seconds=0.4)
    found = measure(axes, setting)
    result = Section(
        "The paper's grid: one MatMul",
        "N candidates, a user part and an item part side by side, one product; one thread. Vanilla "
        "repeats the user's row N times, one-shot expands it just before the Concat, the floor is "
        "the item's product with the user's part fed ready made. Milliseconds, median; ratios pair "
        "by pair.",
        COMMAND + (" --full" if full else ""),
        ["N, user, item, hidden", "vanilla", "one-shot", "ours", "floor", "vanilla / ours",
         "one-shot / ours", "floor / ours"],
    )  # fmt: skip
    for cell, t in found.items():
        times = [milliseconds(t.median(name)) for name in t.names]
        ratios = [f"{t.ratio(name, 'ours'):.2f}" for name in ("vanilla", "one-shot", "floor")]
        result.rows.append([", ".join(map(str, cell)), *times, *ratios])
    ratios = np.array([t.ratio("one-shot", "ours") for t in found.values()])
    result.notes.append(
        f"One-shot / ours over all cells: {ratios.min():.2f} to {ratios.max():.2f}, geometric "
        f"mean {np.exp(np.log(ratios).mean()):.2f}."
    )
    return result


def draw(section: Section, axes: Axes, path: Path) -> None:
    """Heat maps of one-shot / ours: N by user width, a map for each item width and hidden."""
    from mari_onnx.timing.plot import heat_maps

    column = section.headings.index("one-shot / ours")
    ratios = {row[0]: float(row[column]) for row in section.rows}
    tables = []
    for item, hidden in itertools.product(axes.item, axes.hidden):
        table = [
            [ratios[f"{n}, {user}, {item}, {hidden}"] for n in axes.candidates]
            for user in axes.user
        ]
        tables.append((f"item {item}, hidden {hidden}", table))
    path.parent.mkdir(parents=True, exist_ok=True)
    heat_maps(
        tables,
        ("user width", axes.user),
        ("candidates N", axes.candidates),
        path,
        "times faster than user one-shot",
    )
    section.command += f" --plot docs/images/{path.name}"
    section.images.append((f"images/{path.name}", "One-shot / ours over the grid"))


def by_cell(found: Mapping[Cell, Timing]) -> list[dict[str, object]]:
    """The grid as JSON."""
    return [
        {"n": n, "user": user, "item": item, "hidden": hidden, **timing.to_dict("vanilla")}
        for (n, user, item, hidden), timing in found.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--full", action="store_true", help="all 135 cells")
    parser.add_argument("--plot", type=Path, help="heat maps, .png or .svg")
    args = parser.parse_args()
    result = section(args.full)
    if args.plot:
        draw(result, PAPER if args.full else THINNED, args.plot)
    result.show(console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
