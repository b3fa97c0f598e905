"""Where a source was cut, as a record with which the same split is made again.

A split whose choice the clock made may come out otherwise the next time; states and rows in caches would then belong
to other models. So a release keeps the record (``mari-onnx split --choices FILE``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mari_onnx.choices import Choices, read_choices
from mari_onnx.errors import UsageError

Form = Literal["apart", "joined"]
Stored = Literal["float32", "float16"]


@dataclass(frozen=True)
class Cut:
    """What is handed over.

    Attributes:
        form: "apart" where parts of the item alone were kept apart from what depends on the user too; "joined" as
            `optimize` has them.
        state, rows: names of the tensors that score.onnx reads of the user, and of the item.
        by: what decided, "prices" or "clock".
    """

    form: Form
    state: tuple[str, ...]
    rows: tuple[str, ...]
    by: Literal["prices", "clock"] = "prices"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"form": self.form, "state": list(self.state), "rows": list(self.rows), "by": self.by}


@dataclass(frozen=True)
class SplitChoices:
    """What a split was made with. choices: of the rewrite, as for `optimize`. state: how states and rows are stored."""

    choices: Choices
    cut: Cut
    state: Stored = "float32"

    def to_dict(self) -> dict[str, Any]:
        """The documented form (docs/splitting.md)."""
        return {**self.choices.to_dict(), "cut": self.cut.to_dict(), "state": self.state}


def read(path: Path, source: str) -> SplitChoices:
    """The choices in a file.

    Raises:
        UsageError: it is no such file, or was made for another source than the one with this sha256.
    """
    choices = read_choices(path, source)
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        said, state = whole["cut"], whole["state"]
        if state not in ("float32", "float16"):
            raise ValueError(f"states and rows are {state!r}")
        if said["form"] not in ("apart", "joined") or said["by"] not in ("prices", "clock"):
            raise ValueError(f"it is cut {said['form']!r} by {said['by']!r}")
        cut = Cut(said["form"], tuple(map(str, said["state"])), tuple(map(str, said["rows"])), said["by"])
    except (ValueError, KeyError, TypeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            f"{path} is not a file that split --choices wrote: {why}",
            "optimize and split write different choices; give each a file of its own",
        ) from error
    return SplitChoices(choices, cut, state)


def stored_as(asked: Stored | None, choices: SplitChoices | None) -> Stored:
    """How to store states and rows: as asked, else as in choices that were made before, else in float32.

    Raises:
        UsageError: the choices say otherwise.
    """
    if choices is None:
        return asked or "float32"
    if asked not in (None, choices.state):
        raise UsageError(
            f"the choices were made with states and rows in {choices.state}, and --state says {asked}",
            "leave --state out, or make choices anew: another --choices FILE",
        )
    return choices.state
