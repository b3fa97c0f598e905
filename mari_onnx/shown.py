"""How answers of the Python API look: a few aligned lines where they are printed, a small table in a notebook."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from html import escape
from typing import TypeAlias

Rows: TypeAlias = Sequence[Sequence[str]]
"""Lines of cells; the first cell says what the line is about."""
WIDEST = 100
"""Characters of a cell that is not the last of its line; the rest is cut."""


class Shown:
    """An answer that is worth printing. A dataclass that inherits from it needs `repr=False`."""

    @abstractmethod
    def shown(self) -> tuple[str, Rows]:
        """A title, and what is to be known, line by line."""

    def __repr__(self) -> str:
        return as_text(*self.shown())

    def _repr_html_(self) -> str:
        """For notebooks: one table, nothing from outside, all text escaped."""
        return as_html(*self.shown())


def as_text(title: str, rows: Rows) -> str:
    """The title, and below it the lines with their cells one under the other."""
    columns = max((len(row) for row in rows), default=0)
    widths = [max((len(row[k]) for row in rows if len(row) > k + 1), default=0) for k in range(columns)]
    widths = [min(width, WIDEST) for width in widths]
    lines = [title]
    for row in rows:
        *cells, last = row
        padded = [f"{_cut(cell):{width}}" for cell, width in zip(cells, widths, strict=False)]
        lines.append("  " + "  ".join([*padded, last]).rstrip())
    return "\n".join(lines)


def as_html(title: str, rows: Rows) -> str:
    """The same as a table; every text is escaped."""
    columns = max((len(row) for row in rows), default=1)
    left = "style='text-align:left'"
    body = "".join(
        f"<tr><th {left}>{escape(row[0])}</th>"
        + "".join(f"<td {left}>{escape(cell)}</td>" for cell in row[1:-1])
        + (f"<td {left} colspan='{columns - len(row) + 1}'>{escape(row[-1])}</td>" if len(row) > 1 else "")
        + "</tr>"
        for row in rows
    )
    return f"<table><caption {left}>{escape(title)}</caption><tbody>{body}</tbody></table>"


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 2]}.."
