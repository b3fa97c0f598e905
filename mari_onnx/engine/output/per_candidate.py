"""Makes a graph of R requests of N candidates each one in which every candidate names its request.

In: the nodes of a grid (`engine/requests.py`), in which what depends on the user alone has the requests R and what
depends on candidates has (R, N). Out: the same nodes, where P rows of one candidate each take the place of R requests
of N. The identity is that of a look-up,

    f(u)[index] = f(u[index])                for any f that handles each request by itself,

so a user's tensor is computed for R requests, and its rows are gathered where a node reads it beside candidates. A
tensor in which the requests are no dimension of their own is computed again for P rows, from what was gathered before
it. Sizes that were asked for in terms of R are those of the users in one half of the graph and P in the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from onnx import NodeProto, helper

from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Decline, Node, Tensor
from mari_onnx.engine.output.assemble import live
from mari_onnx.model.dims import Dim, Size, symbols
from mari_onnx.model.nodes import rename_captures
from mari_onnx.model.ops import Fact, row

R = Dim.symbol("R")


class PerCandidate:
    """Rewrites nodes in place, and adds those that gather. The builder has the index, and an input of the users.

    for_requests: names of outputs that have a row for each request.
    """

    def __init__(self, b: Builder, for_requests: Collection[str] = ()):
        assert b.index is not None
        self.b, self.index, self.users, self.for_requests = b, b.index, b.users, for_requests
        self.requests = b.sources["R"][0]
        """The tensor off which sizes with R are read; it stands for the users' input and for the index."""
        self.nodes: list[Node] = []
        # of each tensor: "any" (no matter who asks), "sizes" (of requests), "users", or "candidates"
        self._half = {self.requests.name: "sizes", self.index.name: "candidates"}
        self._half |= {t.name: "candidates" for node in live([self.index]) for t in node.outputs}
        self._gathered: dict[str, Tensor] = {}

    def rewrite(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes in their new order. Refuses what cannot be gathered, and an output for requests that depends on
        candidates.
        """
        first = live([self.index])
        for node in first:
            self._add(node)
        for node in nodes:
            if node in first:
                continue
            halves = {self.half(t) for t in [*node.inputs, *node.captured] if t is not None}
            half = next((h for h in ("candidates", "users", "sizes") if h in halves), "any")
            for t in node.outputs:
                self._half[t.name] = half
            self._reads(node, self.of_candidates if half == "candidates" else self.of_users)
            if half == "candidates":
                for t in node.outputs:
                    if t.name in self.for_requests:
                        raise Decline(f"candidates of several requests meet in the output {t.name}")
                    t.shape = _by_candidate(t.shape)
            self._add(node)
        return self.nodes

    def half(self, t: Tensor) -> str:
        """Which half of the graph a tensor is in; of an input, by the side that it depends on."""
        if t.name not in self._half:
            rows = t.shape is None or any("R" in symbols(size) for size in t.shape)
            users = "users" if rows else "any"
            self._half[t.name] = "any" if t.const or not t.deps else "candidates" if "item" in t.deps else users
        return self._half[t.name]

    def of_users(self, t: Tensor) -> Tensor:
        """A tensor as nodes read it that run once per request."""
        if t is not self.requests:
            return t
        return self.users if self.users is not None else self.index

    def of_candidates(self, t: Tensor) -> Tensor:
        """A tensor as nodes read it that run once per candidate: with a row for each, if it varies at all.

        Refuses an input that is the users' and has no row for each request.
        """
        half = self.half(t)
        if half in ("any", "candidates"):
            return t
        if t is self.requests:
            return self.index
        if t.name not in self._gathered:
            at = [i for i, size in enumerate(t.shape or ()) if "R" in symbols(size)]
            # rows are gathered before they are repeated
            repeats = t.node is not None and Fact.REPEATS in row(t.node.proto.op_type).facts
            if half == "users" and len(at) == 1 and t.known[at[0]] == R and not repeats:
                proto = helper.make_node("Gather", [], [], axis=at[0])
                made = self._new(proto, [t, self.index], [], [t])
                self._gathered[t.name] = made.outputs[0]
            elif t.node is None:
                raise Decline(f"the rows of {t.name} are not those of requests")
            else:
                self._again(t.node)
        return self._gathered[t.name]

    def _again(self, node: Node) -> None:
        """A node of the users once more, on rows of candidates."""
        proto = NodeProto()
        proto.CopyFrom(node.proto)
        inputs = [self.of_candidates(t) if t is not None else None for t in node.inputs]
        captured = [self.of_candidates(t) for t in node.captured]
        rename_captures(proto, {old.name: new.name for old, new in zip(node.captured, captured, strict=True)})
        made = self._new(proto, inputs, captured, node.outputs)
        self._gathered |= {old.name: new for old, new in zip(node.outputs, made.outputs, strict=True)}

    def _new(
        self, proto: NodeProto, inputs: list[Tensor | None], captured: list[Tensor], like: Sequence[Tensor]
    ) -> Node:
        deps: frozenset[str] = frozenset().union(*(t.deps for t in [*inputs, *captured] if t), {"item"})
        node = Node(proto, inputs, [], next((t.node.origin for t in like if t.node is not None), ""), captured)
        for t in like:
            name = self.b.unique(f"{t.name}/rows") if t.name else ""
            node.outputs.append(Tensor(name, t.dtype, _by_candidate(t.shape), deps, node=node))
            self._half[name] = "candidates"
        self.b.origin = node.origin or like[0].name
        proto.name = self.b._node_name(proto.op_type)
        self._add(node)
        return node

    def _reads(self, node: Node, read: Callable[[Tensor], Tensor]) -> None:
        """Puts what a node reads in the place of its inputs, and of what its subgraphs capture."""
        node.inputs = [read(t) if t is not None else None for t in node.inputs]
        captured = [read(t) for t in node.captured]
        changed = {old.name: new.name for old, new in zip(node.captured, captured, strict=True) if old is not new}
        if changed:
            rename_captures(node.proto, changed)
        node.captured = captured

    def _add(self, node: Node) -> None:
        node.index = len(self.nodes)
        self.nodes.append(node)


def _by_candidate(shape: tuple[Size, ...] | None) -> tuple[Size, ...] | None:
    """A shape with P in the place of R, and of N 1. P is R N: as many candidates as there are in all."""
    return None if shape is None else tuple(_p(size) for size in shape)


def _p(size: Size) -> Size:
    if not isinstance(size, Dim):
        return size
    one = size.substitute({"N": 1})
    if not isinstance(one, Dim):
        return one
    terms = {tuple(sorted([*names, *["N"] * names.count("R")])): factor for names, factor in one.terms.items()}
    return Dim(terms)
