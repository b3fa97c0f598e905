"""The engine: `rewrite` a model so that what depends on the user alone is computed once per request.

In: an onnx model, which inputs are the user's, the item's or both (`Sides`), and `Options`. Out: a `Rewrite`, which has
the new model, what became of each source node, and what still has to be verified by running both models.

The engine goes through the source once (`interpreter.py`). Each operator's rule (`rules/`) says what its outputs are
and writes nodes of the new graph. docs/design.md explains the idea and the words used here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx

from mari_onnx.engine import (
    bags,
    interpreter,
    isolation,
    requests,
    rules,  # noqa: F401  fills the table
)
from mari_onnx.engine.analysis.finite import carried
from mari_onnx.engine.assumptions import UNCHECKED, Assumptions
from mari_onnx.engine.axes.materialize import materialise
from mari_onnx.engine.choose import EQUAL, fastest
from mari_onnx.engine.cost.flops import Cost, graph_cost
from mari_onnx.engine.cost.time_model import TimeModel
from mari_onnx.engine.dependence import dependence
from mari_onnx.engine.inputs import declared, enter, input_shapes
from mari_onnx.engine.interpreter import FAILURES, Interpreter
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Decline, Tensor, Value, kind
from mari_onnx.engine.outcome import Draft, NodeReport, Rewrite
from mari_onnx.engine.output.assemble import assemble, fuse_gemm, live
from mari_onnx.engine.output.cpu import for_cpu
from mari_onnx.engine.output.integer_kernels import with_integer_kernels
from mari_onnx.engine.output.names import name_outputs, restore_names, tensor_map
from mari_onnx.engine.output.per_candidate import PerCandidate
from mari_onnx.engine.output.tables import with_multiplied_tables
from mari_onnx.engine.session import Options, Session
from mari_onnx.engine.worth import Source
from mari_onnx.model.dims import Size
from mari_onnx.model.functions import inlined
from mari_onnx.model.nodes import all_names
from mari_onnx.model.upgrade import OLDEST
from mari_onnx.plugins import load_rules
from mari_onnx.sides.resolve import Sides

GROWTH = 2.0
"""Nodes per node of the source, above which the graph is rewritten at a higher price per node."""
THRIFTS = (10.0, 100.0)
"""The factors on the price per node that are tried then."""
FEWER = 0.9
"""A shorter graph is taken if it has at most this share of the nodes, or meets `GROWTH`."""
LOSS = 1.005
"""The FLOPs that a shorter graph may have, as a multiple of the first graph's."""


def rewrite(model: onnx.ModelProto, sides: Sides, options: Options | None = None) -> Rewrite:
    """A model that computes once per request what depends on the user alone. The source is only read.

    model: any opset; tensors of any rank, N candidates along ``sides.candidate_axis``. In the new model, inputs tagged
    ``user`` have size 1 on that axis; names, order and element types of inputs and outputs stay.

    Refuses nothing by an exception: where the model cannot be rewritten, `Rewrite.model` is the source, ``changed`` is
    False and ``reason`` says why (an opset before `OLDEST`, a user input that is also an output, nothing to save).
    """
    load_rules()
    opsets = {o.domain or "": o.version for o in model.opset_import}
    opsets.setdefault("", opsets.get("ai.onnx", 1))
    if opsets[""] < OLDEST:
        return Rewrite(model, False, [], reason=f"opset {opsets['']} is older than {OLDEST}")
    options = options or Options()
    graph = _inlined(model)
    time = TimeModel(options.candidates, several=bool(sides.batched), apart=options.split == "apart")
    if sides.indices:
        time = time.of_several()
    session = Session(graph, input_shapes(graph, sides), opsets, options, declared(graph, sides))
    try:
        return _isolated(model, sides, session, time, _best(model, sides, session, time))
    except Decline as why:  # an output, or what a node reads, that cannot be written
        return Rewrite(model, False, [], reason=str(why))
    except FAILURES as error:  # a graph of an unexpected kind: the source is returned
        if interpreter.STRICT:
            raise
        return Rewrite(model, False, [], reason=f"the rewrite failed ({type(error).__name__}: {error})")


def _best(model: onnx.ModelProto, sides: Sides, session: Session, time: TimeModel) -> Rewrite:
    """The rewrite that is fastest by the prices of kernels; without prices, the one that saves most work."""
    options = session.options

    def once(slower: frozenset[str]) -> Rewrite:
        session.options = replace(options, slower=slower)
        result = _rewrite(model, sides, session, time)
        return _thrifty(model, sides, session, time, result) if result.changed and result.grown > GROWTH else result

    first = once(options.slower or frozenset())
    if options.prices is None or options.slower is not None or not first.changed:
        return replace(first, left_for_time=options.slower or frozenset())
    found = fastest(session.graph, first, once, options, options.prices, bool(sides.several))
    if not found.changed and session.before is not None:
        return first
    if not found.changed:
        found.model, found.out_shapes = model, found.shapes
        found.tensor_map = {name: name for name in found.shapes}
    return found


def _isolated(model: onnx.ModelProto, sides: Sides, session: Session, time: TimeModel, plain: Rewrite) -> Rewrite:
    """The rewrite of the source in blocks (`isolation`), if history and candidates share a sequence and it pays."""
    options, graph = session.options, session.graph
    if sides.batched or not plain.shapes:
        return plain
    try:
        found = isolation.apart(graph, plain, session.opsets[""])
        if found is None:
            return plain
        told = next((options.declined[name] for name in found.joins if name in options.declined), None)
        if told is not None or not options.assume:
            raise Decline(told or UNCHECKED)
        skipped = options.skip & set(found.origins.values())
        if len(skipped) > 1 or options.skip & set(found.joins):
            raise Decline("the check found that outputs differ")
        if options.asked & set(found.origins.values()):
            raise Decline("nodes of it are skipped, as you asked for it")
        before = _cost(graph, found.shapes, time)
        source = _with_graph(model, found.graph)
        # one node may round more coarsely; a second one that differs is taken for a fault of the blocks themselves
        copied = {isolation.label(n) for n in found.graph.node if found.origins.get(n.output[0]) in skipped}
        own = replace(options, skip=options.skip | copied)
        inner = Session(found.graph, session.inputs, session.opsets, own, session.declared, before)
        made = _best(source, sides, inner, time)
        if not made.changed or made.flops >= (plain.flops if plain.changed else before.flops):
            raise Decline(next(iter(found.refused.values()), "that saves no work"))
        if options.prices is not None:
            worth = Source(graph, found.shapes, options, options.prices).worth
            value = worth(made)
            if value.total > min(EQUAL, worth(plain).total if plain.changed else EQUAL):
                raise Decline("with the history apart, it takes longer, by the prices of kernels")
            made.estimated = value.ratios
    except Decline as why:
        return _shared(plain, graph, str(why))
    except FAILURES as error:  # a graph of an unexpected kind
        if interpreter.STRICT:
            raise
        return _shared(plain, graph, f"the rewrite failed ({type(error).__name__}: {error})")
    return found.merged(graph, plain, made)


def _shared(plain: Rewrite, graph: onnx.GraphProto, why: str) -> Rewrite:
    """The rewrite with the reason why history and candidates stay in one sequence."""
    joins = set(isolation.joins(graph, plain))
    reason = f"history and candidates are one sequence here, and stay that: {why}"
    nodes = [replace(r, reason=reason, action="barrier") if r.name in joins else r for r in plain.nodes]
    return replace(plain, nodes=nodes)


def _thrifty(model: onnx.ModelProto, sides: Sides, session: Session, time: TimeModel, first: Rewrite) -> Rewrite:
    """A graph with too many nodes is rewritten at a higher price per node, until it is short enough.

    The first graph stays where the shorter ones lose more than `LOSS` of the FLOPs that were saved.
    """
    best = first
    for thrift in THRIFTS:
        try:
            again = _rewrite(model, sides, session, replace(time, node=time.node * thrift))
        except Decline:
            break
        if not again.changed or again.flops > LOSS * first.flops:
            break
        if again.grown <= max(GROWTH, FEWER * best.grown):
            best = again
        if best.grown <= GROWTH:
            break
    return best


def _rewrite(model: onnx.ModelProto, sides: Sides, session: Session, time: TimeModel) -> Rewrite:
    """One rewrite at the prices of ``time``, assembled and compared with the source."""
    graph, options = session.graph, session.options
    b = Builder(session.opsets[""], all_names(graph), time)
    b.carried = carried(graph)
    env, stored = enter(b, session, sides)
    assumptions = Assumptions(options.assume, options.declined)
    state = Interpreter(b, session, env, assumptions)
    if "user" in sides.inputs.values() and "N" not in b.sources and "N" not in b.fixed:
        reason = "no item or cross input has the candidates as a dimension; is every input tagged user?"
        return Rewrite(model, False, [], reason=reason)
    inputs = {info.name for info in graph.input}
    lifted = {n for n, t in stored.items() if env[n].groups is not None and t.shape != env[n].shape}
    both = sorted(lifted & {info.name for info in graph.output})
    if sides.several:
        both = sorted({info.name for info in graph.output} & (inputs | {i.name for i in graph.initializer}))
    if both:
        reason = f"the user input {both[0]!r} is also an output, so it must keep its N rows"
        if sides.several:
            reason = f"the input {both[0]!r} is also an output, which would be two tensors of one name"
        return Rewrite(model, False, [], reason=reason)
    one_bag = bags.interpret(state, sides, stored)
    wanted = [(o.name, stored.get(o.name) or _output(b, o.name, env[o.name], session)) for o in graph.output]
    outputs = name_outputs(b, wanted, inputs | {i.name for i in graph.initializer})
    nodes = live(outputs)
    once = requests.for_requests(outputs) if b.flat else set()
    of_requests = 0
    if b.flat:
        if b.gathered_up and b.users is None:
            if once and b.lengths is None:
                raise Decline(f"nothing says how many requests there are, and {min(once)} has a row for each")
            b.users = requests.row_per_request(b)
        per_candidate = PerCandidate(b, once)
        per_candidate.rewrite(nodes)
        nodes = live(outputs)
        of_requests = len(per_candidate.of_requests & {id(node) for node in nodes})
    if not options.split:
        nodes = with_integer_kernels(b, fuse_gemm(nodes, outputs), outputs)
    if not options.split and options.prices is not None:
        alone = options.skip | options.asked | (options.slower or frozenset())
        nodes, multiplied = with_multiplied_tables(b, nodes, outputs, options.prices, options.weighted, alone)
        for report in state.reports:
            report.reason = report.reason or multiplied.get(report.name)
    else:
        multiplied = {}
    if not options.split and options.target == "cpu":
        kept = sum(report.action != "folded" for report in state.reports)
        # what tells candidates their requests has no counterpart in the source
        nodes = for_cpu(b, nodes, outputs, most=2 * kept + (len(nodes) if b.flat else 0))
    same = {name: value for name, value in env.items() if session.read.whole(name)}
    restore_names(same, nodes, outputs)
    shapes = one_bag | {name: value.shape for name, value in env.items() if value.groups is not None}
    if sides.indices:
        shapes |= {name: requests.by_user(shapes[name]) for name in requests.of_users(graph, sides) if name in shapes}
    written = [t for n in nodes for t in [*n.inputs, *n.outputs] if t is not None]
    out_shapes = {t.name: t.shape for t in written if t.shape is not None}
    made = assemble(
        model if not model.functions else _with_graph(model, graph), nodes, outputs, {} if sides.several else stored
    )
    if sides.several:
        requests.declare(made, sides, graph, once)
    result = Rewrite(
        made,
        True,
        state.reports,
        {name: kind(value.body) for name, value in env.items()},
        shapes,
        {name: value.sym for name, value in env.items() if value.sym is not None},
        {name: value.dtype for name, value in env.items()},
        out_shapes,
        tensor_map(same, {t.name for n in nodes for t in n.outputs}),
        origins=[n.origin for n in nodes],
        multiplied=frozenset(multiplied),
        draft=Draft(made, b, nodes, outputs, stored, out_shapes) if options.split else None,
        of_requests=of_requests,
    )
    before, after = session.before or _cost(graph, shapes, time), _cost(made.graph, out_shapes, time)
    moved = bool(lifted or session.before) or any(r.action in ("lifted", "split") for r in state.reports)
    less = after.flops < before.flops or (after.flops == before.flops and after.bytes < before.bytes)
    result.flops, result.assumptions = after.flops, assumptions.made
    if options.depends:
        result.depends = {name: bits for name, value in env.items() if (bits := dependence(value)) is not None}
    if (not moved or not less) and (sides.indices or not sides.batched):
        result.model, result.changed, result.out_shapes, result.assumptions = model, False, shapes, []
        result.tensor_map = {name: name for name in shapes}
        result.reason = (
            "no operator computes the same result for several candidates"
            if not moved
            else f"no work is saved ({before.flops:.0f} FLOPs before, {after.flops:.0f} after "
            f"at {options.candidates} candidates)"
        )
    return result


def _output(b: Builder, name: str, value: Value, session: Session) -> Tensor:
    """A graph output as a tensor. Raises `Decline` for several requests where its rank is not known."""
    try:
        if b.requests is None:
            return materialise(b, value)
        return requests.leave(b, name, value, session.declared.get(name, (0, None))[1])
    except KeyError as error:
        raise Decline(f"the dimension {error} of an output cannot be computed from the inputs at run time") from error


def _cost(graph: onnx.GraphProto, shapes: Mapping[str, tuple[Size, ...]], time: TimeModel) -> Cost:
    concrete = {name: tuple(map(time.length, shape)) for name, shape in shapes.items()}
    for proto in graph.initializer:
        concrete.setdefault(proto.name, tuple(proto.dims))
    return graph_cost(graph, concrete)


def _inlined(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph with model-local functions inlined; weights stay out of it, so that size does not matter."""
    if not model.functions:
        return model.graph
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name or "graph"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.value_info.extend(model.graph.value_info)
    graph = inlined(light).graph
    graph.initializer.extend(model.graph.initializer)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    return graph


def _with_graph(model: onnx.ModelProto, graph: onnx.GraphProto) -> onnx.ModelProto:
    out = onnx.ModelProto()
    out.CopyFrom(model)
    out.graph.CopyFrom(graph)
    return out


__all__ = ["NodeReport", "Options", "Rewrite", "rewrite"]
