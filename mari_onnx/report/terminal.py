"""The report for a terminal: the numbers of the JSON, few of them."""

from __future__ import annotations

import sys
from typing import IO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mari_onnx.report.report import Input, Report

# Wide enough that no table is cut where nobody can widen the window.
_PIPED_WIDTH = 200


def console(file: IO[str] | None = None) -> Console:
    """A console that is plain and wide when piped."""
    file = file or sys.stdout
    width = None if file.isatty() else _PIPED_WIDTH
    return Console(file=file, width=width, highlight=False, soft_wrap=not file.isatty())


def quantity(value: float) -> str:
    """`1234567.0` as `1.23 M`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.3g}"


def change(before: float, after: float) -> str:
    """`-60%`, `+3%`, `=`; empty where there was nothing before."""
    if not before:
        return ""
    percent = 100 * (after / before - 1)
    return "=" if abs(percent) < 0.5 else f"{percent:+.0f}%"


def print_summary(report: Report, out: Console) -> None:
    """Before and after, what was lifted, and the most frequent reasons why not more."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("before", "after", ""):
        table.add_column(name, justify="right")
    before, after = report.before, report.after
    table.add_row("nodes", str(before.nodes), str(after.nodes), change(before.nodes, after.nodes))
    table.add_row("products", str(before.products), str(after.products), "")
    for name, old, new in (
        ("FLOPs a candidate", before.flops, after.flops),
        ("bytes a candidate", before.bytes, after.bytes),
    ):
        table.add_row(name, quantity(old), quantity(new), change(old, new))
    out.print(table)
    split = sum(node.action == "split" for node in report.products)
    lifted = report.actions.get("lifted", 0)
    out.print(
        f"for N = {report.candidates}: {split} of {len(report.products)} products split, "
        f"{lifted} of {len(report.nodes)} nodes run once a request"
    )
    print_reasons(report, out, most=3)


def print_reasons(report: Report, out: Console, most: int | None = None) -> None:
    """Why nodes were kept as they are, the most frequent first."""
    for reason, count in report.reasons[:most]:
        out.print(f"  kept {count}: {escape(reason)}")


def print_inputs(inputs: list[Input] | tuple[Input, ...], out: Console) -> None:
    """Every input with its side."""
    table = Table(box=None, pad_edge=False)
    for name in ("input", "side", "type", "shape"):
        table.add_column(name, overflow="fold")
    for each in inputs:
        shape = "[" + ", ".join("?" if d is None else str(d) for d in each.shape) + "]"
        if each.columns:
            side = ", ".join(f"{len(c)} {name}" for name, c in each.columns.items()) + " columns"
        else:
            side = each.side or "as the graph says"
        table.add_row(escape(each.name), side, each.dtype, escape(shape))
    out.print(table)


def print_products(report: Report, out: Console) -> None:
    """Every product with its kind, what becomes of it, and why not more."""
    table = Table(box=None, pad_edge=False)
    table.add_column("product", overflow="fold")
    for name in ("op", "kind", "becomes"):
        table.add_column(name)
    table.add_column("FLOPs", justify="right")
    table.add_column("why not more", overflow="fold")
    for node in report.products:
        flops = "" if node.flops is None else quantity(node.flops)
        reason = escape(node.reason or "")
        table.add_row(escape(node.name), node.op, node.kind, node.action, flops, reason)
    out.print(table)
