"""Every benchmark with its targets: `make bench`, or `python benchmarks/run.py`.

Prints the tables and writes docs/benchmarks.md. What a section takes is on its first line; all of
them together stay under ten minutes on two cores. Timings are of one thread.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # as a script, only its own folder is on the path

from benchmarks import gpu, grid, layout, scale, tokens, whole  # noqa: E402
from benchmarks.side_by_side import Setting  # noqa: E402
from benchmarks.tables import Section, block  # noqa: E402
from mari_onnx.model.save import write_text  # noqa: E402
from mari_onnx.report.terminal import console  # noqa: E402
from mari_onnx.timing.machine import machine  # noqa: E402

PAGE = ROOT / "docs" / "benchmarks.md"


def sections(tiny: bool, full: bool) -> Mapping[str, Callable[[], Section]]:
    """Name -> benchmark; `tiny` only shows that everything runs."""
    short = Setting(seconds=0.02, least=2)
    return {
        "grid": lambda: _grid(tiny, full),
        "layout": lambda: layout.section(short) if tiny else layout.section(),
        "tokens": lambda: tokens.section(short) if tiny else tokens.section(),
        "whole": lambda: _whole(tiny, full),
        "scale": lambda: scale.section(
            scale.NODES[:2] if tiny else scale.NODES,
            scale.MEGABYTES[:1] if tiny else scale.MEGABYTES,
        ),
    }


def _grid(tiny: bool, full: bool) -> Section:
    axes = grid.PAPER if full else grid.THINNED
    result = grid.section(full, Setting(seconds=0.02, least=2) if tiny else None)
    if tiny:
        return result
    try:
        grid.draw(result, axes, grid.IMAGES / "grid.png")
    except Exception as error:  # a plot is no reason to lose the figures
        result.notes.append(f"Heat maps not drawn: {error}")
    return result


def _whole(tiny: bool, full: bool) -> Section:
    wanted = whole.names()[:1] if tiny else whole.names()
    notes = whole.build(wanted)
    return whole.section(wanted, full, 0.1 if tiny else 1.0, notes)


# What other commands write on the page, between markers.
OTHERS = ("scoreboard", "providers", "split")


def page(found: list[Section], seconds: float, before: str = "") -> str:
    """docs/benchmarks.md. before: the page as it was, of which the tables of other commands are kept."""
    on = machine()
    libraries = ", ".join(f"{name} {version}" for name, version in on["libraries"].items())
    targets = [target for each in found for target in each.targets]
    missed = [f"{each.promise} ({each.measured})" for each in targets if not each.met]
    lines = [
        "# Benchmarks",
        "`make bench` prints and writes this page "
        f"({seconds / 60:.0f} minutes here, the whole models already exported to "
        "build/industrial/, which the first run does); the command under each title prints its "
        "table alone.",
        "",
        "All figures are of one run on "
        f"{on['processor']}, {on['cores']} cores, {on['system']}, Python {on['python']}, "
        f"{libraries}. Models are timed in turns (A B A B) on one thread, by the time that "
        "the thread itself ran (waiting for a busy machine is left out), each short run right after an untimed one of "
        "the same model; the load average was "
        f"{os.getloadavg()[0]:.1f} at the end. Ratios mean more than "
        "times, and move by some percent from run to run. A ratio above 1 is a gain.",
        "",
        f"{len(targets) - len(missed)} of {len(targets)} targets are met."
        + (f" Missed: {'; '.join(missed)}." if missed else ""),
        "",
    ]  # fmt: skip
    new = "\n".join(lines) + "\n" + "\n".join(s.markdown() for s in found) + "\n" + gpu.page()
    kept = [text for name in OTHERS if (text := block(before, name))]
    return "\n\n".join([new.rstrip(), *kept]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("sections", nargs="*", help="by default all: " + " ".join(sections(0, 0)))
    parser.add_argument("--full", action="store_true", help="the whole grid, slow sources at N = 2000")
    parser.add_argument("--tiny", action="store_true", help="only show that everything runs")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a target is missed")
    args = parser.parse_args()
    known = sections(args.tiny, args.full)
    if unknown := [name for name in args.sections if name not in known]:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(known)}")
    out, found, start = console(), [], time.perf_counter()
    for name in args.sections or known:
        begun = time.perf_counter()
        result = known[name]()
        result.show(out)
        out.print(f"  ({name}: {time.perf_counter() - begun:.0f} s)")
        found.append(result)
    if not args.sections and not args.tiny:
        write_text(PAGE, page(found, time.perf_counter() - start, PAGE.read_text(encoding="utf-8")))
        out.print(f"\nwrote {PAGE.relative_to(ROOT)}")
    targets = [target for each in found for target in each.targets]
    met = sum(target.met for target in targets)
    out.print(f"{met} of {len(targets)} targets met, {time.perf_counter() - start:.0f} s")
    return 1 if args.strict and met < len(targets) else 0


if __name__ == "__main__":
    sys.exit(main())
