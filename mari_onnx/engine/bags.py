"""Bags of the user's ids: what a graph computes of offsets and ids alone is interpreted for one bag.

    f(offsets [0, k, 2k, ..], ids N times)  =  N rows  f(offsets [0], ids)

holds where row n of f is made from bag n alone, which the check of the finished model shows. In that part of the graph
the offsets have one entry, so all rules apply as they are; the tensors that other nodes read get the candidate axis
back, along which they are equal. Nodes that only count the bags are interpreted for N bags too.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace

from mari_onnx.engine.axes.materialize import materialise
from mari_onnx.engine.inputs import N
from mari_onnx.engine.interpreter import Interpreter, visit
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.value import Axis, Decline, Tensor, Value
from mari_onnx.engine.rule import from_tensor
from mari_onnx.engine.session import Session
from mari_onnx.model.dims import Size
from mari_onnx.sides.bags import Region, region
from mari_onnx.sides.resolve import Sides


def interpret(state: Interpreter, sides: Sides, stored: dict[str, Tensor]) -> dict[str, tuple[Size, ...]]:
    """Goes through the source graph. Answers the shapes of tensors that were computed for one bag alone.

    Refuses (`Decline`) offsets or ids that other nodes read too, and results that have no row per bag.
    """
    graph = state.session.graph
    places: dict[int, tuple[Region, Interpreter]] = {}
    for offsets, ids in sides.bags.items():
        if sides.side(offsets) != "user" or offsets not in stored or stored[offsets].shape == state.env[offsets].shape:
            continue
        found = region(graph, offsets, ids)
        if found is None:
            raise Decline(f"{offsets} and {', '.join(ids)} are read by nodes that read other inputs too")
        env = {**state.env, offsets: from_tensor(stored[offsets])}
        places |= dict.fromkeys(found.nodes, (found, replace(state, env=env, session=_of_one_bag(state.session))))
    alone: dict[str, tuple[Size, ...]] = {}
    others = {id(one): one for _, one in places.values()}.values()
    for place, node in enumerate(graph.node):
        if place not in places:
            visit(state, node)
            for one in others:
                one.env.update({name: state.env[name] for name in node.output if name})
            continue
        part, one = places[place]
        visit(one, node)
        alone |= {name: one.env[name].shape for name in node.output if name and one.env[name].groups is not None}
        if place in part.sizes:
            visit(replace(state, reports=[]), node)
        for name in part.results:
            if name in node.output:
                state.env[name] = _for_all(one, one.env[name], name)
                alone.pop(name, None)
    return alone


def _of_one_bag(session: Session) -> Session:
    """The session without what the file declares of sizes that are N: here they are 1."""
    made = copy(session)
    made.declared = {
        name: (kind, None if shape is None else tuple(d if isinstance(d, int) else None for d in shape))
        for name, (kind, shape) in session.declared.items()
    }
    return made


def _for_all(state: Interpreter, value: Value, name: str) -> Value:
    """The rows of one bag as N equal rows. Refuses a tensor that has no row per bag."""
    _, declared = state.session.declared.get(name, (0, None))
    if value.groups is None and declared is not None:
        tensor = materialise(state.b, value)
        tensor.shape = tuple(d if isinstance(d, int) else state.b.fresh(tensor, i) for i, d in enumerate(declared))
        value = from_tensor(tensor)
    if value.groups is None:
        raise Decline(f"the rank of {name}, which is computed from bags, is not known")
    if not value.groups:
        raise Decline(f"{name} is computed from all bags together")
    rows = value.shape[0]
    if isinstance(rows, int) and rows != 1:
        raise Decline(f"{name} has {rows} rows for one bag")
    if rows != 1:  # only a run tells that it is one
        value = from_tensor(emit.cut(state.b, materialise(state.b, value), 0, 0, 1, 1))
    assert value.groups is not None
    return Value(((Axis(N),), *value.groups[1:]), value.body, value.dtype)
