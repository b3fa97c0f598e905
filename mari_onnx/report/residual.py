"""How much work a model spends on results that are equal for all candidates.

Per node that works per candidate: the flops and bytes of results, or parts of results, that come
out equal for every candidate of a request, or that no output reads (tokens of a last layer of which
one is read); of a product (MatMul, Gemm, Einsum, Conv) and of a sum
also the terms that are equal for every candidate, though the result is not. It is measured, on the
source as on the output of a rewrite, and knows nothing of how that was made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx.engine.cost.flops import Cost, node_cost
from mari_onnx.model.einsum import einsum_sizes
from mari_onnx.model.nodes import STANDARD, domain
from mari_onnx.model.ops import Fact, having
from mari_onnx.report.candidate_probe import Seen, observe, pick_n

if TYPE_CHECKING:
    import onnx

    from mari_onnx.model.signature import Signature
    from mari_onnx.parity.requests.draw import Layout, Request
    from mari_onnx.sides.resolve import Sides

_SUMS = having(Fact.REDUCES) | {"Sum"}
_PRODUCTS = having(Fact.PRODUCT) - having(Fact.QUANTIZED)
# The length of a history that may have any.
_HISTORY = 12


@dataclass(frozen=True)
class NodeResidual:
    """One node that works per candidate.

    Attributes:
        name, op: of the node; a nameless node goes by its first output.
        cost: all it does for n candidates.
        redundant: of that, what is spent on results or terms equal for all candidates.
        doubtful: of `redundant`'s kind, but equal for all users too and perhaps only saturated (a
            clipped or rounded value); counted nowhere else.
        results: the share of the result's elements that is equal for all candidates.
        unread: the share of the result's elements that no output reads; `redundant` and `results` have it too.
        terms: of a product or sum, the share of terms equal for all candidates, its results' too.
    """

    name: str
    op: str
    cost: Cost
    redundant: Cost
    doubtful: Cost
    results: float
    terms: float | None = None
    unread: float = 0.0

    @property
    def text(self) -> str:
        """What was found, in words."""
        if self.unread:
            return f"{self.unread:.0%} of the result is read by no output; {self.results:.0%} is that, or equal for all"
        if self.results == 1.0:
            return "the whole result is equal for all candidates"
        parts = []
        if self.results > 0:
            parts.append(f"{self.results:.0%} of the result is equal for all candidates")
        if self.terms is not None and self.terms > self.results:
            parts.append(f"{self.terms:.0%} of the terms are")
        return "; ".join(parts) or "it reads values that are equal for all candidates"


@dataclass(frozen=True)
class Residual:
    """The redundant work of one model for `n` candidates; nodes in graph order.

    `once` is what nodes cost that work on one row per request: no part of any share.
    """

    n: int
    nodes: tuple[NodeResidual, ...]
    once: Cost

    @property
    def total(self) -> Cost:
        """All work that is done per candidate."""
        return sum((x.cost for x in self.nodes), Cost())

    @property
    def redundant(self) -> Cost:
        return sum((x.redundant for x in self.nodes), Cost())

    @property
    def doubtful(self) -> Cost:
        return sum((x.doubtful for x in self.nodes), Cost())

    @property
    def share(self) -> float:
        """Redundant flops over flops done per candidate, 0 to 1."""
        return self.redundant.flops / self.total.flops if self.total.flops else 0.0

    @property
    def byte_share(self) -> float:
        """The same of bytes moved."""
        return self.redundant.bytes / self.total.bytes if self.total.bytes else 0.0

    def worst(self, count: int = 10) -> list[NodeResidual]:
        """Nodes with redundant work, those with the most flops (then bytes) first."""
        found = [x for x in self.nodes if x.redundant.flops or x.redundant.bytes]
        return sorted(found, key=lambda x: (-x.redundant.flops, -x.redundant.bytes))[:count]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: totals, shares and every node that wastes something."""
        return {
            "candidates": self.n,
            "flops": self.total.flops,
            "bytes": self.total.bytes,
            "redundant_flops": self.redundant.flops,
            "redundant_bytes": self.redundant.bytes,
            "doubtful_flops": self.doubtful.flops,
            "once_flops": self.once.flops,
            "share": self.share,
            "byte_share": self.byte_share,
            "nodes": [
                {
                    "name": x.name,
                    "op": x.op,
                    "flops": x.cost.flops,
                    "redundant_flops": x.redundant.flops,
                    "redundant_bytes": x.redundant.bytes,
                    "found": x.text,
                }
                for x in self.worst(len(self.nodes))
            ],
        }


def measure(
    model: onnx.ModelProto,
    sides: Sides,
    n: int = 64,
    history: int | None = None,
    seed: int = 0,
    base_dir: str = "",
    draw: Callable[[int, int], Request] | None = None,
) -> Residual:
    """Measures `model`, a source (user rows repeated) or an optimized graph (user rows once).

    Args:
        model: read only; functions are inlined in a copy.
        sides: whose inputs are whose.
        n: about how many candidates; the largest fitting prime up to it is taken.
        history: the length of free dimensions other than the candidates'.
        seed: of users, candidates and their order.
        base_dir: folder of weights that are external data and not loaded.
        draw: `(seed, n) -> Request`, where requests must not be made up from the graph; called with
            three seeds, and should leave nothing padded for one that is 2 modulo 3.

    Raises:
        ModelError: the model cannot run, or takes one candidate only.
    """
    import onnx

    from mari_onnx.errors import ModelError
    from mari_onnx.model.functions import inlined
    from mari_onnx.model.signature import signature
    from mari_onnx.parity.domains.domains import domains
    from mari_onnx.parity.requests.draw import Drawer, Layout

    model = inlined(model)
    if any(onnx.external_data_helper.uses_external_data(t) for t in model.graph.initializer):
        loaded = onnx.ModelProto()
        loaded.CopyFrom(model)
        onnx.load_external_data_for_model(loaded, base_dir)
        model = loaded
    declared = signature(model)
    layout = Layout(declared, sides)
    if layout.free:
        layout = Layout(_fix(declared, layout, history or _HISTORY), sides)
    n = layout.fixed_n or pick_n(model, n)
    if n < 2:
        raise ModelError(
            "the model runs with one candidate only, so nothing can be compared",
            "export it with a dynamic batch dimension",
        )
    if draw is None:
        ranges, _ = domains(model, layout)

        def draw(own: int, rows: int) -> Request:
            # Padding must be seen to be padding: one of the users has none.
            return Drawer(layout, ranges, own).request(rows, full=own % 3 == 2)

    first, *others = (draw(3 * seed + k, n) for k in range(3))
    order = np.random.default_rng(seed).permutation(n)
    feeds = [r.feed(declared.inputs) for r in (first, _permuted(first, order), *others)]
    return count(model, observe(model, feeds, order), n)


def _fix(declared: Signature, layout: Layout, length: int) -> Signature:
    """`declared` with its free dimensions of one length, but for a number of requests: one."""
    requests = layout.free[0] if layout.axis == 1 and not layout.sides else None

    def dim(name: str, index: int, d: int | str | None) -> int | str | None:
        symbol = d if isinstance(d, str) else f"{name}:{index}"
        if symbol not in layout.free:
            return d
        return 1 if symbol == requests else length

    inputs = (replace(x, shape=tuple(dim(x.name, k, d) for k, d in enumerate(x.shape))) for x in declared.inputs)
    return replace(declared, inputs=tuple(inputs))


def _permuted(request: Request, order: np.ndarray) -> Request:
    """The same user with the candidates in another order."""

    def turn(name: str, value: np.ndarray) -> np.ndarray:
        axis = request.axis_of(name)
        held = value.ndim > axis and value.shape[axis] == len(order) and name not in cut
        return np.take(value, order, axis) if held else value

    cut = {name for ids in request.bags.values() for name in ids}
    made = request.of_candidates(order.tolist())
    return replace(made, literal={k: turn(k, v) for k, v in made.literal.items()})


def count(model: onnx.ModelProto, seen: Mapping[str, Seen], n: int, unread_too: bool = True) -> Residual:
    """The work of a model, from what was seen of its tensors with n candidates.

    unread_too: what no output reads counts as redundant.
    """
    graph = model.graph
    nodes: list[NodeResidual] = []
    once = Cost()
    unread = _unread(model, seen) if unread_too else {}
    for node in graph.node:
        ins = [seen.get(x) for x in node.input]
        outs = [seen.get(x) for x in node.output]
        left = [unread.get(x) for x in node.output]
        cost = node_cost(node, _shapes(ins), _shapes(outs))
        if not any(x is not None and x.axis is not None for x in (*ins, *outs)):
            once += cost
            continue
        outs = [_with_unread(x, mask) for x, mask in zip(outs, left, strict=True)]
        shares = [float(mask.mean()) for mask in left if mask is not None]
        nodes.append(replace(_node(node, cost, ins, outs), unread=max(shares, default=0.0)))
    return Residual(n, tuple(nodes), once)


def _unread(model: onnx.ModelProto, seen: Mapping[str, Seen]) -> dict[str, np.ndarray]:
    """True, by tensor, at positions that no output reads; tensors that are read as a whole are left out. A dimension of
    1 stands for positions that are read alike.
    """
    from mari_onnx.engine.lookahead.read import Read
    from mari_onnx.engine.lookahead.read_positions import Constants, may_be_partial

    graph = model.graph
    if not may_be_partial(graph):
        return {}
    shapes = {name: look.shape for name, look in seen.items()}
    opset = next((o.version for o in model.opset_import if domain(o.domain) == STANDARD), 1)
    constants = Constants(graph, graph.node, [shapes], opset)
    read = Read([o.name for o in graph.output], graph.node, shapes, constants, opset)
    return {name: ~mask for name, mask in read.by_name.items() if mask is not None and mask.size > 1}


def _with_unread(look: Seen | None, unread: np.ndarray | None) -> Seen | None:
    """What was seen of a tensor, with positions that no output reads counted like those that are equal for all."""
    if look is None or unread is None or look.axis is None or unread.ndim != len(look.shape):
        return look
    before, n, after = look.fold
    size = look.shape[look.axis]
    unread = np.broadcast_to(unread, [size if d == look.axis else m for d, m in enumerate(unread.shape)])
    apart = unread.reshape((*unread.shape[: look.axis], before, n, after, *unread.shape[look.axis + 1 :]))
    alike = apart.all(axis=look.axis + 1, keepdims=True)
    equal = look.equal if look.equal is not None else np.zeros((), bool)
    held = (*look.shape[: look.axis], before, 1, after, *look.shape[look.axis + 1 :])
    constant = look.constant & ~alike if look.constant is not None else None
    return replace(look, equal=np.broadcast_to(equal | alike, held), constant=constant)


def _shapes(looks: Sequence[Seen | None]) -> list[tuple[int, ...] | None]:
    return [None if x is None else x.shape for x in looks]


def _node(node: onnx.NodeProto, cost: Cost, ins: Sequence[Seen | None], outs: Sequence[Seen | None]) -> NodeResidual:
    results, sure_results = _results(outs)
    terms = _terms(node, ins, outs)
    flops, sure_flops = terms if terms is not None else (results, sure_results)
    moved, sure_moved = _moved(node, ins, outs)
    redundant = Cost(cost.flops * sure_flops, cost.bytes * sure_moved)
    doubtful = Cost(cost.flops * (flops - sure_flops), cost.bytes * (moved - sure_moved))
    return NodeResidual(
        node.name or next((x for x in node.output if x), ""),
        node.op_type,
        cost,
        redundant,
        doubtful,
        sure_results,
        None if terms is None else sure_flops,
    )


def _pair(masks: Callable[[bool], float]) -> tuple[float, float]:
    """A share with doubtful parts counted and without."""
    return masks(True), masks(False)


def _mask(look: Seen | None, doubtful: bool) -> np.ndarray | None:
    """True where equal for all candidates, at the tensor's shape; all True where it has one row. (Of items: where equal
    for all users.)
    """
    if look is None:
        return None
    if look.axis is None:
        return np.ones(look.shape, bool) if look.equal is None else look.equal
    mask = look.full(look.equal)
    if not doubtful and look.constant is not None:
        mask = mask & ~look.full(look.constant)
    return mask


def _results(outs: Sequence[Seen | None]) -> tuple[float, float]:
    return _pair(lambda doubtful: _equal_share(outs, doubtful))


def _equal_share(looks: Sequence[Seen | None], doubtful: bool) -> float:
    """The share of elements equal for all candidates, of the tensors that hold candidates."""
    masks = [_mask(x, doubtful) for x in looks if x is not None and x.axis is not None]
    total = sum(m.size for m in masks if m is not None)
    return sum(int(m.sum()) for m in masks if m is not None) / total if total else 0.0


def _moved(node: onnx.NodeProto, ins: Sequence[Seen | None], outs: Sequence[Seen | None]) -> tuple[float, float]:
    """The share of elements read and written that are equal for all candidates."""
    read = ins[1:] if node.op_type in having(Fact.READS_PART) else ins

    def share(doubtful: bool) -> float:
        looks = [x for x in (*read, *outs) if x is not None]
        total = sum(math.prod(x.shape) for x in looks)
        equal = sum(int(m.sum()) for x in looks if x.axis is not None and (m := _mask(x, doubtful)) is not None)
        return equal / total if total else 0.0

    return _pair(share)


def _terms(node: onnx.NodeProto, ins: Sequence[Seen | None], outs: Sequence[Seen | None]) -> tuple[float, float] | None:
    """The share of terms of a product or sum that are equal for all; None for other operators."""
    if not outs or outs[0] is None:
        return None
    if node.op_type in _SUMS:
        return _pair(lambda d: max(_equal_share(ins, d), _equal_share(outs[:1], d)))
    if outs[0].axis is None:
        return None
    if node.op_type in _PRODUCTS and len(ins) >= 2 and ins[0] is not None and ins[1] is not None:
        return _pair(lambda doubtful: _product_share(node, ins, outs, doubtful))
    return None


def _product_share(
    node: onnx.NodeProto, ins: Sequence[Seen | None], outs: Sequence[Seen | None], doubtful: bool
) -> float:
    """Terms `a[m, k] * b[k, n]` with both factors, or the whole sum, equal for all candidates."""
    a, b, out = (_mask(x, doubtful) for x in (ins[0], ins[1], outs[0]))
    if a is None or b is None or out is None or not out.size:
        return 0.0
    if node.op_type in having(Fact.CONV):
        # Channels and windows overlap at the borders; the mean over the input is near enough.
        return max(float(a.mean()), float(out.mean()))
    left, right = a.astype(np.float32), b.astype(np.float32)
    if node.op_type == "Einsum":
        counts, depth = _einsum_terms(node, left, right)
    else:
        flags = {x.name for x in node.attribute if x.name.startswith("trans") and x.i}
        left = _turned(left, "transBatchA" in flags, "transA" in flags)
        right = _turned(right, "transBatchB" in flags, "transB" in flags)
        counts, depth = np.matmul(left, right), left.shape[-1]
    if counts.shape != out.shape or not depth:
        return float(out.mean())
    return float(np.where(out, 1.0, counts / depth).mean())


def _turned(operand: np.ndarray, batch: bool, last: bool) -> np.ndarray:
    """An operand as MatMul has it: `batch` moves axis 0 behind the other batch axes, then `last` swaps the last two."""
    if operand.ndim < 2:
        return operand
    operand = np.moveaxis(operand, 0, -2) if batch else operand
    return np.swapaxes(operand, -1, -2) if last else operand


def _einsum_terms(node: onnx.NodeProto, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, int]:
    """How many terms of each output element have equal factors, and how many terms it has."""
    equation = next(x.s.decode() for x in node.attribute if x.name == "equation")
    if len(node.input) != 2:
        return np.zeros(()), 0
    _, output, sizes = einsum_sizes(equation, [left.shape, right.shape])
    depth = math.prod(length for label, length in sizes.items() if label not in output)
    return np.einsum(equation.replace(" ", ""), left, right, optimize=True), depth
