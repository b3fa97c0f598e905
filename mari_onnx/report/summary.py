"""What every command says at its end: tables and lines, put together here and written by one function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mari_onnx.report.figures import quantity
from mari_onnx.report.report import Report
from mari_onnx.report.terminal import (
    Block,
    for_the_caller,
    inputs_table,
    operators_table,
    products_table,
    reasons,
    residual,
    separation,
    still_per_candidate,
    totals,
)

if TYPE_CHECKING:
    from mari_onnx.parity.result import CheckResult


def write(out: Console, blocks: Iterable[Block]) -> None:
    """Writes the summary of a command; lines are not wrapped, so that a log can be searched."""
    for block in blocks:
        if isinstance(block, str):
            out.print(block, markup=False, soft_wrap=True)
        else:
            out.print(block)


def of_optimize(
    report: Report,
    *,
    show_inputs: bool = False,
    target: str = "cpu",
    tags: str | None = None,
    verbose: bool = False,
) -> list[Block]:
    """What `optimize` did and what the check of it found.

    Args:
        tags: what they would bring where there are none (`mari_onnx.suggest`).
        show_inputs: list the inputs with their sides.
        target: the kind of machine that rewrites were chosen for.
        verbose: list inputs, products, operators, and all reasons.
    """
    blocks: list[Block] = [inputs_table(report.inputs)] if show_inputs or verbose else []
    blocks += ["", products_table(report), "", operators_table(report), ""] if verbose else []
    blocks += [f"undone: {incident}" for incident in report.incidents]
    if not report.changed:
        blocks.append("nothing to lift (to run once per request): the model is written unchanged")
        blocks += [f"  {report.reason}"] if report.reason else []
        return blocks + [f"note: {note}" for note in report.notes] + reasons(report, most=None if verbose else 3)
    blocks += [f"note: {note}" for note in report.notes]
    blocks += totals(report, most=None if verbose else 3)
    if report.check is not None:
        blocks += of_equal(report.check, target)
    blocks += _user_weights(report)
    blocks += still_per_candidate(report, most=10 if verbose else 3)
    blocks += for_the_caller(report)
    blocks += _speed(report)
    return blocks + ([tags] if tags else [])


def _user_weights(report: Report) -> list[Block]:
    """What 8-bit weights lose, and of how many products they are."""
    found = report.user_weights
    if found is None:
        return []
    products = found["products"]
    fastest = max(each["speedup"] for each in products)
    lines: list[Block] = [
        f"8-bit weights for {len(products)} products of the user (up to {fastest:.2g}x faster each): not equal to the "
        f"source. On {found['requests']} recorded requests:"
    ]
    for name, each in found["outputs"].items():
        top = "".join(f", {share:.1%} of the top {k} at least" for k, share in each["top_k"].items())
        loss = "" if each["tau_loss"] is None else f"1 - Kendall's tau {each['tau_loss']:.2g} (allowed "
        loss += f"{found['max_tau_loss']:g}; worst tau of a request {each['worst_tau']:.4f})" if loss else ""
        lines.append(f"  {name}: {loss}{top}; error {each['error']:.2g} of the largest score")
    return lines


def _speed(report: Report) -> list[Block]:
    """How much faster the output is: measured, or else estimated; and whether that holds for few candidates."""
    left = len(report.choices.get("left_for_time", ()))
    blocks: list[Block] = []
    if left:
        blocks.append(f"{left} nodes are left as they are, because rewriting them takes more time than it saves")
    if report.speed is not None:
        blocks.append(str(report.speed["text"]))
        spread = max(report.speed["spread"].values(), default=0.0)
        if spread > WIDE:
            blocks.append(f"note: times vary by {spread:.0%} here: something else runs on this machine")
    elif report.estimated:
        at = ", ".join(f"{ratio:.2g}x at {n}" for n, ratio in report.estimated.items())
        blocks.append(f"estimated by prices of kernels: {at} candidates")
    return blocks


# Half the distance between the quartiles of ratios, as a share of the ratio, from which a figure is doubtful.
WIDE = 0.15


def of_equal(check: Mapping[str, Any], target: str) -> list[Block]:
    """On what the outputs were found equal, and what else the check says."""
    sizes = ", ".join(map(str, check["candidates"]))
    recorded = f", {check['recorded']} recorded requests among them" if check["recorded"] else ""
    ran = " and ".join(check["providers"])
    blocks: list[Block] = [f"outputs are equal for N = {sizes} on {ran}{recorded}"]
    if "cuda" in check["providers"] and target == "cpu":
        blocks.append("a GPU was found: --target cuda chooses rewrites for it, --target cpu (default) for the CPU")
    if check["reached"]["text"]:
        blocks.append(f"the check's requests reached: {check['reached']['text']}")
    return blocks + [f"note: {note}" for note in [*check["notes"], *check["doubts"]]]


def of_inspect(report: Report) -> list[Block]:
    """Inputs, products, totals, and what was measured; of an output for several requests what it takes."""
    if report.sides.batched and not report.nodes:
        return [inputs_table(report.inputs), "", f"{report.reason}", *report.notes, *separation(report)]
    blocks: list[Block] = [inputs_table(report.inputs), "", products_table(report), "", *totals(report)]
    return [*blocks, *residual(report), *separation(report)]


def of_check(result: CheckResult) -> list[Block]:
    """A line per output, the verdict, then what else is to be known."""
    table = Table(box=None, pad_edge=False)
    headings = ["output", "on", "", "max abs", "mean abs", "max rel", "max ulp", "error", "allowed"]
    for heading in [*headings, "tau", "swaps", "top k"]:
        table.add_column(heading, no_wrap=heading != "output")
    for each in result.outputs:
        rank = each.ranking
        shares = {} if rank is None else rank.top_k
        table.add_row(
            Text(each.name),
            each.provider,
            Text("ok", "green") if each.ok else Text("DIFFERS", "red"),
            *(f"{x:.1e}" for x in (each.max_abs, each.mean_abs, each.max_rel)),
            f"{each.max_ulp:.0f}" if each.max_ulp < 1e5 else f"{each.max_ulp:.0e}",
            f"{each.overall.error:.1e}",
            f"{each.overall.allowed:.1e}",
            "" if rank is None else f"{rank.tau:.4f}",
            "" if rank is None else str(rank.swaps),
            " ".join(f"{k}: {share:.0%}" for k, share in shares.items()),
        )
    missed = {k: (a, b) for k, (a, b) in result.coverage.items() if a < b}
    ids = f"; ids met: all of {len(result.coverage)} inputs" if result.coverage else ""
    if missed:
        ids = "; ids met: " + ", ".join(f"{k} {a} of {b}" for k, (a, b) in missed.items())
    numbers = ",".join(map(str, result.candidates))
    on = f" on {' and '.join(result.providers)}" if result.providers else ""
    recorded = f" ({result.recorded} recorded)" if result.recorded else ""
    lines = [
        f"{result.verdict}{on}: {result.requests} requests{recorded}, N = {numbers}, seed {result.settings.seed}{ids}; "
        f"reference: {result.reference}; {result.seconds:.1f} s",
        *([f"the requests reached: {result.reached}"] if str(result.reached) else []),
        *(f"note: {note}" for note in [*result.notes, *result.doubts]),
        *(f"inputs of the worst request: {o.dumped}" for o in result.outputs if o.dumped),
    ]
    if result.divergence is not None:
        lines.append(f"first divergence: {result.divergence}")
    if result.layers is not None:
        from mari_onnx.parity.bisect import told

        lines += told(result.layers)
    return [*([table] if result.outputs else []), *lines]


# Figures that a variant may have, with the heading of their column.
_FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "transfer_median_ms": ("transfers", lambda v: f"{v:.3f} ms"),
    "predicted_speedup": ("predicted", lambda v: f"{v:.2f}x"),
    "of_floor_speed": ("of floor", lambda v: f"{v:.2f}"),
    "flops_per_candidate": ("FLOPs per candidate", quantity),
    "bytes_per_candidate": ("bytes per candidate", quantity),
    "peak_memory_bytes": ("peak memory", lambda v: f"{v / 1e6:.0f} MB"),
    "max_difference": ("max difference", lambda v: f"{v:.1e}"),
}


_CLOCKS = {
    "thread": "CPU time of one thread (time spent waiting on a busy machine is left out)",
    "wall": "wall-clock time, because several threads or a GPU ran (other work on the machine slows it)",
}


def of_bench(told: Mapping[str, Any]) -> list[Block]:
    """A row per N, number of threads and variant.

    Args:
        told: `Bench.to_dict()`.
    """
    results: Sequence[Mapping[str, Any]] = told["results"]
    entries = [figures for each in results for figures in each["variants"].values()]
    extra = {key: how for key, how in _FIGURES.items() if any(e.get(key) is not None for e in entries)}
    several = len({each["threads"] for each in results}) > 1
    table = Table(box=None, pad_edge=False)
    together = any("requests" in each for each in results)
    for name in [*(["requests"] if together else []), "N", *(["threads"] if several else [])]:
        table.add_column(name, justify="right")
    table.add_column("model")
    for name in ["median", "p99", "spread", "faster", "(middle half)", *(h for h, _ in extra.values())]:
        table.add_column(name, justify="right", no_wrap=True)
    for each in results:
        for index, (name, figures) in enumerate(each["variants"].items()):
            low, high = figures["speedup_quartiles"]
            setting = [*([str(each["requests"])] if together else []), str(each["candidates"])]
            setting += [str(each["threads"])] if several else []
            table.add_row(
                *(setting if not index else [""] * len(setting)),
                escape(name),
                f"{figures['median_ms']:.3f} ms",
                f"{figures['p99_ms']:.3f} ms",
                f"{figures['spread']:.0%}",
                f"{figures['speedup']:.2f}x" if index else "",
                f"{low:.2f}-{high:.2f}" if index else "",
                *("" if figures.get(key) is None else text(figures[key]) for key, (_, text) in extra.items()),
            )
    clocks = {each["clock"] for each in results}
    said = [text for clock, text in _CLOCKS.items() if clock in clocks]
    notes = [f"note: {note}" for note in told["notes"]]
    return [table, f"times: {'; '.join(said)}", *_ends(told["faster_from"]), *notes]


def _ends(faster_from: Mapping[str, Mapping[str, int | None]]) -> list[str]:
    """From which N on each model is no slower than the first."""
    several = len(faster_from) > 1
    return [
        f"{name}{f' on {threads} threads' if several else ''}: "
        + ("slower at the largest N measured" if n is None else f"no slower than the first from N = {n} on")
        for threads, ends in faster_from.items()
        for name, n in ends.items()
    ]
