"""Strings that a graph asks for: those that a pattern matches, and what to feed so that strings put together are one.

A model may look up `user_country + "_" + language`, or ask whether a title matches a pattern; strings that are drawn
apart never come to that.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Tries at a pattern: each takes other branches, characters and numbers of repeats.
_TRIES, _REPEATS = 6, 3
_LETTERS = "aA0 _-.bB1zZ9"
# An input element while it is traced: a string, and a whole number that is no text of a model by chance.
_OPEN, _SHUT = "\x01", "\x02"
NUMBERED, APART = 70_000_000, 10
_MARK = re.compile(rf"{_OPEN}(\d+){_SHUT}|(?<!\d)(7\d{{7}})(?!\d)")

Piece = int | str
"""An input element by its number, or text."""


@dataclass(frozen=True)
class Joint:
    """Elements of inputs that come to something together: one string, a leaf of a tree, a row.

    Attributes:
        parts: input, place (as in `trace.folded`) and what stands there.
        bounds: of each part, between which numbers any will do as well; none where no other does.
    """

    parts: tuple[tuple[str, int, float | str], ...]
    bounds: tuple[tuple[float, float], ...] = ()


def marked(origin: int) -> str:
    """What a string input holds while it is traced."""
    return f"{_OPEN}{origin}{_SHUT}"


def pieces(text: str) -> list[Piece]:
    """What a string was put together from, by `marked` and by numbers `NUMBERED + APART * origin`."""
    found: list[Piece] = []
    end = 0
    for each in _MARK.finditer(text):
        if each.start() > end:
            found.append(text[end : each.start()])
        number = int(each[2]) - NUMBERED if each[2] else 0
        if number % APART:
            return [text]  # calculated with
        found.append(int(each[1]) if each[1] else number // APART)
        end = each.end()
    return [*found, *([text[end:]] if end < len(text) else [])]


def split(text: str, given: Sequence[Piece], numbers: Collection[int]) -> dict[int, str] | None:
    """What input elements have to be, so that the pieces come to a text; None where they cannot.

    Args:
        numbers: input elements that are whole numbers.
    """
    for anything in (".+?", ".*"):
        pattern, seen = "", set()
        for piece in given:
            if isinstance(piece, str):
                pattern += re.escape(piece)
            elif piece in seen:
                pattern += f"(?P=p{piece})"
            else:
                seen.add(piece)
                pattern += f"(?P<p{piece}>{'-?[0-9]{1,18}' if piece in numbers else anything})"
        found = re.fullmatch(pattern, text, re.DOTALL)
        if found:
            return {int(name[1:]): part for name, part in found.groupdict().items()}
    return None


def matching(pattern: str) -> list[str]:
    """Some strings that a regular expression matches, and some that miss it by a character; none where Python does not
    know the syntax."""
    try:
        parser = importlib.import_module("re._parser")
    except ModuleNotFoundError:  # before Python 3.11
        parser = importlib.import_module("sre_parse")
    try:
        tree, asked = parser.parse(pattern), re.compile(pattern)
    except (re.error, OverflowError):
        return []
    found: dict[str, None] = {}
    for way in range(_TRIES):
        groups: dict[int, str] = {}
        text = "".join(_texts(tree, way, groups))
        if asked.fullmatch(text):
            found[text] = None
    for text in list(found):
        found.update(dict.fromkeys(t for t in (text[:-1], text + "~", "~" + text) if not asked.fullmatch(t)))
    return list(found)


def _texts(tree: Any, way: int, groups: dict[int, str]) -> Iterator[str]:
    """One text for each item of a parsed pattern."""
    for op, given in tree:
        match str(op):
            case "LITERAL":
                yield chr(given)
            case "NOT_LITERAL":
                yield next(c for c in _LETTERS if c != chr(given))
            case "ANY":
                yield _LETTERS[way % 3]
            case "IN":
                yield _member(given, way)
            case "BRANCH":
                yield "".join(_texts(given[1][way % len(given[1])], way, groups))
            case "SUBPATTERN":
                text = "".join(_texts(given[-1], way, groups))
                if given[0] is not None:
                    groups[given[0]] = text
                yield text
            case "GROUPREF":
                yield groups.get(given, "")
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                least, most, inner = int(given[0]), int(given[1]), given[2]
                count = min(most, least + way % _REPEATS)
                yield "".join(part for k in range(count) for part in _texts(inner, way + k, groups))
            case _:  # an end, or a look-ahead: whether it holds is asked of the whole
                yield ""


def _member(items: Sequence[Any], way: int) -> str:
    """A character of a class."""
    negated = bool(items) and str(items[0][0]) == "NEGATE"
    several = items[negated:]
    if negated:
        return next((c for c in _LETTERS if not any(_holds(c, op, given) for op, given in several)), "~")
    op, given = several[way % len(several)]
    if str(op) == "LITERAL":
        return chr(given)
    if str(op) == "RANGE":
        return chr(min(given[1], given[0] + way))
    return next((c for c in _LETTERS[way:] + _LETTERS if _holds(c, op, given)), "~")


def _holds(character: str, op: Any, given: Any) -> bool:
    if str(op) in ("LITERAL", "RANGE"):
        least, most = (given, given) if str(op) == "LITERAL" else given
        return bool(least <= ord(character) <= most)
    name = str(given).removeprefix("CATEGORY_")
    kind = name.removeprefix("NOT_")
    word = character.isalnum() or character == "_"
    holds = character.isdigit() if kind == "DIGIT" else character.isspace() if kind == "SPACE" else word
    return holds != name.startswith("NOT_")
