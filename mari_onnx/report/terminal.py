"""The report for a terminal: the numbers of the JSON, few of them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import IO, TypeAlias

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mari_onnx.report.figures import change, dims, quantity
from mari_onnx.report.records import Input, Stop
from mari_onnx.report.report import Report

# What a summary is made of: a line of text, taken as it is, or a table.
Block: TypeAlias = str | Table

# Wide enough that no table is cut where nobody can widen the window.
_PIPED_WIDTH = 200


def console(file: IO[str] | None = None) -> Console:
    """A console that is plain and wide when piped."""
    file = file or sys.stdout
    width = None if file.isatty() else _PIPED_WIDTH
    return Console(file=file, width=width, highlight=False, soft_wrap=not file.isatty())


def totals(report: Report, most: int | None = 3) -> list[Block]:
    """Before and after, what was lifted, and the most frequent reasons why not more."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("before", "after", ""):
        table.add_column(name, justify="right")
    for row in total_rows(report):
        table.add_row(*row)
    return [table, summary_line(report), *report.assumed, *reasons(report, most)]


def total_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Totals of source and output by name, and how they changed: the figures of the JSON."""
    told = report.to_dict()
    before, after = told["before"], told["after"]
    rows = []
    for name, key in (
        ("nodes", "nodes"),
        ("  of which once per request", "once_nodes"),
        ("products", "products"),
        ("FLOPs per candidate", "flops_per_candidate"),
        ("  of which once per request (/ N)", "once_flops_per_candidate"),
        ("bytes per candidate", "bytes_per_candidate"),
    ):
        old, new = before[key], after[key]
        shown = (quantity(old), quantity(new)) if "_per_" in key else (str(old), str(new))
        rows.append((name, *shown, change(old, new) if key in _COMPARED else ""))
    return rows


# What a rewrite is for; of the others more may be as good as less.
_COMPARED = ("nodes", "flops_per_candidate", "bytes_per_candidate")


def operators_table(report: Report) -> Table:
    """How many nodes of each operator source and output have."""
    table = Table(box=None, pad_edge=False)
    table.add_column("operator")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    before, after = report.before.operators, report.after.operators
    for op in sorted({*before, *after}):
        table.add_row(op, str(before.get(op, 0)), str(after.get(op, 0)))
    return table


def summary_line(report: Report) -> str:
    """What became of the products, and how many nodes and FLOPs of the output run once per request."""
    if not report.changed:
        return f"nothing to lift: {report.reason or 'see the reasons'}"
    actions = Counter(node.action for node in report.products)
    lifted = f", {actions['lifted']} lifted" if actions["lifted"] else ""
    after = report.after
    share = f" and take {after.once_flops / after.flops:.1%} of its FLOPs" if after.flops else ""
    return (
        f"at {report.candidates} candidates: {actions['split']} of {len(report.products)} products split{lifted}; "
        f"{after.once_nodes} of the output's {after.nodes} nodes run once per request{share}"
    )


def reasons(report: Report, most: int | None = None) -> list[Block]:
    """Why nodes were kept as they are, the most frequent first, and which operators stopped it."""
    stops: dict[str, list[Stop]] = {}
    for stop in report.stops:
        stops.setdefault(stop.reason, []).append(stop)
    lines: list[Block] = []
    for reason, count in report.reasons[:most]:
        found = stops.get(reason, [])
        names = ", ".join(f"{stop.op} {stop.name}" for stop in found[:2])
        more = f" and {len(found) - 2} more" if len(found) > 2 else ""
        after = sum(stop.after for stop in found)
        tail = f"; {after} nodes after it take its N rows" if after else ""
        where = f" ({names}{more}{tail})" if names else ""
        lines.append(f"  kept {count}: {reason + where}")
    left = len(report.reasons) - most if most is not None else 0
    if left > 0:
        lines.append(f"  and {left} more reasons; --report or inspect --json has them all")
    return lines


def still_per_candidate(report: Report, most: int = 3) -> list[Block]:
    """The most expensive work that the output does for each candidate, each with its reason."""
    found = report.left[:most]
    lines = [f"  {each.share:.0%} {each.op} {each.node}: {each.why}" for each in found]
    head = f"still per candidate, in shares of the output's {quantity(report.after.flops)} FLOPs:"
    return [head, *lines] if found else []


def for_the_caller(report: Report, most: int = 6) -> list[Block]:
    """Which inputs take other dimensions than before: the user's, of which there is one row."""
    alike: dict[str, list[str]] = {}
    for name, (before, after) in report.reshaped.items():
        alike.setdefault(f"{dims(before)} -> {dims(after)}", []).append(name)
    told = [
        f"{', '.join(names[:most])}{f' and {len(names) - most} more' if len(names) > most else ''} {how}"
        for how, names in alike.items()
    ]
    return [f"for the caller: {'; '.join(told)}"] if told else []


def residual(report: Report, most: int = 15) -> list[Block]:
    """The residual share before and after, and the nodes with most redundant work."""
    if report.residual is None:
        return []
    before, after = report.residual["before"], report.residual["after"]
    table = Table(box=None, pad_edge=False)
    table.add_column(f"equal for all of {before['candidates']} candidates")
    for name in ("before", *(["after"] if after else [])):
        table.add_column(name, justify="right")
    shown = [each for each in (before, after) if each]
    for name, key in (("residual share of FLOPs", "share"), ("of bytes", "byte_share")):
        table.add_row(name, *(f"{each[key]:.1%}" for each in shown))
    blocks: list[Block] = ["", table]
    left = after or before
    nodes = left["nodes"][:most]
    if not nodes:
        return [*blocks, "no node has redundant work" + (" left" if after else "")]
    table = Table(box=None, pad_edge=False)
    table.add_column("left in the output" if after else "redundant work", overflow="fold")
    table.add_column("op")
    for name in ("FLOPs", "bytes"):
        table.add_column(name, justify="right")
    for name in ("what", "why"):
        table.add_column(name, overflow="fold")
    n = left["candidates"]
    for node in nodes:
        table.add_row(
            escape(node["name"]),
            node["op"],
            quantity(node["redundant_flops"] / n),
            quantity(node["redundant_bytes"] / n),
            node["found"],
            escape(node["why"]),
        )
    blocks += ["", table]
    if len(left["nodes"]) > most:
        blocks.append(f"and {len(left['nodes']) - most} more; --json has them all")
    return blocks


def separation(report: Report, best: int = 3) -> list[Block]:
    """The layers at which user and candidate mix, what their separation would save, and the best of them."""
    found = report.separation
    if found is None:
        return []
    layers = found["layers"]
    if not layers:
        return ["", f"what if separated: {found['reason']}"]
    table = Table(box=None, pad_edge=False)
    table.add_column("what if the user's part did not read the candidate at", overflow="fold")
    for name in ("op", "user's part", "FLOPs per candidate", "", "predicted", "saved", "rank"):
        table.add_column(name, justify="left" if name == "op" else "right", no_wrap=True)
    before, time = found["flops_per_candidate"], found["milliseconds"]
    table.add_row("(now)", "", "", quantity(before), "", f"{time:.3f} ms", "", "")
    for each in layers:
        flops, own = each["flops_per_candidate"], len(each["user_positions"])
        part = f"{own} of {each['positions']}, axis {each['axis']}"
        gain = f"{quantity(each['saved_flops_per_candidate'])}"
        row = (quantity(flops), change(before, flops), f"{each['milliseconds']:.3f} ms", gain, str(each["rank"]))
        table.add_row(escape(each["node"]), each["op"], part, *row)
    top = sorted(layers, key=lambda each: each["rank"])[:best]
    named = ", ".join(f"{each['node']} (-{each['saved_flops_per_candidate'] / before:.0%} of FLOPs)" for each in top)
    lines = [
        f"at {found['candidates']} candidates a retrained model would save most by separation at {named}; each line "
        "takes the lines above it for separated, and layers that make up for lost quality would come on top"
    ]
    return ["", table, *lines, *([f"note: {found['reason']}"] if found["reason"] else [])]


def inputs_table(inputs: Sequence[Input]) -> Table:
    """Every input with its side."""
    table = Table(box=None, pad_edge=False)
    for name in ("input", "side", "type", "shape"):
        table.add_column(name, overflow="fold")
    for each in inputs:
        if each.columns:
            side = ", ".join(f"{len(c)} {name}" for name, c in each.columns.items()) + " columns"
        else:
            side = each.side or "not tagged"
        table.add_row(escape(each.name), side, each.dtype, escape(dims(each.shape)))
    return table


# As the HTML page says it.
_DEPENDS = {"Const": "constants", "Shared": "user", "Item": "item", "Mixed": "user and candidate"}


def products_table(report: Report) -> Table:
    """Every product with what it depends on, what becomes of it, and why not more."""
    table = Table(box=None, pad_edge=False)
    table.add_column("product", overflow="fold")
    for name in ("op", "depends on", "becomes"):
        table.add_column(name)
    table.add_column("FLOPs", justify="right")
    table.add_column("why not more", overflow="fold")
    for node in report.products:
        flops = "" if node.flops is None else quantity(node.flops)
        why = escape(node.why or "")
        table.add_row(escape(node.name), node.op, _DEPENDS.get(node.kind, node.kind), node.action, flops, why)
    return table
