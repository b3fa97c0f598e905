"""Sides guessed from input names: for a command to paste, never used unasked.

Words decide, looked for in the name's parts (`userHistIds` -> user, hist, ids). A history is the
user's even where it holds items; a name of both sides is `cross`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping

from mari_onnx.model.signature import Signature
from mari_onnx.sides.patterns import SIDES, fnmatch_escape

_CROSS = {"cross", "match", "interaction", "inter", "ui", "pair", "affinity"}
_HISTORY = {
    *("hist", "history", "behavior", "behaviour", "behaviors", "seq", "sequence", "clicked"),
    *("recent", "past", "last"),
}
_USER = {
    *("user", "users", "usr", "uid", "u", "member", "customer", "viewer", "visitor", "profile"),
    *("query", "context", "ctx", "request", "req", "session", "time", "hour", "day", "weekday"),
    *("week", "date", "device", "os", "platform", "page", "geo", "city", "age", "gender"),
    *("occupation", "zip"),
}
_ITEM = {
    *("item", "items", "iid", "i", "ad", "ads", "doc", "document", "cand", "candidate"),
    *("candidates", "target", "video", "movie", "product", "goods", "sku", "creative", "article"),
    *("news", "song", "price", "brand", "shop", "seller", "genre", "genres", "title"),
}


def guess_side(name: str) -> str | None:
    """The side that the name looks like; None where no word of it is known."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    words = {word for word in re.split(r"[^a-z]+", spaced.lower()) if word}
    if words & _CROSS:
        return "cross"
    if words & _HISTORY:
        return "user"
    user, item = bool(words & _USER), bool(words & _ITEM)
    if user and item:
        return "cross"
    return "user" if user else "item" if item else None


def guessed_flags(signature: Signature, axis: int = 0, indices: Collection[str] = ()) -> list[str]:
    """Flags for the guessed sides, quoted for a shell; unknown names go to `--rest cross`, and `indices` pick rows of
    user inputs, whatever they are called."""
    guesses: dict[str, str | None] = {
        each.name: guess_side(each.name)
        for each in signature.inputs
        if each.name not in indices and (not each.rank_known or len(each.shape) > axis)
    }
    flags: list[str] = []
    for side in SIDES:
        flags.extend(f"--{side} {shlex.quote(p)}" for p in _patterns(guesses, side))
    users = "user" in guesses.values()  # else there is nothing to pick from
    flags.extend(f"--{'index' if users else 'cross'} {shlex.quote(name)}" for name in indices)
    if None in guesses.values():
        flags.append("--rest cross")
    return flags


def _patterns(guesses: Mapping[str, str | None], side: str) -> list[str]:
    """`user_*` where it covers two or more names of this side and no other; else the name."""
    found: dict[str, None] = {}
    for name in (n for n, s in guesses.items() if s == side):
        prefix = re.match(r"[^_./:]+[_./:]", name)
        if prefix is not None:
            alike = [s for n, s in guesses.items() if n.startswith(prefix[0])]
            if len(alike) > 1 and set(alike) == {side}:
                found[fnmatch_escape(prefix[0]) + "*"] = None
                continue
        found[fnmatch_escape(name)] = None
    return list(found)
