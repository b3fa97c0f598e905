"""Which parts of a graph are left as they are, because their rewrite takes longer than they do.

Work that is saved is not always time: many small products take longer than one large one, and what is prepared once
per request costs more than it saves if candidates are few. So the rewrite is priced (`engine.worth`), source nodes that
lose time are found, and the graph is rewritten once more without touching them, or what comes before them. The best of
some such tries is taken. Nothing is timed: the same graph, prices and weights give the same choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx

from mari_onnx.engine.ir.value import Decline
from mari_onnx.engine.worth import Source, Worth, label
from mari_onnx.model.nodes import producers
from mari_onnx.model.ops import Fact, row
from mari_onnx.prices.table import Prices

if TYPE_CHECKING:
    from mari_onnx.engine.outcome import Rewrite
    from mari_onnx.engine.session import Options

LOSS = 0.004
"""Share of the source's time that a node has to lose to be looked at."""
GAIN = 0.01
"""Share of the output's time that leaving nodes alone has to save: prices are no better than that."""
TRIES, NODES = 16, 4000
"""Rewrites of one graph that are tried: at most so many, and as many as make this number of nodes, but one."""
BACK = 3
"""How many nodes before a loser are looked at: its form may come from them."""
GROUPS = 4
"""Operators whose nodes lose most, which are looked at."""
ALONE = 1.25
"""How many times faster another choice has to be for the typical number of candidates alone, to be told."""
EQUAL = 0.998
"""Share of the source's time that an output must stay below."""
EQUAL_OF_SEVERAL = 1.1
"""The same where candidates are of several users: prices of gathering rows are not as exact (a ranker that was
estimated to take 1.05 times as long took 0.83), and the clock says what is slower."""

Again = Callable[[frozenset[str]], "Rewrite"]


def fastest(
    source: onnx.GraphProto,
    first: Rewrite,
    again: Again,
    options: Options,
    prices: Prices,
    several: bool = False,
) -> Rewrite:
    """The fastest of `first` and of rewrites that leave some nodes alone, by their prices; `first` without shapes.

    Args:
        again: rewrites with these source nodes left alone, beside those that `first` left alone.
        options: have the numbers of candidates, and how much each counts.
        several: see `Source`.
    """
    if not (_known(source, first.shapes) and _known(first.model.graph, first.out_shapes)):
        return first
    compared = Source(source, first.shapes, options, prices, several)
    weights = options.weighted
    best, best_worth = first, compared.worth(first)
    typical = max(weights, key=lambda n: (weights[n], n))
    alone = best_worth.ratios[typical]
    left, tried = frozenset[str](), {frozenset[str]()}
    tries = max(1, min(TRIES, NODES // max(1, len(source.node))))
    while tries > 0:
        found: tuple[Rewrite, Worth, frozenset[str]] | None = None
        for more in _candidates(source, best, best_worth):
            names = left | more
            if names in tried or tries <= 0:
                continue
            tried.add(names)
            tries -= 1
            try:
                made = again(names)
            except Decline:
                continue
            if not made.changed:
                continue
            value = compared.worth(made)
            alone = max(alone, value.ratios[typical])
            if value.total < (1 - GAIN) * (found[1] if found else best_worth).total:
                found = made, value, names
        if found is None:
            break
        best, best_worth, left = found
    if best_worth.total > (EQUAL_OF_SEVERAL if several else EQUAL):
        at = ", ".join(map(str, weights))
        reason = f"no time is saved: an estimated {best_worth.total:.2f} times the source's, over {at} candidates"
        best = replace(best, model=first.model, changed=False, reason=reason, assumptions=[])
        best_worth = replace(best_worth, ratios=dict.fromkeys(weights, 1.0))
    if alone > ALONE * best_worth.ratios[typical]:
        best = replace(best, alone=(typical, alone))
    return replace(best, left_for_time=left, estimated=dict(best_worth.ratios))


def _known(graph: onnx.GraphProto, shapes: Mapping[str, object]) -> bool:
    """Whether the results of all products have shapes; without them there is nothing to price."""
    products = (node for node in graph.node if Fact.PRODUCT in row(node.op_type).facts)
    return all(node.output[0] in shapes for node in products)


def _candidates(source: onnx.GraphProto, made: Rewrite, value: Worth) -> Iterator[frozenset[str]]:
    """Sets of nodes to leave alone: those of one operator that lose time, and those before them, one step at a time;
    then the one that loses most alone, and all nodes of that operator.
    """
    nodes = {label(node): node for node in source.node}
    made_by = producers(source.node)
    sizes = _of_sizes(source)
    losers = [name for name, loss in value.loss.items() if loss > LOSS and name in nodes and name not in sizes]
    losers.sort(key=lambda name: -value.loss[name])
    groups: dict[str, list[str]] = {}
    for name in losers:
        groups.setdefault(nodes[name].op_type, []).append(name)
    ranked = sorted(groups.values(), key=lambda names: -sum(value.loss[x] for x in names))[:GROUPS]
    touched = {r.name for r in made.nodes if r.action != "folded" and r.kind == "Mixed"} - sizes
    for names in ranked:
        yield from _steps(names, nodes, made_by, touched)
    for names in ranked:
        if len(names) > 1:
            yield from _steps(names[:1], nodes, made_by, touched)
        alike = [x for x in touched if x in nodes and nodes[x].op_type == nodes[names[0]].op_type]
        if set(alike) - set(names):
            yield from _steps(alike, nodes, made_by, touched)


def _of_sizes(graph: onnx.GraphProto) -> set[str]:
    """Nodes that compute with sizes alone: left alone, nothing would be known of the shapes that follow from them."""
    known, found = {t.name for t in graph.initializer}, set[str]()
    for node in graph.node:
        if Fact.SIZES in row(node.op_type).facts or all(not x or x in known for x in node.input):
            known.update(node.output)
            found.add(label(node))
    return found


def _steps(
    names: Sequence[str], nodes: Mapping[str, onnx.NodeProto], made_by: Mapping[str, onnx.NodeProto], touched: set[str]
) -> Iterator[frozenset[str]]:
    """These nodes; those that they read from, beyond views; those that these read from, and so on."""
    here = set(names)
    for _ in range(BACK + 1):
        if not here:
            return
        yield frozenset(here)
        before, stack = set[str](), [x for name in here for x in nodes[name].input]
        while stack:
            node = made_by.get(stack.pop())
            if node is None or label(node) not in touched:
                continue
            if Fact.VIEW in row(node.op_type).facts:
                stack += node.input
            else:
                before.add(label(node))
        here = before
