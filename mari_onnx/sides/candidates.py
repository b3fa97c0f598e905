"""Which axis of each input counts the candidates, as far as declared shapes tell.

Equal symbols are believed: what item and cross inputs call the candidate axis is N, and a user input that calls its
axis otherwise, or has a fixed number there, keeps its own dimensions. Where that may be wrong, as in exports with a
batch symbol for each input, the input is doubtful: `parity.candidates` then tries sizes on the source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from mari_onnx.errors import UsageError
from mari_onnx.model.signature import Input, Signature
from mari_onnx.sides.resolve import Sides
from mari_onnx.sides.shapes import text_of


@dataclass(frozen=True)
class Told:
    """What shapes tell.

    Attributes:
        sides: with `axes` of the inputs that keep their own dimensions, the doubtful ones taken by their shapes.
        doubtful: inputs whose axis the source has to tell, those that share a symbol together.
    """

    sides: Sides
    doubtful: tuple[tuple[str, ...], ...]


def by_shape(signature: Signature, sides: Sides) -> Told:
    """The candidate axis of every input that has a side. What `sides.axes` says already is kept.

    Raises:
        UsageError: the candidates are on another axis than `sides.candidate_axis`, or every batch is fixed at 1.
    """
    at = axes_within(signature.inputs, sides)
    tagged = [i for i in signature.inputs if i.name in at]
    rows = [i for i in tagged if sides.side(i.name) != "user"]
    counting = {i.name: i.shape[at[i.name]] for i in tagged}
    _refuse_fixed_at_1(tagged, rows, at)
    left = [i for i in tagged if i.name not in sides.axes]
    _refuse_other_axis(signature, left, [i for i in rows if i in left], sides.candidate_axis)
    of_rows = [counting[i.name] for i in rows]
    names = {d for d in of_rows if isinstance(d, str)}
    surely = names & {d for o in signature.outputs for d in o.shape}
    if not surely:  # outputs without shapes: what most inputs have
        often = Counter(d for d in counting.values() if d in names)
        surely = {d for d, times in often.items() if times == max(often.values()) > 1}
    sizes = {d for d in of_rows if isinstance(d, int)}
    axes, groups = dict(sides.axes), dict[object, list[str]]()
    for each in tagged:
        dim, axis = counting[each.name], at[each.name]
        if each.name in axes or dim == 1 or dim in surely or each.name in sides.columns:
            continue
        if sides.side(each.name) != "user":
            # only beside an input that surely has N
            doubt = bool(surely) and not isinstance(dim, int)
        elif not rows or dim in names or (isinstance(dim, int) and dim in sizes):
            continue
        else:
            doubt = not isinstance(dim, int) and not (axis and dim is None)
            if dim is not None or axis:
                axes[each.name] = None
        if doubt:
            groups.setdefault(dim if dim is not None else (each.name,), []).append(each.name)
    return Told(replace(sides, axes=axes), tuple(map(tuple, groups.values())))


def axes_within(inputs: Iterable[Input], sides: Sides) -> dict[str, int]:
    """The axis that counts candidates, if it does, of each input with a side and that many dimensions."""
    found = {i.name: sides.axis_of(i.name) for i in inputs if sides.side(i.name) or i.name in sides.columns}
    return {i.name: at for i in inputs if (at := found.get(i.name)) is not None and len(i.shape) > at}


def decided(told: Told, own: Iterable[str]) -> Sides:
    """The sides with every doubtful input decided: `own` keep their own dimensions."""
    doubtful = {name: told.sides.candidate_axis for group in told.doubtful for name in group}
    return replace(told.sides, axes={**told.sides.axes, **doubtful, **dict.fromkeys(own)})


def _refuse_fixed_at_1(tagged: list[Input], rows: list[Input], at: Mapping[str, int]) -> None:
    if rows and all(i.shape[at[i.name]] == 1 for i in tagged):
        for other in range(max(len(i.shape) for i in rows)):
            symbols = {i.shape[other] if len(i.shape) > other else None for i in rows}
            if len(symbols) == 1 and isinstance(symbols.pop(), str):
                raise UsageError(
                    f"candidates would be along an axis of length 1: {rows[0].name} is {rows[0].text}",
                    f"give --candidate-axis {other}",
                )
        shapes = [(i, tuple("N" if k == at[i.name] else d for k, d in enumerate(i.shape))) for i in tagged]
        flags = " ".join(f"--shape {i.name}={text_of(shape)}" for i, shape in shapes)
        raise UsageError(
            f"the file takes one candidate per run: {tagged[0].name} is {tagged[0].text}, and so is the candidate axis "
            "of all inputs with a side",
            f"say which dimensions are the batch: {flags}",
        )


def _refuse_other_axis(signature: Signature, tagged: list[Input], rows: list[Input], axis: int) -> None:
    """Refuses `[fields, N]` where nobody said that axis 1 is the candidates'."""
    if not rows or not all(isinstance(i.shape[axis], int) and i.shape[axis] != 1 for i in rows):
        return
    sizes = {i.shape[axis] for i in tagged}
    cannot_be = len(sizes) > 1 and all(isinstance(size, int) for size in sizes)
    for other in range(max(len(i.shape) for i in rows)):
        symbols = {i.shape[other] if len(i.shape) > other else None for i in rows}
        (symbol, *more) = symbols
        shared = isinstance(symbol, str) and any(symbol in o.shape for o in signature.outputs)
        free = cannot_be and all(len(i.shape) > other and i.shape[other] == symbol for i in tagged)
        if other != axis and not more and (shared or (free and not isinstance(symbol, int))):
            raise UsageError(
                f"candidates would be along axis {axis}, where {rows[0].name} {rows[0].text} has a fixed size, but "
                f"axis {other} is the one that all of them have free",
                f"give --candidate-axis {other}, or --candidate-axis {axis} if that is meant",
            )
