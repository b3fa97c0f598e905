"""Plots of measurements, as .png or .svg."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mari_onnx.errors import UsageError

if TYPE_CHECKING:
    from mari_onnx.timing.measure import Measured

FORMATS = (".png", ".svg")
# Okabe and Ito's colours, told apart by colour-blind readers; markers tell lines apart in grey.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = "osD^vPX"


def check_format(path: Path) -> None:
    """Raises UsageError for a file of another format, or where matplotlib is missing."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"cannot plot to {path}", f"name a file that ends in {' or '.join(FORMATS)}"
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("plots need matplotlib", "pip install 'mari-onnx[plot]'") from error


def plot(results: Sequence[Measured], path: Path, title: str = "") -> None:
    """Latency against N, and speed-up over the first variant against N.

    Args:
        results: of one or several numbers of threads; lines of others than the first are dashed.
        path: .png or .svg.
    """
    figure, (left, right) = _figure(2, width=5.6)
    threads = list(dict.fromkeys(each.threads for each in results))
    names = results[0].timing.names
    for style, count in zip(("-", "--", ":", "-."), threads, strict=False):
        chosen = [each for each in results if each.threads == count]
        xs = [each.n for each in chosen]
        suffix = f", {count} thread{'s' * (count > 1)}" if len(threads) > 1 else ""
        for index, name in enumerate(names):
            look: dict[str, Any] = {
                "color": _COLOURS[index % len(_COLOURS)],
                "marker": _MARKERS[index % len(_MARKERS)],
                "linestyle": style,
                "markersize": 4,
                "label": name + suffix,
            }
            left.plot(xs, [each.timing.median(name) * 1e3 for each in chosen], **look)
            if index:
                ratios = [each.timing.ratio(names[0], name) for each in chosen]
                bounds = [each.timing.quartiles(names[0], name) for each in chosen]
                right.plot(xs, ratios, **look)
                lows, highs = zip(*bounds, strict=True)
                right.fill_between(xs, lows, highs, color=look["color"], alpha=0.15, linewidth=0)
    left.set(xscale="log", yscale="log", xlabel="candidates N", ylabel="median latency (ms)")
    right.set(xscale="log", xlabel="candidates N", ylabel=f"times faster than {names[0]}")
    right.axhline(1, color="#888888", linewidth=0.8)
    ticks = sorted({each.n for each in results})
    for axes in (left, right):
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.25)
    for formatter in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else "")
    # Bands of a busy machine may be wide: lines are what has to be seen.
    top = max(max(line.get_ydata()) for line in right.get_lines())
    right.set_ylim(0, top * 1.25)
    handles = left.get_legend_handles_labels()[0]
    figure.legend(handles=handles, fontsize=8, loc="outside right center")
    _finish(figure, path, title)


def heat_maps(
    tables: Sequence[tuple[str, Sequence[Sequence[float]]]],
    rows: tuple[str, Sequence[int]],
    columns: tuple[str, Sequence[int]],
    path: Path,
    title: str = "",
) -> None:
    """One map of ratios a table, all in one scale.

    Args:
        tables: (title, values `[rows, columns]`).
        rows, columns: label and ticks of either axis.
    """
    figure, axes = _figure(len(tables), width=3.4, height=3.2)
    top = max(value for _, table in tables for line in table for value in line)
    image = None
    for each, (name, table) in zip(axes, tables, strict=True):
        image = each.imshow(table, cmap="cividis", vmin=0, vmax=top, aspect="auto")
        each.set_title(name, fontsize=9)
        each.set_xticks(range(len(columns[1])), columns[1])
        each.set_yticks(range(len(rows[1])), rows[1])
        each.set_xlabel(columns[0])
        for y, line in enumerate(table):
            for x, value in enumerate(line):
                dark = value < top * 0.55
                colour = "white" if dark else "black"
                each.text(x, y, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=8)
    axes[0].set_ylabel(rows[0])
    figure.colorbar(image, ax=list(axes), shrink=0.85, pad=0.02)
    _finish(figure, path, title)


def _figure(count: int, width: float = 5.0, height: float = 3.8) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    # Figure alone: pyplot would look for a display and keep every figure alive.
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _finish(figure: Any, path: Path, title: str) -> None:
    import matplotlib

    check_format(path)
    if title:
        figure.suptitle(title, fontsize=10)
    # Without a date and with fixed ids, equal figures are equal files.
    with matplotlib.rc_context({"svg.hashsalt": "mari-onnx", "svg.fonttype": "path"}):
        figure.savefig(path, dpi=140, metadata={"Date": None} if path.suffix == ".svg" else None)
