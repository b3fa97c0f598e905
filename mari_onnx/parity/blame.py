"""Which rewrites are to blame where outputs differ: the fewest source nodes that have to be left alone.

Bisection over sets of nodes (QuickXplain, Junker 2004, doi 10.5555/1597148.1597177): a half of the candidates is left
alone, all is rewritten and compared, and so on within the half that matters. For k guilty nodes of n that is about
2 k log2(n / k) runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def guilty(
    nodes: Sequence[str],
    equal: Callable[[frozenset[str]], bool],
    runs: int,
    suspect: str | None = None,
) -> frozenset[str]:
    """A set of nodes that is enough to leave alone, none of which can be taken out of it.

    It is the least one where leaving more nodes alone never makes outputs differ. Nothing is random, so the same
    nodes and answers give the same set.

    Args:
        nodes: all that were rewritten; leaving all of them alone is taken to be enough. Of two that are each enough
            the earlier one is found.
        equal: whether outputs are equal with these left alone.
        runs: how often `equal` may be asked; beyond that the set is larger than it need be.
        suspect: one to try alone first.
    """
    asked: dict[frozenset[str], bool] = {}

    def enough(left_alone: Sequence[str]) -> bool:
        key = frozenset(left_alone)
        if key not in asked:
            if len(asked) >= runs:
                return False
            asked[key] = equal(key)
        return asked[key]

    def needed(known: Sequence[str], new: Sequence[str], among: Sequence[str]) -> list[str]:
        """Which of `among` have to be left alone beside `known`, of which `new` were added last."""
        if new and enough(known):
            return []
        if len(among) == 1 or len(asked) >= runs:
            return list(among)
        half = len(among) // 2
        first, second = among[:half], among[half:]
        of_second = needed([*known, *first], first, second)
        of_first = needed([*known, *of_second], of_second, first)
        return [*of_first, *of_second]

    if suspect is not None and suspect in nodes and enough([suspect]):
        return frozenset([suspect])
    return frozenset(needed([], [], nodes)) if nodes else frozenset()
