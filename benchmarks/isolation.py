"""Models with history and candidates in one sequence: source against output, and against one written by hand.

    python -m benchmarks.isolation [--heads 1,2,4,8] [--length 200] [--candidates 500] [--profile]

Two layers of width 64, softmax (a transformer) or SiLU (HSTU) attention, written node by node. One thread, thread time,
in turns. By hand: the history's rows once, and for each candidate a product with them and a row-wise one with itself,
in the fewest nodes. --profile: what nodes of the output take, by the name of the operator in the source.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from benchmarks.graphs import Graph
from mari_onnx import api, runtime
from mari_onnx.choices import options_for
from mari_onnx.sides.resolve import Sides
from mari_onnx.timing.clock import interleaved

MOST = 1000
"""Candidates up to which the source is timed."""
SIDES = Sides({"history": "user", "candidates": "item"}, candidate_axis=1, axes={"history": None})


class Writer(Graph):
    """``w.MatMul(a, b)`` is a node; its answer is the name of the output."""

    def __getattr__(self, op: str) -> Any:
        if not op[0].isupper():
            raise AttributeError(op)
        return partial(self.op, op)

    def const(self, value: Any, dtype: Any = None) -> str:
        return super().const(np.asarray(value, dtype))

    def sequence(self, length: int, width: int) -> onnx.ModelProto:
        """The model, whose last node writes the scores."""
        self.input("history", [1, length, width])
        self.input("candidates", [1, "N", width])
        return self.model("score", [1, "N", 1])


def source(
    heads: int, length: int, silu: bool, inner: int, width: int = 64, layers: int = 2
) -> onnx.ModelProto:
    """The model as an exporter writes it: one sequence, and a mask by comparisons. inner: width of the feed-forward
    layer, 0 for none.
    """
    w = Writer()
    t, n = (w.Gather(w.Shape(x), w.const(1), axis=0) for x in ("history", "candidates"))
    size = w.Add(t, n)
    x = w.Concat("history", "candidates", axis=1)
    place = w.Range(w.const(0), size, w.const(1))
    row, column = w.Unsqueeze(place, w.const([1])), w.Unsqueeze(place, w.const([0]))
    keep = w.And(w.LessOrEqual(column, row), w.Or(w.Less(column, t), w.Equal(row, column)))
    for _ in range(layers):
        z = w.LayerNormalization(x, w.weight(width), w.weight(width), axis=-1)
        q, k, v = (w.Transpose(w.Reshape(w.MatMul(z, w.weight(width, width)), w.const([1, -1, heads, width // heads])),
                               perm=[0, 2, 1, 3]) for _ in range(3))  # fmt: skip
        s = w.Mul(w.MatMul(q, w.Transpose(k, perm=[0, 1, 3, 2])), w.const((width // heads) ** -0.5, np.float32))
        if silu:
            p = w.Mul(w.Mul(s, w.Sigmoid(s)), w.Cast(keep, to=TensorProto.FLOAT))
            p = w.Mul(p, w.const(1 / length, np.float32))
        else:
            p = w.Softmax(w.Where(keep, s, w.const(-np.inf, np.float32)), axis=-1)
        o = w.Reshape(w.Transpose(w.MatMul(p, v), perm=[0, 2, 1, 3]), w.const([1, -1, width]))
        x = w.Add(x, w.MatMul(o, w.weight(width, width)))
        if inner:
            z = w.LayerNormalization(x, w.weight(width), w.weight(width), axis=-1)
            h = w.Relu(w.Add(w.MatMul(z, w.weight(width, inner)), w.weight(inner)))
            x = w.Add(x, w.MatMul(h, w.weight(inner, width)))
    begin, end = (w.Unsqueeze(v, w.const([0])) for v in (t, size))
    w.MatMul(w.Slice(x, begin, end, w.const([1])), w.weight(width, 1))
    return w.sequence(length, width)


def by_hand(
    heads: int, length: int, silu: bool, inner: int, width: int = 64, layers: int = 2
) -> onnx.ModelProto:
    """The same with the history's rows once, and scores of a candidate with itself row by row."""
    w = Writer()
    head = width // heads
    rows = {"h": w.Reshape("history", w.const([-1, width])), "c": w.Reshape("candidates", w.const([-1, width]))}
    scale = head**-0.5
    causal = np.where(np.tril(np.ones((length, length), bool)), 0, -np.inf)
    for layer in range(layers):
        last = layer == layers - 1
        gain, bias = w.weight(width), w.weight(width)
        z = {s: w.LayerNormalization(x, gain, bias, axis=-1) for s, x in rows.items()}
        weights = [w.weight(width, width) for _ in range(3)]
        q, k, v = ({s: w.MatMul(x, m) for s, x in z.items()} for m in weights)
        of_heads = w.const([-1, heads, head])
        split = {}
        for name, part in (("q", q), ("k", k), ("v", v)):
            for s, x in part.items():
                split[name, s] = w.Reshape(x, of_heads)
        kt = w.Transpose(split["k", "h"], perm=[1, 2, 0])  # [H, d, T]
        vt = w.Transpose(split["v", "h"], perm=[1, 0, 2])  # [H, T, d]
        mixed = {}
        for s in ("h", "c") if not last else ("c",):
            scores = w.Mul(w.MatMul(w.Transpose(split["q", s], perm=[1, 0, 2]), kt), w.const(scale, np.float32))
            if s == "h":
                if silu:
                    p = w.Mul(w.Mul(scores, w.Sigmoid(scores)), w.const(np.isfinite(causal) / length, np.float32))
                else:
                    p = w.Softmax(w.Add(scores, w.const(causal, np.float32)), axis=-1)
                mixed[s] = w.MatMul(p, vt)
                continue
            own = w.ReduceSum(w.Mul(split["q", "c"], split["k", "c"]), w.const([2]), keepdims=1)  # [N, H, 1]
            own = w.Mul(w.Transpose(own, perm=[1, 0, 2]), w.const(scale, np.float32))
            if silu:
                both = [w.Mul(w.Mul(each, w.Sigmoid(each)), w.const(1 / length, np.float32)) for each in (scores, own)]
            else:
                row = w.Softmax(w.Concat(scores, own, axis=-1), axis=-1)
                both = [w.Slice(row, w.const([a]), w.const([b]), w.const([-1]))
                        for a, b in ((0, length), (length, length + 1))]  # fmt: skip
            itself = w.Mul(both[1], w.Transpose(split["v", "c"], perm=[1, 0, 2]))
            mixed[s] = w.Add(w.MatMul(both[0], vt), itself)
        out = w.weight(width, width)
        if inner:
            gain, bias = w.weight(width), w.weight(width)
            one, two, three = w.weight(width, inner), w.weight(inner), w.weight(inner, width)
        for s, m in mixed.items():
            x = w.Add(rows[s], w.MatMul(w.Reshape(w.Transpose(m, perm=[1, 0, 2]), w.const([-1, width])), out))
            if inner:
                z = w.LayerNormalization(x, gain, bias, axis=-1)
                x = w.Add(x, w.MatMul(w.Relu(w.Add(w.MatMul(z, one), two)), three))
            rows[s] = x
    w.Reshape(w.MatMul(rows["c"], w.weight(width, 1)), w.const([1, -1, 1]))
    return w.sequence(length, width)


def request(length: int, n: int, width: int = 64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"history": rng.standard_normal((1, length, width), np.float32),
            "candidates": rng.standard_normal((1, n, width), np.float32)}  # fmt: skip


def profile(model: onnx.ModelProto, feed: dict[str, np.ndarray], runs: int = 30) -> list[tuple[str, float]]:
    """Milliseconds of a run by node, the longest first."""
    with tempfile.TemporaryDirectory() as folder:
        session = runtime.session(model, threads=1, profile=str(Path(folder, "p")))
        for _ in range(runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    total: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            shapes = [next(iter(s.values())) for s in event["args"].get("output_type_shape", [])]
            name = f"{event['args']['op_name']:24s} {event['name'][:-12]:60s} {shapes}"
            total.setdefault(name, []).append(event["dur"])
    found = [(name, float(np.median(took)) / 1e3) for name, took in total.items()]
    return sorted(found, key=lambda each: -each[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="1,2,4,8")
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--candidates", default="500")
    parser.add_argument("--forms", default="softmax,silu")
    parser.add_argument("--inner", type=int, default=64, help="width of the feed-forward layer; 0: none")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    print("| form | heads | N | source | output | by hand | faster | by hand |\n|---|---|---|---|---|---|---|---|")
    for form in args.forms.split(","):
        for heads in map(int, args.heads.split(",")):
            model = source(heads, args.length, form == "silu", args.inner)
            hand = by_hand(heads, args.length, form == "silu", args.inner)
            done = api.rewritten(api.as_source(model), SIDES, options_for(assume=True))
            sessions = {name: runtime.session(m, threads=1)
                        for name, m in (("source", model), ("output", done.model), ("hand", hand))}  # fmt: skip
            for n in map(int, args.candidates.split(",")):
                feed = request(args.length, n)
                # beyond, the source takes gigabytes
                here = {name: s for name, s in sessions.items() if name != "source" or n <= MOST}
                answers = {name: s.run(None, feed)[0] for name, s in here.items()}
                first = next(iter(answers.values()))
                for name, answer in answers.items():
                    far = np.abs(answer - first).max() / np.abs(first).max()
                    assert far < 1e-4, f"{name} is {far:.1e} from the first"
                runs = {name: partial(lambda s, f, _: s.run(None, f), s, feed) for name, s in here.items()}
                timing = interleaved(runs, seconds=2.0, most=200, clock=time.thread_time)
                took = " | ".join(f"{timing.median(name) * 1e3:.2f} ms" if name in runs else "" for name in sessions)
                others = ("output", "hand") if "source" in here else ()
                ratios = " | ".join(f"{timing.ratio('source', name):.2f}x" for name in others) or " | "
                print(f"| {form} | {heads} | {n} | {took} | {ratios} |", flush=True)
            if args.profile:
                for name, made in (("output", done.model), ("by hand", hand)):
                    print(name)
                    for node, took_ in profile(made, feed)[:40]:
                        print(f"  {took_:7.3f} ms  {node}")


if __name__ == "__main__":
    main()
