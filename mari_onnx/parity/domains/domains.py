"""What values an input may have, and which it should have at least once, from what either graph does with it.

Names say nothing. `trace.py` runs the part of a graph between its inputs and what reacts to them; the rest of the
package asks it about ids, roles, thresholds, scales and links.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.model.functions import inlined
from mari_onnx.model.ops import Fact, having
from mari_onnx.parity.domains import ids, padding, spread
from mari_onnx.parity.domains.calculated import calculated
from mari_onnx.parity.domains.leaves import leaves
from mari_onnx.parity.domains.links import Link, behind_products, compared_with_themselves, links
from mari_onnx.parity.domains.reactions import normalized, reactions, rounded_together
from mari_onnx.parity.domains.roles import Role, roles, together
from mari_onnx.parity.domains.scope import Scope, constants, dims
from mari_onnx.parity.domains.sizes import deciding, varying
from mari_onnx.parity.domains.spread import Knots, Spread
from mari_onnx.parity.domains.texts import Joint
from mari_onnx.parity.domains.thresholds import Gathered, Values, gather
from mari_onnx.parity.domains.trace import folded, traced
from mari_onnx.parity.domains.turning import turning

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.layout import Layout

__all__ = ["Domain", "Domains", "Link", "Spread", "Values", "domains"]


@dataclass(frozen=True)
class Domain:
    """What an input's elements may be.

    Attributes:
        role: "plain", "length" (of a sequence), "mask", "addend" (a mask that is added to scores: 0, or far below), or
            "positive" (under a logarithm or root).
        rows: int64, broadcastable to the input: the number of ids an element may have, 0 where it
            is no id; None where none is.
        size: for a length: its upper bound, where known.
        low: for a length: its lower bound.
        padding: int64, broadcastable to the input: the number that the graph compares its elements with, 0 where there
            is none; None where it compares none.
        values: numbers or categories that a graph tells apart, each with the node, of elements that are no length and
            no mask; None where there are none.
        spread: where numbers lie that are not around 0 and of order one.
        real: of a mask, that other numbers than 0 and 1 may stand in it too.
        levels: of an input of which some places alone are masks or lengths, the numbers that stand there.
        hashed: bool, broadcastable to the input: ids that may be any number, as the graph takes a remainder of them.
        positive: bool, broadcastable to the input: places under a logarithm or root; None where none or all are.
    """

    role: str = "plain"
    rows: np.ndarray | None = None
    size: int | None = None
    low: int = 0
    padding: np.ndarray | None = None
    values: Values | None = None
    spread: Spread | None = None
    real: bool = False
    levels: Values | None = None
    positive: np.ndarray | None = None
    hashed: np.ndarray | None = None


class Domains(dict[str, Domain]):
    """Domain of every input, and what several inputs share.

    Attributes:
        links: elements that are compared with elements of another input.
        sizing: inputs whose numbers decide on sizes or on trips of a loop.
        halves: inputs several elements of which make a number that is rounded: it turns at halves.
        joints: elements of several inputs that come to what the graph asks for together.
        steep: a graph has operators that numbers within the type's range drive beyond it: Exp, Softmax, Sigmoid, ..
    """

    def __init__(
        self,
        found: Mapping[str, Domain],
        links: Sequence[Link] = (),
        steep: bool = False,
        joints: Sequence[Joint] = (),
        sizing: Set[str] = frozenset(),
        halves: Set[str] = frozenset(),
    ):
        super().__init__(found)
        self.links, self.steep, self.joints = tuple(links), steep, tuple(joints)
        self.sizing, self.halves = frozenset(sizing), frozenset(halves)


# Ids that may be any number are less than this.
_ANYTHING = 2**53
# The longest of a length whose bound is not known.
_LENGTH = 20


def domains(
    model: onnx.ModelProto, layout: Layout, optimized: tuple[onnx.ModelProto, Layout] | None = None
) -> tuple[Domains, list[str]]:
    """Domain of every input, and notes on what could not be found out.

    Args:
        model: the source; its large weights may be unloaded external data.
        layout: shapes of the inputs.
        optimized: the model that is compared with it, which may react to what the source does not.
    """
    model = inlined(model)
    main = Scope(model.graph, dims(model), constants(model.graph))
    rows, hashed, loose, before, notes = ids.rows(model, layout, main)
    gathered = Gathered(layout)
    for name, early in before.items():
        for place in np.flatnonzero(np.broadcast_to(early, folded(layout, name))).tolist():
            gathered.add(name, place, -1.0, 1, "the row before that of 0")
    parts: dict[str, dict[int, Role]] = {}
    distributions: dict[str, dict[int, list[Knots]]] = {}
    linked: dict[Link, None] = {}
    steep, sizing, halves = False, set[str](), set[str]()
    for graph, its_layout in [(model, layout), *([optimized] if optimized is not None else [])]:
        first = graph is model
        steep |= any(n.op_type in having(Fact.STEEP) for n in inlined(graph).graph.node)
        sizing |= deciding(graph)
        moving = varying(graph, its_layout)
        traces = traced(graph, its_layout)
        if first:
            searched = calculated(model, layout, traces, rows, loose)
            rows = ids.limited(rows, searched.limits, layout)
            gathered.joints.update(searched.joints)
            gathered.joints.update(dict.fromkeys(turning(model, layout, traces, rows)))
            for (name, place, number), why in searched.numbers.items():
                gathered.add(name, place, number, 0, why)
        for trace in traces:
            if any(folded(layout, i.name) != folded(its_layout, i.name) for i in trace.inputs):
                continue
            for (name, place), role in roles(trace, moving).items():
                parts.setdefault(name, {}).setdefault(place, role)
            gather(trace, gathered, list(reactions(trace)), exact=first)
            gathered.joints.update(dict.fromkeys(leaves(trace)))
            halves |= rounded_together(trace) if first else set()
            for name, why in normalized(trace):
                gathered.ignore_case(name, why)
            for origin, node in (*compared_with_themselves(trace), *behind_products(trace)):
                if trace.kinds[origin] == "f":
                    gathered.add(*trace.owner(origin), float("nan"), 0, node)
            for name, places in spread.spreads(trace).items():
                mine = distributions.setdefault(name, {})
                for place, several in places.items():
                    mine[place] = mine.get(place, []) if not first and mine.get(place) else several
            linked.update(dict.fromkeys(links(trace)))
    pads = padding.numbers(model, layout, main)
    values = gathered.values()
    found = {}
    for each in layout.signature.inputs:
        kept = folded(layout, each.name)
        own, its_roles = rows.get(each.name), parts.get(each.name, {})
        whole = together(its_roles, int(np.prod(kept)), each.dtype)
        if whole is None or (own is not None and whole.name != "length"):
            positive = whole is not None and whole.name == "positive"
            domain = Domain("positive" if positive else "plain", own)
            if whole is None and its_roles:
                domain = _in_places(domain, its_roles, kept)
        else:
            domain = Domain(whole.name, None, whole.size, whole.low, real=whole.real)
        told_apart = values.get(each.name)
        if domain.role in ("plain", "positive") or (domain.role == "mask" and domain.real):
            if told_apart is not None:
                most = np.where(loose.get(each.name, np.array(False)), _ANYTHING, np.array(0) if own is None else own)
                told_apart = told_apart.without(place for place, r in its_roles.items() if r.name == "length")
                domain = replace(domain, values=told_apart if own is None else told_apart.within(most))
            if each.dtype.kind in "iuf":
                its = spread.made(layout, distributions.get(each.name, {}), each.name, domain.values, own)
                domain = replace(domain, spread=its)
        found[each.name] = replace(domain, padding=pads.get(each.name), hashed=hashed.get(each.name))
    return Domains(found, tuple(linked), steep, tuple(gathered.joints), sizing, halves), notes


def _in_places(domain: Domain, several: Mapping[int, Role], kept: tuple[int, ...]) -> Domain:
    """Masks, lengths and what is under a logarithm, of an input that holds other things too."""
    ids_ = np.zeros(kept, bool) if domain.rows is None else np.broadcast_to(domain.rows != 0, kept)
    numbers: list[tuple[float, ...]] = []
    for place in range(int(np.prod(kept))):
        role = several.get(place)
        taken = role is None or bool(ids_.reshape(-1)[place])
        if taken or role is None or role.name == "positive":
            numbers.append(())
        elif role.name == "mask":
            numbers.append((0.0, 1.0))
        else:
            numbers.append(tuple(float(n) for n in range(role.low, (role.size or _LENGTH) + 1)))
    positive = np.array([role is not None and role.name == "positive" for role in map(several.get, range(ids_.size))])
    return replace(
        domain,
        levels=Values(kept, tuple(numbers)) if any(numbers) else None,
        positive=positive.reshape(kept) if positive.any() else None,
        real=any(role.real for role in several.values()),
    )
