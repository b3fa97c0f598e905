"""The equation of an Einsum, read together with the shapes of its operands."""

from __future__ import annotations

from collections.abc import Sequence

Shape = tuple[int, ...]


def einsum_sizes(
    equation: str, shapes: Sequence[Shape | None]
) -> tuple[list[str], str, dict[str, int]]:
    """Operand labels, output labels and label sizes of an Einsum.

    An ellipsis becomes upper-case Greek labels.

    Returns: `(operands, output, sizes)`; `sizes` takes the largest where an operand broadcasts.
    """
    lhs, arrow, rhs = equation.replace(" ", "").partition("->")
    operands = lhs.split(",")
    rank = 0
    for labels, shape in zip(operands, shapes, strict=False):
        if "..." in labels and shape is not None:
            rank = max(rank, len(shape) - (len(labels) - 3))
    dots = [chr(0x391 + i) for i in range(rank)]
    sizes: dict[str, int] = {}
    named: list[str] = []
    for labels, shape in zip(operands, shapes, strict=False):
        own = len(shape) - (len(labels) - 3) if shape is not None and "..." in labels else rank
        labels = labels.replace("...", "".join(dots[rank - own :]))
        named.append(labels)
        for label, extent in zip(labels, shape or (), strict=False):
            sizes[label] = max(sizes.get(label, 1), extent)
    if arrow:
        output = rhs.replace("...", "".join(dots))
    else:
        flat = "".join(named)
        output = "".join(dots) + "".join(
            sorted(x for x in set(flat) - set(dots) if flat.count(x) == 1)
        )
    return named, output, sizes
