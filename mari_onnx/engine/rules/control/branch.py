"""If: both branches are interpreted, and the result is chosen part by part.

Where the condition is a constant, the nodes of the branch that is taken replace the If. Otherwise

    if c: [u | x u | t]  else: [h | x h | t]   =   [if c: u else: h | if c: x u else: x h | t]

c is a single value, so it depends on the user or on sizes alone. Each branch is interpreted on its own, and the nodes
written for it stay inside it, so they run only if it is taken. The results of both branches are aligned like the
operands of an element-wise operator. A part that lacks the candidate axis in both branches lacks it in the result; a
part that is the same tensor in both needs no If; all others are outputs of one If.

Refused (the If is copied): branches whose results differ in rank, shape or element type, sequences, and shapes that
only a run of a branch can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx import GraphProto, NodeProto, helper

from mari_onnx.engine.axes.align import align
from mari_onnx.engine.axes.blockwise import zip_bodies
from mari_onnx.engine.axes.materialize import write
from mari_onnx.engine.ir.forms import without_alternatives
from mari_onnx.engine.ir.value import Axis, Decline, Leaf, Node, Tensor, Value, axes_of, depends, fresh
from mari_onnx.engine.rule import Context, rule
from mari_onnx.engine.rules.control.state_loop import depending, needed
from mari_onnx.model.dims import Dim, symbols

Choice = tuple[Tensor, Tensor, Tensor]
"""The tensor of the then-branch, that of the else-branch, and the output of the If."""


@dataclass
class Branch:
    """results: its outputs. nodes: what was written for it. made: names of tensors that exist in it alone."""

    graph: GraphProto
    results: list[Value]
    nodes: list[Node]
    made: set[str] = field(default_factory=set)
    wanted: list[Tensor] = field(default_factory=list)


@rule("If")
def if_(ctx: Context) -> list[Value | None]:
    """As the module's text says.

    Refuses a condition that is not one value, and branches that read a sequence or a tensor of unknown rank.
    """
    known = ctx.array(0)
    if known is not None and known.size == 1:
        with ctx.b.named():
            return list(ctx.interpret(ctx.attrs["then_branch" if known.reshape(-1)[0] else "else_branch"], ctx.env))
    condition = ctx.input(0)
    if axes_of(condition.body):
        raise Decline("the condition is not a single value")
    b = ctx.b
    outside = list(ctx.captured.values())
    if any(v.groups is None or v.items is not None or v.listed is not None for v in outside):
        raise Decline("a branch reads a sequence, or a tensor of unknown rank")
    # a form of an outside tensor would be written inside the branch that first uses it
    with b.named(), without_alternatives(v.body for v in outside):
        branches = [_interpreted(ctx, ctx.attrs[name]) for name in ("then_branch", "else_branch")]
    mark = len(b.nodes)
    chosen: list[Choice] = []
    values: list[Value | None] = []
    for k, name in enumerate(ctx.node.output):
        pair = [branch.results[k] for branch in branches]
        values.append(_chosen(ctx, branches, pair, chosen) if name else None)
    if chosen:
        _write(ctx, branches, mark, write(b, condition.body, []), chosen)
    return values


def _interpreted(ctx: Context, graph: GraphProto) -> Branch:
    """A branch; equal nodes outside of it are not to read what is written in it, nor to be given forms of that."""
    b = ctx.b
    mark, memo = len(b.nodes), b._memo
    b._memo = {}
    try:
        results = ctx.interpret(graph, dict(ctx.captured))
    finally:
        b._memo = memo
    nodes = b.nodes[mark:]
    return Branch(graph, results, nodes, {t.name for n in nodes for t in n.outputs})


def _chosen(
    ctx: Context, branches: Sequence[Branch], pair: Sequence[Value], chosen: list[Choice]
) -> Value:
    """One output; what must be chosen at run time is appended."""
    b = ctx.b
    one, other = pair
    if one.groups is None or other.groups is None or one.items is not None or other.items is not None:
        raise Decline("a result of a branch has an unknown rank")
    if one.dtype != other.dtype or one.rank != other.rank:
        raise Decline("the results of the two branches differ in type or rank")
    if not all(b.same(x, y) for x, y in zip(one.shape, other.shape, strict=True)):
        raise Decline("nothing shows that the results of the two branches have one shape")
    made = branches[0].made | branches[1].made
    if any(s in b.sources and b.sources[s][0].name in made for v in pair for a in v.axes for s in symbols(a.size)):
        raise Decline("a branch computes the shape of its own result")
    if any(not axes_of(v.body) <= frozenset(v.axes) for v in pair):
        raise Decline("a branch reads rows of the Loop around it")
    (left, right), groups = align(b, [one, fresh(other)])
    order = [a for group in groups for a in group]

    def choose(pair: list[Leaf]) -> Leaf:
        x, y = pair
        if x.tensor.name == y.tensor.name and x.axes == y.axes and x.tensor.name not in made:
            return x
        axes = _order(pair)
        x_, y_ = (write(b, leaf, [(a,) for a in axes], frozenset(axes)) for leaf in pair)
        shape = tuple(a.size for a in axes)
        deps = x_.deps | y_.deps | depends(ctx.input(0).body)
        out = Tensor(b.unique(f"{b.label}/If"), one.dtype, shape, deps)
        chosen.append((x_, y_, out))
        return Leaf(out, tuple(axes))

    return ctx.value(groups, zip_bodies(b, [left, right], choose, order=order), one.dtype)


def _order(leaves: Sequence[Leaf]) -> list[Axis]:
    """The axes of both, as the one with more of them has them stored; what the other adds is in front if dynamic."""
    most, least = sorted(leaves, key=lambda leaf: -len(axes_of(leaf)))
    axes = [a for a in most.axes if a is not None]
    more = [a for a in least.axes if a is not None and a not in axes]
    return [a for a in more if isinstance(a.size, Dim)] + axes + [a for a in more if not isinstance(a.size, Dim)]


def _write(
    ctx: Context, branches: Sequence[Branch], mark: int, condition: Tensor, chosen: Sequence[Choice]
) -> None:
    """The If node, with what was written since ``mark`` to lay results down in their branches."""
    b = ctx.b
    outs = [out for *_, out in chosen]
    if depending(b, mark, {t.name for t in outs}):
        raise Decline("the If would have to read its own result")
    graphs: list[GraphProto] = []
    captured: dict[str, Tensor] = {}
    for k, branch in enumerate(branches):
        inside = [*branch.nodes, *depending(b, mark, branch.made)]
        wanted = [pair[k] for pair in chosen]
        nodes = needed(inside, wanted)
        made = {t.name for node in nodes for t in node.outputs}
        read = [t for node in nodes for t in [*node.inputs, *node.captured] if t is not None]
        captured.update({t.name: t for t in [*read, *wanted] if t.name not in made})
        protos, infos = [node.proto for node in nodes], []
        for tensor in wanted:
            name = b.unique(f"{b.label}/{branch.graph.name or 'branch'}")
            protos.append(helper.make_node("Identity", [tensor.name], [name]))
            infos.append(helper.make_tensor_value_info(name, tensor.dtype, None))
        graphs.append(helper.make_graph(protos, branch.graph.name or "branch", [], infos))
    foreign = (branches[0].made & captured.keys()) | (branches[1].made & captured.keys())
    if foreign:
        raise Decline("one branch would read tensors of the other")
    proto: NodeProto = helper.make_node(
        "If", [condition.name], [t.name for t in outs], b._node_name("If"), then_branch=graphs[0], else_branch=graphs[1]
    )
    node = Node(proto, [condition], outs, b.origin, list(captured.values()), len(b.nodes))
    for out in outs:
        out.node = node
    b.nodes.append(node)
