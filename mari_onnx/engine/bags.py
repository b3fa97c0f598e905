"""Bags of the user's ids: what a graph computes of offsets and ids alone is interpreted for one bag per request.

    f(offsets [0, k, 2k, ..], ids N times)  =  N rows  f(offsets [0], ids)

holds where row n of f is made from bag n alone, which the check of the finished model shows. In that part of the graph
the offsets have one entry, so all rules apply as they are; the tensors that other nodes read get the candidate axis
back, along which they are equal. Nodes that only count the bags are interpreted for N bags too.

In a graph for several requests there is a bag for each of them, and that part of the graph is the source's own:

    f(offsets of R bags, their ids)  =  R rows, row r of which is made from bag r alone.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace

from mari_onnx.engine.axes.materialize import materialise
from mari_onnx.engine.inputs import N
from mari_onnx.engine.interpreter import Interpreter, visit
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import written_only
from mari_onnx.engine.ir.value import Axis, Decline, Group, Leaf, Tensor, Value
from mari_onnx.engine.rule import from_tensor
from mari_onnx.engine.session import Session
from mari_onnx.model.dims import Size, symbols
from mari_onnx.sides.bags import Region, region
from mari_onnx.sides.resolve import Sides


def interpret(state: Interpreter, sides: Sides, stored: dict[str, Tensor]) -> dict[str, tuple[Size, ...]]:
    """Goes through the source graph. Answers the shapes of tensors that were computed for one bag alone.

    Refuses (`Decline`) offsets or ids that other nodes read too, and results that have no row per bag.
    """
    graph, b = state.session.graph, state.b
    places: dict[int, tuple[Region, Interpreter]] = {}
    single: dict[int, Interpreter] = {}
    for offsets, ids in sides.bags.items():
        if sides.side(offsets) != "user" or offsets not in stored or stored[offsets].shape == state.env[offsets].shape:
            continue
        found = region(graph, offsets, ids)
        if found is None:
            raise Decline(f"{offsets} and {', '.join(ids)} are read by nodes that read other inputs too")
        env = {**state.env, offsets: _own(b, stored[offsets])}
        inside = replace(state, env=env, session=_of_one_bag(state.session))
        places |= dict.fromkeys(found.nodes, (found, inside))
        if b.requests is not None:  # tells the ranks that are not known for several
            bag = Tensor(b.unique(f"{offsets}/one bag"), stored[offsets].dtype, (1,), stored[offsets].deps)
            single[id(inside)] = replace(inside, env={**inside.env, offsets: from_tensor(bag)}, reports=[])
    alone: dict[str, tuple[Size, ...]] = {}
    others = [*{id(one): one for _, one in places.values()}.values(), *single.values()]
    for place, node in enumerate(graph.node):
        if place not in places:
            visit(state, node)
            for one in others:
                one.env.update({name: state.env[name] for name in node.output if name})
            continue
        part, one = places[place]
        mark = len(b.nodes)
        visit(one, node)
        if b.requests is not None:
            b.of_bags.update(t.name for each in b.nodes[mark:] for t in each.outputs)
            visit(single[id(one)], node)
        alone |= {name: one.env[name].shape for name in node.output if name and one.env[name].groups is not None}
        if place in part.sizes:
            visit(replace(state, reports=[]), node)
        for name in part.results:
            if name in node.output:
                if b.requests is None:
                    state.env[name] = _for_all(one, one.env[name], name)
                else:
                    state.env[name] = _of_requests(b, one.env[name], single[id(one)].env[name], name)
                alone.pop(name, None)
    return alone


def _own(b: Builder, offsets: Tensor) -> Value:
    """Offsets as the new graph takes them: of one bag, or of a bag for each request."""
    if b.requests is None:
        return from_tensor(offsets)
    return Value(((b.requests,),), Leaf(offsets, (b.requests,)), offsets.dtype)


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


def _of_requests(b: Builder, value: Value, bag: Value, name: str) -> Value:
    """The rows of a bag for each request, each as N equal rows. bag: the same of one bag alone.

    Refuses a tensor that has no row per bag.
    """
    assert b.requests is not None
    many = b.requests.size
    if bag.groups is None and value.groups is None:
        raise Decline(f"the rank of {name}, which is computed from bags, is not known")
    shape = value.shape if value.groups is not None else bag.shape
    rows = shape[0] if shape and value.groups is not None else many
    if not shape or (rows != many and not all(symbol.startswith("?") for symbol in symbols(rows) or ("",))):
        raise Decline(f"{name}, which is computed from bags, has no row for each of them")
    tensor = materialise(b, value)
    written_only(tensor)  # no other way to compute it may be taken for some of its rows alone
    tensor.shape = (many, *shape[1:])  # only a run tells, where the number of rows was not known
    b.of_bags.discard(tensor.name)
    axes = tuple(None if size == 1 else Axis(size) for size in tensor.known[1:])
    groups: tuple[Group, ...] = tuple((a,) if a is not None else () for a in axes)
    return Value(((b.requests, Axis(N)), *groups), Leaf(tensor, (b.requests, *axes)), value.dtype)
