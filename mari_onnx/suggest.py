"""Commands to paste for a model whose inputs are not tagged, and what tags would bring."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from mari_onnx.errors import SidesUnknown
from mari_onnx.model.signature import signature
from mari_onnx.sides.guess import guessed_flags
from mari_onnx.sides.row_index import row_indices

if TYPE_CHECKING:
    from mari_onnx.model.load import Source

_CARE = "an input tagged user that is not equal for all candidates of a request makes a wrong model"


def command_for(source: Source, call: str = "optimize", output: str = "OUT.onnx") -> str:
    """The command for `source` with the sides that the names of its inputs look like, quoted for a shell.

    Args:
        call: the command. output: its OUT or DIR, as it was typed.
    """
    flags = " ".join(guessed_flags(signature(source.model), indices=row_indices(source.model)))
    name = str(source.path)
    # str(Path()) is "."; a model given as a message has no name to paste.
    return f"mari-onnx {call} {'IN.onnx' if name == '.' else shlex.quote(name)} {shlex.quote(output)} {flags}"


def unknown_sides(source: Source, call: str = "optimize", output: str = "OUT.onnx") -> SidesUnknown:
    """The refusal of a model in which nothing says what is the user's, with a command to paste; see `command_for`."""
    names = ", ".join(each.name for each in signature(source.model).inputs[:30])
    return SidesUnknown(
        f"nothing says which inputs belong to the user: {names}",
        "going by the names alone this would be\n\n"
        f"    {command_for(source, call, output)}\n\n"
        f"  Look at it first: {_CARE}. (--guess takes it as it is.)",
    )


def what_tags_bring(source: Source, before: float, after: float | None, output: str = "OUT.onnx") -> str:
    """What a model in which nothing is tagged would gain by tags, with the command.

    Args:
        before, after: FLOPs per candidate of what was written, and with the sides that names look like; None where
            they do not look like anybody's. output: OUT, as it was typed.
    """
    first = "no input is tagged, so only rows that the graph itself repeats are computed once"
    if after is None or after >= before:
        return f"{first}. If the user's row is fed N times, name those inputs with --user and the others with --item"
    return (
        f"{first}. Going by the names of inputs, tags would bring {after / 1e3:.3g} k FLOPs per candidate instead of "
        f"{before / 1e3:.3g} k:\n\n    {command_for(source, output=output)}\n\n  Look at it first: {_CARE}."
    )
