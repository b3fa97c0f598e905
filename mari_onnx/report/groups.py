"""The tree of groups of a graph: modules, before and while they are folded, and what they are called.

In: for each node its place (`scopes`). Out: a `Group`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from mari_onnx.report.scopes import Scope, common, relative

Item: TypeAlias = "int | Group"


@dataclass(eq=False)
class Group:
    """A part of the graph that can be folded.

    Attributes:
        kind: "module"; "alike", whose members have the same structure; "block", one of those; "part", a stretch;
            "made", nodes that come from one node of the source.
        items: nodes by position, and groups, in the order of the graph.
        place: the full name of a module.
        name: what it is called within the group around it. title: what a module is called anywhere.
        times: how many members are alike.
        token: a number for its structure. key: a number of its own, by which two graphs share it.
    """

    kind: str
    items: list[Item] = field(default_factory=list)
    place: Scope = ()
    name: str = ""
    title: str = ""
    times: int = 0
    token: int = -1
    key: int = -1

    def nodes(self) -> Iterator[int]:
        """All nodes in it, however deep."""
        stack: list[Item] = [self]
        while stack:
            item = stack.pop()
            if isinstance(item, Group):
                stack += reversed(item.items)
            else:
                yield item

    def groups(self) -> Iterator[Group]:
        """All groups in it, itself first; a group comes before those within it."""
        stack = [self]
        while stack:
            group = stack.pop()
            yield group
            stack += [each for each in reversed(group.items) if isinstance(each, Group)]


def by_module(places: Sequence[Scope]) -> Group:
    """The tree of modules, with each in the order of its first node."""
    root = Group("module")
    found: dict[Scope, Group] = {(): root}
    for i, place in enumerate(places):
        at = root
        for depth in range(1, len(place) + 1):
            key = place[:depth]
            if key not in found:
                found[key] = Group("module", place=key)
                at.items.append(found[key])
            at = found[key]
        at.items.append(i)
    return root


def without_lists(root: Group, reads: Sequence[Sequence[int]]) -> None:
    """Dissolves modules without nodes of their own that are left and entered again on the way through the graph.

    A ModuleList of the layers of an MLP, say, beside another one of its activations: neither is a part of the graph.
    """
    for group in reversed(list(root.groups())):
        found: list[Item] = []
        for item in group.items:
            if isinstance(item, Group) and all(isinstance(each, Group) for each in item.items) and reads:
                found += [item] if _convex(item, reads) else item.items
            else:
                found.append(item)
        group.items = sorted(found, key=lambda item: next(item.nodes()) if isinstance(item, Group) else item)


def _convex(group: Group, reads: Sequence[Sequence[int]]) -> bool:
    """Whether no way through the graph leaves a group and comes back."""
    inside = set(group.nodes())
    outside: set[int] = set()  # what depends on the group
    for node in range(min(inside), max(inside) + 1):
        if node in inside:
            if not outside.isdisjoint(reads[node]):
                return False
        elif any(x in inside or x in outside for x in reads[node]):
            outside.add(node)
    return True


def only(item: Item) -> Item:
    """What a group of one holds, in its place; another item as it is."""
    while isinstance(item, Group) and len(item.items) == 1:
        item = item.items[0]
    return item


def span(items: Sequence[Item]) -> str:
    """`layers.0–23` of modules whose names differ in one number, `user_id … age` of others; "" of nodes."""
    places = [each.place for each in items if isinstance(each, Group)]
    if len(places) < len(items) or not all(places):
        return ""
    around = common([place[:-1] for place in places])
    first, last = relative(places[0], around), relative(places[-1], around)
    if len({re.sub(r"\d+", "#", relative(place, around)) for place in places}) == 1:
        found = [re.findall(r"\d+|\D+", text) for text in (first, last)]
        differ = [k for k, (a, b) in enumerate(zip(*found, strict=True)) if a != b]
        if len(differ) == 1:
            (k,) = differ
            return "".join([*found[0][: k + 1], "–", *found[1][k:]])
    return f"{first} … {last}"


def name(root: Group) -> None:
    """Names modules by what is around them; other groups have names already."""
    around = common([group.place for group in root.groups() if group.place])
    root.name = root.name or "model"
    stack: list[tuple[Group, Scope]] = [(root, around)]
    while stack:
        group, outer = stack.pop()
        if group.place and group is not root:
            last = group.name or group.place[-1]  # of members that are alike: `layers.0–23`
            group.title = ".".join((*group.place[len(around) : -1], last))
            group.name = ".".join((*group.place[len(outer) : -1], last)) if group.name else relative(group.place, outer)
        inner = group.place or outer
        stack += [(each, inner) for each in group.items if isinstance(each, Group)]
