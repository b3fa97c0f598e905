"""What a benchmark found: a table, targets and whether they are met; for a terminal and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Target:
    """A promise and what was measured of it."""

    promise: str
    measured: str
    met: bool

    @staticmethod
    def at_least(promise: str, value: float, limit: float, unit: str = "") -> Target:
        return Target(promise, f"{value:.3g}{unit}", value >= limit)

    @staticmethod
    def at_most(promise: str, value: float, limit: float, unit: str = "") -> Target:
        return Target(promise, f"{value:.3g}{unit}", value <= limit)

    @property
    def verdict(self) -> str:
        return "met" if self.met else "MISSED"


@dataclass
class Section:
    """One benchmark's results.

    Attributes:
        title, text: what was measured and how.
        command: prints this section again.
        headings, rows: the table; the first column is text, others numbers as text.
        targets: promises, may be none.
        notes: what did not run, and why.
        images: (path from docs/, what it shows).
    """

    title: str
    text: str
    command: str
    headings: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)

    @property
    def met(self) -> bool:
        return all(each.met for each in self.targets)

    def show(self, out: Console) -> None:
        out.print(f"\n[bold]{escape(self.title)}[/bold]")
        table = Table(box=None, pad_edge=False)
        for index, name in enumerate(self.headings):
            table.add_column(escape(name), justify="right" if index else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*map(escape, row))
        out.print(table)
        for target in self.targets:
            colour = "green" if target.met else "red"
            text = f"  {target.promise}: {target.measured}, "
            out.print(f"{escape(text)}[{colour}]{target.verdict}[/{colour}]")
        for note in self.notes:
            out.print(f"  {note}", markup=False)

    def markdown(self) -> str:
        lines = [f"## {self.title}", self.text, "", f"```sh\n{self.command}\n```", ""]
        lines.append("| " + " | ".join(self.headings) + " |")
        lines.append("|" + "|".join(["---", *["---:"] * (len(self.headings) - 1)]) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        if self.targets:
            lines += ["", "| target | measured | |", "|---|---:|---|"]
            lines += [f"| {t.promise} | {t.measured} | {t.verdict} |" for t in self.targets]
        lines += [f"\n{note}" for note in self.notes]
        lines += [f"\n![{text}]({path})" for path, text in self.images]
        return "\n".join(lines) + "\n"


def block(page: str, name: str) -> str:
    """What stands between the markers of `name` on a page, with them; nothing where there are none."""
    start, end = _markers(name)
    return page[page.index(start) : page.index(end) + len(end)] if start in page and end in page else ""


def replaced(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of `name`, which are added at its end where there are none."""
    start, end = _markers(name)
    new = f"{start}\n{text.strip()}\n{end}"
    old = block(page, name)
    return page.replace(old, new) if old else f"{page.rstrip()}\n\n{new}\n"


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def milliseconds(seconds: float) -> str:
    """Three digits: `0.123`, `12.3`, `1234`."""
    value = seconds * 1e3
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
