"""A graph as a tree of groups that fit on a screen: by module, by repeated structure, and by stretches of the rest.

In: for each node its place (`scopes`) and a token that says what it is (equal tokens, equal structure). Out: a `Group`
in which no group has more than `MOST` members, so that any of them is laid out in a moment.

Repeats are found by structure alone: in the sequence of a group's members, a stretch of one period. 24 layers of a
transformer become one group, "24 × layers.0–23", whether or not the layers have names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from mari_onnx.report.groups import Group, Item, by_module, name, only, span, without_lists
from mari_onnx.report.scopes import Path, Scope

FEW = 12
"""A group with no more members than this stays as it is."""
MOST = 24
"""Members of one group at most."""
SINGLES, PAIRS = 4, 6
"""A member that is repeated alone becomes a group from so many on; several members together from so many in all."""
GLUE = 3
"""Nodes between groups become a group from so many on, where there are too many of them."""
MADE = 4
"""Nodes that come from one node of another graph become a group from so many on."""
LONG = 1000
"""Sequences from this length on are searched for few repeats, those that take most of them."""
ROUNDS = 6


class Folder:
    """Folds graphs of the same nodes' tokens and names.

    Args:
        tokens: for each node a value that is equal for nodes of equal structure.
        ops: operator of each node. weights: how much a node tells of a group that it is in, to name groups by.
        classes: of each node, as it is drawn: nodes of one class are rather folded together.
    """

    def __init__(
        self,
        tokens: Sequence[Hashable],
        ops: Sequence[str],
        weights: Sequence[float],
        classes: Sequence[Hashable],
    ):
        self._ids: dict[Hashable, int] = {}
        self._tokens = [self._id(token) for token in tokens]
        self._ops, self._weights, self._classes = ops, weights, classes

    def graft(self, tree: Group, paths: Sequence[Path], origins: Sequence[str | None]) -> Group:
        """A tree over other nodes with the groups of a folded one, by their keys, and further ones where it needs them.

        Args:
            paths: for each node the keys of the groups around it in `tree`, outermost first, the root left out.
            origins: for each node what it comes from; of many nodes of one origin a group is made.
        """
        keys = {group.key: group for group in tree.groups()}
        root = _copy(tree)
        found: dict[Path, Group] = {(): root}
        for i, path in enumerate(paths):
            at = root
            for depth in range(1, len(path) + 1):
                if path[:depth] not in found:
                    found[path[:depth]] = _copy(keys[path[depth - 1]])
                    at.items.append(found[path[:depth]])
                at = found[path[:depth]]
            at.items.append(i)
        for group in list(root.groups()):
            if len(group.items) > FEW:
                group.items = _by_origin(group.items, origins)
        self.shrink(root)
        return root

    def fold(self, places: Sequence[Scope], reads: Sequence[Sequence[int]] = ()) -> Group:
        """The tree over nodes 0, 1, .... reads: for each node the nodes whose results it reads."""
        root = by_module(places)
        without_lists(root, reads)
        self.shrink(root)
        name(root)
        return root

    def shrink(self, root: Group) -> None:
        """Makes groups small: repeats become groups, then stretches. Members come before what they are members of."""
        for group in reversed(list(root.groups())):
            items = [only(each) for each in group.items]
            group.token = self._id(tuple(map(self._token, items)))
            # What is alike, or a stretch, is in a tree that was folded before.
            group.items = _stretches(items) if group.kind in ("alike", "part", "made") else self._small(items)
            if len(group.items) == 1 and isinstance(group.items[0], Group) and group.kind != "alike":
                inner = group.items[0]  # all of it is one repeat
                group.items, group.times = inner.items, inner.times
                group.name, group.kind, group.place = group.name or inner.name, inner.kind, inner.place or group.place

    def _small(self, items: list[Item]) -> list[Item]:
        if len(items) > FEW:
            items = self._repeated(items)
        if len(items) > MOST:
            items = self._between(items)
        return _stretches(items, self._summary) if len(items) > MOST else items

    def _between(self, items: list[Item]) -> list[Item]:
        """Nodes between groups, folded by their class, so that the groups stay beside each other."""
        found: list[Item] = []
        for plain, some in itertools.groupby(items, key=lambda each: isinstance(each, int)):
            run = list(some)
            classes: dict[Hashable, list[Item]] = {}
            for item in run if plain else ():
                classes.setdefault(self._classes[item] if isinstance(item, int) else None, []).append(item)
            parts = {
                part[0]: Group("part", self._small(part), name=self._summary(part))
                for part in classes.values()
                if GLUE <= len(part) < len(items)
            }
            inside = {item for part in parts.values() for item in part.nodes()} if parts else set()
            found += [parts.get(item, item) for item in run if item in parts or item not in inside]
        return found

    def _repeated(self, items: list[Item]) -> list[Item]:
        rounds = 0
        while len(items) > FEW and rounds < (ROUNDS if len(items) > LONG else len(items)):
            found = repeat([self._token(each) for each in items])
            if found is None:
                break
            start, period, times = found
            stop = start + period * times
            rows = [items[k : k + period] for k in range(start, stop, period)]
            items = [*items[:start], self._alike(rows), *items[stop:]]
            rounds += 1
        return items

    def _alike(self, rows: Sequence[list[Item]]) -> Group:
        """A group of equal rows, each of one member or of several that become a block."""
        group = Group("alike", times=len(rows))
        group.token = self._id(("alike", len(rows), *map(self._token, rows[0])))
        if len(rows[0]) == 1:
            group.items = [row[0] for row in rows]
            group.name = span(group.items) or self._summary(group.items[:1])
        else:
            blocks = [Group("block", row, name=f"block {k}") for k, row in enumerate(rows, 1)]
            for block in blocks:
                block.token = self._id(tuple(map(self._token, block.items)))
                block.items = self._small(block.items)
            group.items = list(blocks)
            count = sum(len(list(each.nodes())) if isinstance(each, Group) else 1 for each in rows[0])
            group.name = f"{count} nodes: {self._summary(rows[0])}"
        if len(group.items) > MOST:
            group.items = _stretches(group.items)
        return group

    def _summary(self, items: Sequence[Item]) -> str:
        """The operators that say most about what these do: those that take most work."""
        total: dict[str, float] = {}
        for item in items:
            for node in item.nodes() if isinstance(item, Group) else (item,):
                total[self._ops[node]] = total.get(self._ops[node], 0.0) + self._weights[node]
        top = sorted(total, key=lambda op: -total[op])[:3]
        return ", ".join(top) + (", …" if len(total) > len(top) else "")

    def _token(self, item: Item) -> int:
        return item.token if isinstance(item, Group) else self._tokens[item]

    def _id(self, value: Hashable) -> int:
        return self._ids.setdefault(value, len(self._ids))


def _copy(group: Group) -> Group:
    return Group(group.kind, [], group.place, group.name, group.title, group.times, key=group.key)


def _by_origin(items: Sequence[Item], origins: Sequence[str | None]) -> list[Item]:
    """Nodes of one origin as a group in the place of the first, where there are at least `MADE` of them."""
    of: dict[str, list[Item]] = {}
    for item in items:
        if isinstance(item, int) and (origin := origins[item]) is not None:
            of.setdefault(origin, []).append(item)
    made = {some[0]: Group("made", some, name=origin) for origin, some in of.items() if len(some) >= MADE}
    inside = {item for group in made.values() for item in group.items}
    return [made.get(item, item) for item in items if item in made or item not in inside]


def repeat(tokens: Sequence[int]) -> tuple[int, int, int] | None:
    """The stretch of one period that covers most of a sequence, as its start, period and how often it is repeated.

    None where no stretch is long enough (`SINGLES`, `PAIRS`). Of several periods with which as much is covered, the
    shortest is taken.
    """
    all_of = np.asarray(tokens)
    best: tuple[int, int, int] | None = None
    covered = 0
    for period in range(1, len(all_of) // 2 + 1):
        differ = np.flatnonzero(all_of[:-period] != all_of[period:])
        if len(all_of) - period - len(differ) < max(period, covered - period):
            continue
        edges = np.concatenate(([-1], differ, [len(all_of) - period]))
        lengths = np.diff(edges) - 1
        longest = int(lengths.argmax())
        times = int(lengths[longest]) // period + 1
        least = SINGLES if period == 1 else PAIRS
        if times > 1 and times * period >= max(least, covered + 1):
            best, covered = (int(edges[longest]) + 1, period, times), times * period
    return best


def _stretches(items: list[Item], summary: Callable[[Sequence[Item]], str] | None = None) -> list[Item]:
    """As few stretches of at most `MOST` as there can be, of about one length; of stretches, if these are many."""
    spans = [(k, k) for k in range(1, len(items) + 1)]
    while len(items) > MOST:
        count = -(-len(items) // MOST)
        ends = [round(i * len(items) / count) for i in range(count + 1)]
        parts = [items[a:b] for a, b in itertools.pairwise(ends)]
        spans = [(spans[a][0], spans[b - 1][1]) for a, b in itertools.pairwise(ends)]
        items = [
            Group("part", part, name=f"{a}–{b}" + (f" · {summary(part)}" if summary else ""))
            for (a, b), part in zip(spans, parts, strict=True)
        ]
    return items
