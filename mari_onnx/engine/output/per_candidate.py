"""Makes a graph of R requests of N candidates each one in which every candidate names its request.

In: the nodes of a grid (`engine/requests.py`), in which what depends on the user alone has the requests R and what
depends on candidates has (R, N). Out: the same nodes, where P rows of one candidate each take the place of R requests
of N. The identity is that of a look-up,

    f(u)[index] = f(u[index])                for any f that handles each request by itself,

so a user's tensor is computed for R requests, and its rows are gathered where a node reads it beside candidates. A
tensor in which the requests are no dimension of their own is computed again for P rows, from what was gathered before
it. Sizes that were asked for in terms of R are those of the users in one half of the graph and P in the other.

Products with a matrix of the user's gather no matrices (`by_request`). Where a node repeats one row itself, the index
is cut to one entry if there is one request: then a run takes about as long as one of the output for one request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from onnx import NodeProto, TensorProto, helper

from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Axis, Decline, Node, Tensor
from mari_onnx.engine.output.assemble import live
from mari_onnx.engine.output.by_request import (
    N,
    Nodes,
    R,
    Standings,
    fits,
    multiplied,
    rows_of,
    saves,
    tokens_multiplied,
)
from mari_onnx.model.dims import Dim, Size, symbols
from mari_onnx.model.nodes import attribute, is_standard, rename_captures
from mari_onnx.model.ops import Fact, having, row

P = R * N
ALL = 1 << 31
"""More than there are rows."""
FEW_NODES = 4
"""So many nodes cut the index short."""


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
        self.of_requests: set[int] = set()
        """Ids of the nodes that tell candidates their requests."""
        # of each tensor: "any" (no matter who asks), "sizes" (of requests), "users", or "candidates"
        self._half = {self.requests.name: "sizes", self.index.name: "candidates"}
        self._half |= {t.name: "candidates" for node in live([self.index]) for t in node.outputs}
        self._gathered: dict[tuple[str, bool], Tensor] = {}
        self._few: Tensor | None = None
        # what has been computed in a grid of requests, by the tensor that has its rows, and by a Reshape of that
        self._grids: dict[str, Tensor] = {}
        self._reshaped: dict[str, Tensor] = {}
        self.write = Nodes(b, self._written)
        users = self.users if self.users is not None else self.index
        self._standings = Standings(self.write, self.index, users, b.lengths is not None)

    def rewrite(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes in their new order. Refuses what cannot be gathered, and an output for requests that depends on
        candidates.
        """
        first = live([self.index, *([self.users] if self.b.gathered_up and self.users is not None else [])])
        for node in first:
            self._add(node)
        self.of_requests.update(map(id, first))
        for node in nodes:
            if node in first:
                continue
            if node.outputs[0].name in self.b.gathered_up:
                self._half[node.outputs[0].name] = "users"
                self._add(node)
                continue
            halves = {self.half(t) for t in [*node.inputs, *node.captured] if t is not None}
            half = next((h for h in ("candidates", "users", "sizes") if h in halves), "any")
            for t in node.outputs:
                self._half[t.name] = half
                if half == "candidates" and t.name in self.for_requests:
                    raise Decline(f"candidates of several requests meet in the output {t.name}")
            if half != "candidates":
                self._reads(node, self.of_users)
            elif self._by_request(node):
                continue
            else:
                self._reads(node, self.of_candidates)
                for t in node.outputs:
                    t.shape = _by_candidate(t.shape)
                self._follow(node)
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

    def of_candidates(self, t: Tensor, few: bool = False) -> Tensor:
        """A tensor as nodes read it that run once per candidate: with a row for each, if it varies at all; with one row
        if it is ``few`` and there is one request.

        Refuses an input that is the users' and has no row for each request, and what is computed within bags.
        """
        half = self.half(t)
        if half in ("any", "candidates"):
            return t
        if t is self.requests:
            return self.index
        if half == "users" and t.name in self.b.of_bags:
            raise Decline(f"{t.name} is computed from bags of ids, and has no row for each of them")
        if (t.name, few) in self._gathered:
            return self._gathered[t.name, few]
        if (t.name, False) not in self._gathered:
            at = [i for i, size in enumerate(t.shape or ()) if "R" in symbols(size)]
            # rows are gathered before they are repeated
            repeats = t.node is not None and Fact.REPEATS in row(t.node.proto.op_type).facts
            if half == "users" and len(at) == 1 and t.known[at[0]] == R and not repeats:
                proto = helper.make_node("Gather", [], [], axis=at[0])
                made = self._new(proto, [t, self.few() if few else self.index], [], [t])
                self._gathered[t.name, few] = made.outputs[0]
                return made.outputs[0]
            if t.node is None:
                raise Decline(f"the rows of {t.name} are not those of requests")
            sizes = self._sizes(t)
            if sizes is not None:
                self._gathered[t.name, False] = sizes
                return sizes
            self._again(t.node)
        return self._gathered[t.name, False]

    def _sizes(self, t: Tensor) -> Tensor | None:
        """The Shape of a user's tensor, as that of its rows would be, without the rows; None for other tensors."""
        node = t.node
        x = node.inputs[0] if node is not None and node.inputs else None
        if node is None or x is None or not x.shape or node.proto.op_type != "Shape":
            return None
        counts = x is self.requests or x is self.users or x.shape[0] == R
        if not counts or any("R" in symbols(size) for size in x.shape[1:]):
            return None
        rank = len(x.shape)
        begin, end, _ = slice(attribute(node.proto, "start", 0), attribute(node.proto, "end", rank)).indices(rank)
        if begin > 0:
            return t
        if end < 1:
            return None
        candidates = self.write("Shape", [self.index], (1,), TensorProto.INT64)
        if end == 1:
            return candidates
        rest = self.write("Slice", [t, *(self.b.ints([k]) for k in (1, ALL, 0))], (end - 1,))
        return self.write("Concat", [candidates, rest], (end,), axis=0)

    def few(self) -> Tensor:
        """The index; its first entry alone if there is one request. The reader of what it gathers has to repeat it."""
        if self._few is None and self.users is not None:
            ints, write = self.b.ints, self.write
            times = write("Mul", [write.lengths(self.users), ints([ALL])], (1,))
            stop = write("Sub", [times, ints([ALL - 1])], (1,))  # 1 for one request
            self._few = write("Slice", [self.index, ints([0]), stop, ints([0])], (P,), self.index.dtype)
            self.b.few = self._few
        return self._few or self.index

    def _repeats(self, node: Node, t: Tensor) -> bool:
        """Whether a node repeats a tensor's one row, as another input has the candidates along the same dimension."""
        product, element = node.proto.op_type == "MatMul", node.proto.op_type in having(Fact.ELEMENT)
        if not is_standard(node.proto) or not (element or product) or self.half(t) != "users" or t.shape is None:
            return False
        at = next((len(t.shape) - i for i, size in enumerate(t.shape) if size == R), 0)
        if not at or (product and at < 3):
            return False
        rows = self.b.time.copy * self.b.time.volume([Axis(size) for size in (*t.shape, N)])
        if self._few is None and rows < FEW_NODES * self.b.time.node:
            return False
        others = [x for x in node.inputs if x is not None and x is not t and self.half(x) == "candidates"]
        return any(x.shape is not None and len(x.shape) >= at and x.shape[-at] == P for x in others)

    def _by_request(self, node: Node) -> bool:
        """Writes a product with a matrix of the user's as one product per request, if that is faster; so what combines
        such a product with a row of the user's.
        """
        if not is_standard(node.proto) or len(node.inputs) != 2 or self.users is None:
            return False
        x, other = node.inputs
        out, self.b.origin = node.outputs[0], node.origin
        if x is None or other is None or out.shape is None:
            return False
        grid: Tensor | None = None
        if node.proto.op_type == "MatMul":
            theirs = self.half(x) == "candidates" and self.half(other) == "users" and fits(x, other, P)
            standings = self._standings
            if theirs and other.name not in self.b.of_bags and saves(self.b, x, other, out, x.known[-2] in standings):
                if x.known[-2] != 1:
                    out.shape = _by_candidate(out.shape)
                    return self._takes(out, tokens_multiplied(self.write, standings, x, other))
                x = self.write.with_axes("Squeeze", x, [len(x.known) - 2], (*x.known[:-2], x.known[-1]))
                grid = multiplied(self.write, standings.of(1), x, other)
        elif node.proto.op_type in having(Fact.ELEMENT) and Fact.BOOLEAN not in row(node.proto.op_type).facts:
            grid = self._with_row(node, x, other)
        if grid is None:
            return False
        rows = rows_of(self.write, self._standings.of(1), grid)
        out.shape = shape = _by_candidate(out.shape)
        if len(shape or ()) == len(grid.known):
            self._grids[out.name] = grid
            return self._takes(out, self.write.with_axes("Unsqueeze", rows, [len(grid.known) - 2], ()))
        self._reshaped[out.name] = grid
        return self._takes(out, self.write("Reshape", [rows, self.b.ints([0, *_fixed(shape)])], ()))

    def _takes(self, out: Tensor, made: Tensor) -> bool:
        """Puts a tensor of the graph in the place of what a node just written computes."""
        out.node = made.node
        assert out.node is not None
        out.node.outputs = [out]
        return True

    def _follow(self, node: Node) -> None:
        """Remembers rows of a grid `[P, 1, H]` that are reshaped to `[P, 1, T, H / T]`."""
        x, out = node.inputs[0] if node.inputs else None, node.outputs[0]
        grid = self._grids.get(x.name) if x is not None else None
        if grid is None or node.proto.op_type != "Reshape" or out.shape is None or len(grid.known) != 3:
            return
        rest = _fixed(out.shape)
        if len(rest) == len(out.shape) - 1 and rest[:1] == [1] and math.prod(rest) == grid.known[-1]:
            self._reshaped[out.name] = grid

    def _with_row(self, node: Node, *pair: Tensor) -> Tensor | None:
        """What combines a product per request with a row of the user's, before its rows are gathered."""
        grids = [self._grids.get(t.name) or self._reshaped.get(t.name) for t in pair]
        theirs = [t for t, grid in zip(pair, grids, strict=True) if grid is None and self.half(t) == "users"]
        wanted = _by_candidate(node.outputs[0].shape)
        if len(theirs) != 1 or grids.count(None) != 1 or wanted is None or theirs[0].shape != (R, *wanted[1:]):
            return None
        (have,) = (grid for grid in grids if grid is not None)
        (row,) = theirs
        if len(wanted) != len(have.known):
            row = self.write("Reshape", [row, self.b.ints([0, 1, math.prod(_fixed(wanted))])], (R, 1, have.known[-1]))
        inputs = [row if grid is None else grid for grid in grids]
        made = self.write(node.proto.op_type, inputs, have.known, node.outputs[0].dtype)
        assert made.node is not None
        made.node.proto.attribute.extend(node.proto.attribute)
        return made

    def _written(
        self, op: str, inputs: Sequence[Tensor], shapes: Sequence[tuple[Size, ...]], dtype: int | None, **attrs: Any
    ) -> list[Tensor]:
        """A node of the candidates' half, on inputs as they are."""
        proto = helper.make_node(op, [], [], **attrs)
        deps: frozenset[str] = frozenset().union(*(t.deps for t in inputs), {"item"})
        node = Node(proto, list(inputs), [], self.b.origin, [])
        for shape in shapes:
            name = self.b.unique(f"{self.b.origin}/{op}")
            node.outputs.append(Tensor(name, dtype or inputs[0].dtype, shape, deps, node=node))
            self._half[name] = "candidates"
        proto.name = self.b._node_name(op)
        self._add(node)
        self.of_requests.add(id(node))
        return node.outputs

    def _again(self, node: Node) -> None:
        """A node of the users once more, on rows of candidates."""
        proto = NodeProto()
        proto.CopyFrom(node.proto)
        inputs = [self.of_candidates(t) if t is not None else None for t in node.inputs]
        captured = [self.of_candidates(t) for t in node.captured]
        rename_captures(proto, {old.name: new.name for old, new in zip(node.captured, captured, strict=True)})
        made = self._new(proto, inputs, captured, node.outputs)
        self._gathered |= {(old.name, False): new for old, new in zip(node.outputs, made.outputs, strict=True)}

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
        few = {t.name for t in node.inputs if t is not None and read == self.of_candidates and self._repeats(node, t)}
        inputs = [None if t is None else self.of_candidates(t, True) if t.name in few else read(t) for t in node.inputs]
        node.inputs = inputs
        captured = [read(t) for t in node.captured]
        changed = {old.name: new.name for old, new in zip(node.captured, captured, strict=True) if old is not new}
        if changed:
            rename_captures(node.proto, changed)
        node.captured = captured

    def _add(self, node: Node) -> None:
        node.index = len(self.nodes)
        self.nodes.append(node)


def _fixed(shape: Sequence[Size] | None) -> list[int]:
    """The dimensions that are numbers."""
    return [size for size in shape or () if isinstance(size, int)]


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
