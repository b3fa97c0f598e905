"""What rewrites are chosen for, and a record of the choices, with which the same output is made again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mari_onnx.errors import UsageError

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Options, Rewrite

CHOICES_KEY = "mari_onnx.choices"
VERSION = 1
USUAL = {16: 1.0, 64: 1.0, 500: 1.0}
"""Numbers of candidates that count where none is given: an output should be slower at none of them."""


@dataclass(frozen=True)
class Choices:
    """Parts of a source that were left as they are.

    Attributes:
        changed: False where all of it was.
        slower: nodes whose rewrite takes longer than they do.
        wrong: nodes whose rewrite changes the outputs.
        declined: node -> why nothing is assumed about it.
        source: sha256 of the source's file.
        asked: nodes that the caller wanted to be left.
    """

    changed: bool
    slower: frozenset[str] = frozenset()
    wrong: frozenset[str] = frozenset()
    declined: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    asked: frozenset[str] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """The documented form: names in order."""
        asked = {"left_on_request": sorted(self.asked)} if self.asked else {}
        return {
            "version": VERSION,
            "source_sha256": self.source,
            "changed": self.changed,
            "left_for_time": sorted(self.slower),
            "left_for_outputs": sorted(self.wrong),
            **asked,
            "not_assumed": dict(sorted(self.declined.items())),
        }


def choices_of(rewrite: Rewrite, options: Options, source: str) -> Choices:
    """The choices that make `rewrite` again. source: sha256 of the file it was made from."""
    return Choices(rewrite.changed, rewrite.left_for_time, options.skip, options.declined, source, options.asked)


def read_choices(path: Path, source: str) -> Choices:
    """The choices in a file.

    Raises:
        UsageError: it is no such file, or was made for another source than the one with this sha256.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        found = Choices(
            bool(said["changed"]),
            frozenset(map(str, said["left_for_time"])),
            frozenset(map(str, said["left_for_outputs"])),
            {str(k): str(v) for k, v in said["not_assumed"].items()},
            str(said["source_sha256"]),
            frozenset(map(str, said.get("left_on_request", ()))),
        )
        if said["version"] != VERSION:
            raise ValueError(f"version {said['version']}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            f"{path} is not a file that --choices wrote: {why}",
            "give --choices a file that an earlier run wrote, or one that does not exist yet",
        ) from error
    if found.source != source:
        raise UsageError(
            f"the choices in {path} are those of another model (sha256 {found.source[:12]}, not {source[:12]})",
            "remove the file, and choices are made anew and written to it",
        )
    return found


def nodes_named(model: onnx.ModelProto, patterns: Iterable[str]) -> frozenset[str]:
    """The nodes of the main graph that shell patterns on names or operators match, by their names.

    A node without a name goes by the name of its first output.

    Raises:
        UsageError: a pattern matches none.
    """
    found: set[str] = set()
    known = [(node.name or next(iter(node.output), ""), node.op_type) for node in model.graph.node]
    for pattern in patterns:
        matched = {name for name, op in known if fnmatchcase(name, pattern) or fnmatchcase(op, pattern)}
        if not matched:
            close = get_close_matches(pattern, {word for pair in known for word in pair}, n=3)
            hint = f"close names are {', '.join(close)}" if close else "mari-onnx inspect lists the products by name"
            raise UsageError(f"skip: {pattern!r} matches no node and no operator of the model", hint)
        found |= matched
    return frozenset(found)


def options_for(
    candidates: int | Mapping[int, float] | None = None,
    *,
    target: str = "cpu",
    threads: int = 1,
    prices: Path | None = None,
    choices: Choices | None = None,
    assume: bool = False,
    skip: frozenset[str] = frozenset(),
) -> Options:
    """How to rewrite.

    Args:
        candidates: N, or N -> how much its time counts. By default `USUAL`, with costs given for the largest.
        target: "cpu", "portable" or "cuda". Time decides, by prices of the CPU's kernels; on "cuda" work does.
        threads: of onnxruntime, within an operator.
        prices: a table made by `mari-onnx calibrate`, instead of the package's own.
        choices: made before; no others are made.
        assume: see `mari_onnx.engine.Options`.
        skip: names of nodes to leave as they are (`nodes_named`), beside those in `choices`.

    Raises:
        UsageError: the file is no table of prices.
    """
    from mari_onnx.engine import Options
    from mari_onnx.prices import table as tables

    weights = {candidates: 1.0} if isinstance(candidates, int) else dict(candidates or USUAL)
    typical = max(weights, key=lambda n: (weights[n], n))
    table = tables.load(prices, threads) if target != "cuda" else None
    cautious = candidates is None
    options = Options(typical, target, assume=assume, prices=table, weights=weights, cautious=cautious, asked=skip)
    if choices is None:
        return options
    return dataclasses.replace(
        options,
        slower=choices.slower,
        skip=choices.wrong,
        asked=skip | choices.asked,
        declined=choices.declined,
        unchanged=not choices.changed,
    )
