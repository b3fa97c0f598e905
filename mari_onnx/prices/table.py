"""How long a graph takes: measured prices of kernels, times what each node asks for.

A table of prices is a JSON file: ``{"provenance": {..}, "threads": {"1": {kernel: {amount: seconds}}}}``. The package
has one for the CPU (`cpu.json`, made by ``mari-onnx calibrate``); a user may make one for another machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from mari_onnx.model.nodes import attribute, graphs
from mari_onnx.model.ops import Fact, row
from mari_onnx.prices.fusions import Loaded
from mari_onnx.prices.kernels import uses
from mari_onnx.prices.use import Call, Use

Shapes = Mapping[str, tuple[int, ...]]
OWN = Path(__file__).with_name("cpu.json")
RUN = "run"
"""What a run takes before and after its kernels."""
OTHER = "other"
"""The kernel whose prices are taken for one that the table does not have."""


@dataclass(frozen=True)
class Prices:
    """Seconds for each amount of each kernel (`mari_onnx.prices.kernels`), for one number of threads.

    kernels: class of the kernel -> amount -> seconds. provenance: on what they were measured. sha256: of the file.
    foreign: whether it is another than the package's own.
    """

    kernels: Mapping[str, Mapping[str, float]]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""
    foreign: bool = False

    def seconds(self, use: Use, started: bool = True) -> float:
        """Of one kernel. started: whether it has a start of its own, which one that joins a neighbour has not."""
        prices = self.kernels.get(use.kernel) or self.kernels[OTHER]
        return sum(
            prices.get(name, 0.0) * amount for name, amount in use.amounts.items() if started or name != "node"
        )


def load(path: Path | None = None, threads: int = 1) -> Prices:
    """The table in `path`, or the package's own; of the number of threads that is nearest.

    Raises:
        UsageError: the file is no table of prices.
    """
    return _load(path or OWN, threads)


@cache
def _load(path: Path, threads: int) -> Prices:
    from mari_onnx.errors import UsageError

    try:
        data = path.read_bytes()
        table = json.loads(data)
        tables = {int(k): v for k, v in table["threads"].items()}
        nearest = min(tables, key=lambda k: (abs(k - threads), k))
        kernels = {k: dict(v) for k, v in tables[nearest].items()}
        prices = Prices(kernels, table["provenance"], hashlib.sha256(data).hexdigest(), path != OWN)
        if OTHER not in kernels or not all(isinstance(x, float | int) for v in kernels.values() for x in v.values()):
            raise ValueError("a kernel or a number is missing")
    except OSError as error:
        hint = "make one: mari-onnx calibrate FILE"
        raise UsageError(f"cannot read the prices in {path}: {error.strerror}", hint) from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(f"{path} is not a table of prices: {error}", "make one: mari-onnx calibrate FILE") from error
    return prices


def node_seconds(
    graph: onnx.GraphProto, shapes: Shapes, prices: Prices, loaded: Loaded | None = None
) -> Iterator[tuple[onnx.NodeProto, float]]:
    """Each node of `graph` and the seconds that its kernel takes; 0 where onnxruntime has none for it.

    Args:
        shapes: sizes of all tensors; those of initializers need not be in it. A tensor without counts as empty.
        loaded: the graph as onnxruntime runs it, where it was made before.

    A body (If, Loop, Scan) counts as often as it runs, and once where that is not known.
    """
    known = {**{t.name: tuple(t.dims) for t in graph.initializer}, **shapes}
    loaded = loaded or Loaded(graph, known)
    for node in loaded.nodes:
        if id(node) in loaded.gone:
            yield node, 0.0
            continue
        node_as = loaded.stands_for.get(id(node), node)
        call = Call(
            node_as,
            [known.get(x) for x in node_as.input],
            [known.get(x) for x in node_as.output],
            [x in loaded.constants for x in node_as.input],
            loaded.in_place(node),
            loaded.scalar(node.input[1]) if len(node.input) > 1 else None,
        )
        started = id(node) not in loaded.joined
        seconds = sum(prices.seconds(use, started) for use in uses(call))
        for body in graphs(node):
            seconds += _turns(node, known) * sum(each for _, each in node_seconds(body, known, prices))
        yield node, seconds


def _turns(node: onnx.NodeProto, known: Shapes) -> int:
    """How often a Loop's or a Scan's body runs: what it takes and answers each time is one of the first axis."""
    if Fact.ITERATES not in row(node.op_type).facts:
        return 1
    scanned = attribute(node, "num_scan_inputs", 0)
    carried = len(node.input) - (scanned or 2)  # a Loop's others are how long it goes on
    names = [*list(node.input)[carried if scanned else len(node.input) :], *list(node.output)[carried:]]
    return next((known[name][0] for name in names if known.get(name)), 1)


def run_seconds(inputs: int, prices: Prices) -> float:
    """What a run of a graph with so many inputs takes before and after its kernels."""
    return prices.seconds(Use(RUN, {"node": 1, "inputs": inputs}))


def graph_seconds(graph: onnx.GraphProto, shapes: Shapes, prices: Prices) -> float:
    """Seconds of one run."""
    return run_seconds(len(graph.input), prices) + sum(each for _, each in node_seconds(graph, shapes, prices))
