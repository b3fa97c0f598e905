"""The first layer of a ranking MLP, where user and item features meet: ratios in one run.

User width 1024 in 16 features, item width 256 in 8, hidden 512, then 256, then 1; one thread.

- `fragmented / neat`: both optimized; interleaved against user first. Target: at most 1.02.
- `floor / ours`: the same network without its user part (whose product is fed ready made) against
  ours. Target: at least 0.95.
- `source / ours`: what optimizing gains.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.table import Table

from mari_onnx import optimize, runtime
from mari_onnx.report.terminal import console

USERS, ITEMS = [("user", 64)] * 16, [("item", 32)] * 8
HIDDEN = (512, 256, 1)
ROUNDS = 150


def main() -> int:
    out = console()
    table = Table("N", "ratio", "measured", "target", "", box=None, pad_edge=False)
    met = True
    for candidates in (500, 2000):
        times = measured(candidates)
        rows = [
            ("fragmented / neat", times["fragmented"] / times["neat"], "<= 1.02"),
            ("floor / ours", times["floor"] / times["fragmented"], ">= 0.95"),
            ("source / ours", times["source"] / times["fragmented"], "> 1"),
        ]
        for name, ratios, target in rows:
            ratio = float(np.median(ratios))
            sign, limit = target.split()
            good = ratio <= float(limit) if sign == "<=" else ratio >= float(limit)
            met &= good
            table.add_row(
                str(candidates), name, f"{ratio:.3f}", target, "met" if good else "MISSED"
            )
    out.print(table)
    return 0 if met else 1


def measured(candidates: int) -> dict[str, np.ndarray]:
    """Seconds of each round, the models run in turns."""
    neat = [*USERS, *ITEMS]
    mixed = [each for k in range(8) for each in (USERS[2 * k], ITEMS[k], USERS[2 * k + 1])]
    sources = {"source": mlp(mixed), "neat": mlp(neat), "fragmented": mlp(mixed), "floor": floor()}
    for name in ("neat", "fragmented"):
        sources[name] = optimize(
            sources[name], user=["user_*"], item=["item_*"], candidates=candidates
        ).model
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for name, model in sources.items():
            path = Path(folder, f"{name}.onnx")
            onnx.save(model, path)
            session = runtime.session(path)
            feed = {
                each.name: rng.standard_normal(
                    [d if isinstance(d, int) else candidates for d in each.shape]
                ).astype(np.float32)
                for each in session.get_inputs()
            }
            runs.append((session, feed))
        times = np.zeros((ROUNDS, len(runs)))
        for turn in range(-10, ROUNDS):
            for which in np.roll(range(len(runs)), turn):
                session, feed = runs[which]
                start = time.perf_counter()
                session.run(None, feed)
                if turn >= 0:
                    times[turn, which] = time.perf_counter() - start
    return dict(zip(sources, times.T, strict=True))


def mlp(features: list[tuple[str, int]]) -> onnx.ModelProto:
    """Concat of the features in this order, then the layers."""
    names = [f"{side}_{index}" for index, (side, _) in enumerate(features)]
    inputs = [_value(n, ["N", width]) for n, (_, width) in zip(names, features, strict=True)]
    nodes = [helper.make_node("Concat", names, ["x"], axis=1)]
    return _layers(nodes, inputs, sum(width for _, width in features), ["x", "w0", "b0"])


def floor() -> onnx.ModelProto:
    """The item part alone; the user's product comes as an input `[1, hidden]`."""
    names = [f"item_{index}" for index in range(len(ITEMS))]
    inputs = [_value(name, ["N", width]) for name, (_, width) in zip(names, ITEMS, strict=True)]
    inputs.append(_value("user_part", [1, HIDDEN[0]]))
    nodes = [helper.make_node("Concat", names, ["x"], axis=1)]
    return _layers(nodes, inputs, sum(width for _, width in ITEMS), ["x", "w0", "user_part"])


def _layers(
    nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], width: int, first: list[str]
) -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    weights = []
    operands = first
    for layer, size in enumerate(HIDDEN):
        last = layer == len(HIDDEN) - 1
        w = (rng.standard_normal((width, size)) / width**0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(w, f"w{layer}"))
        weights.append(numpy_helper.from_array(np.zeros(size, np.float32), f"b{layer}"))
        nodes.append(helper.make_node("Gemm", operands, ["score" if last else f"z{layer}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"z{layer}"], [f"a{layer}"]))
        operands, width = [f"a{layer}", f"w{layer + 1}", f"b{layer + 1}"], size
    used = {name for node in nodes for name in node.input}
    weights = [weight for weight in weights if weight.name in used]
    graph = helper.make_graph(nodes, "mlp", inputs, [_value("score", ["N", 1])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


if __name__ == "__main__":
    sys.exit(main())
