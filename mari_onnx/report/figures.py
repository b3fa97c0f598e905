"""Figures as people read them."""

from __future__ import annotations

from collections.abc import Sequence


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


def dims(shape: Sequence[int | str | None]) -> str:
    """`[N, 32]`; an unknown dimension is `?`."""
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"
