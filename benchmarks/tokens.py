"""Causal transformers over user and item tokens (as OneTrans), against the user one-shot source.

Width 64, 4 heads, N = 200, one thread. The source takes the user's tokens once and expands them to
N before the first layer; the mask lets a token see those before it, so user tokens never see items.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import onnx

from benchmarks.graphs import Graph
from benchmarks.side_by_side import Setting, cut, optimized, timed
from benchmarks.tables import Section, Target, milliseconds
from mari_onnx.report.terminal import console
from mari_onnx.sides.resolve import Sides

COMMAND = "python -m benchmarks.tokens"
WIDTH, HEADS, CANDIDATES = 64, 4, 200
SIDES = Sides({"user": "user", "item": "item"})
# user tokens, item tokens, layers, least speed-up
CASES = ((40, 4, 4, 7.0), (100, 4, 2, 12.0))


def transformer(user: int, item: int, layers: int) -> onnx.ModelProto:
    """user `[1, user, 64]`, item `[N, item, 64]` -> score `[N, 1]`, the last token's."""
    g = Graph()
    u, x = g.input("user", [1, user, WIDTH]), g.input("item", ["N", item, WIDTH])
    expanded = g.op("Expand", u, g.op("Concat", g.rows_of(x), g.ints(1, 1), axis=0))
    tokens = user + item
    h = g.op("Concat", expanded, x, axis=1)
    mask = g.const(np.tril(np.ones((1, 1, tokens, tokens), bool)))
    for _ in range(layers):
        h = g.op("Add", h, _attention(g, _norm(g, h), mask, tokens))
        wide = g.op("MatMul", _norm(g, h), g.weight(WIDTH, 4 * WIDTH))
        active = g.op("Relu", g.op("Add", wide, g.bias(4 * WIDTH)))
        h = g.op("Add", h, g.op("MatMul", active, g.weight(4 * WIDTH, WIDTH)))
    last = g.op("Slice", _norm(g, h), g.ints(tokens - 1), g.ints(tokens), g.ints(1))
    g.dense(g.op("Squeeze", last, g.ints(1)), WIDTH, 1, relu=False)
    return g.model("score", ["N", 1])


def _norm(g: Graph, h: str) -> str:
    return g.op("LayerNormalization", h, g.vector(WIDTH, 1), g.bias(WIDTH), axis=-1)


def _attention(g: Graph, h: str, mask: str, tokens: int) -> str:
    def heads(perm: list[int]) -> str:
        split = g.ints(0, tokens, HEADS, WIDTH // HEADS)
        projected = g.op("MatMul", h, g.weight(WIDTH, WIDTH))
        return g.op("Transpose", g.op("Reshape", projected, split), perm=perm)

    q, k, v = heads([0, 2, 1, 3]), heads([0, 2, 3, 1]), heads([0, 2, 1, 3])
    scale = g.const(np.array(1 / math.sqrt(WIDTH // HEADS), np.float32))
    scores = g.op("Mul", g.op("MatMul", q, k), scale)
    masked = g.op("Where", mask, scores, g.const(np.array(-np.inf, np.float32)))
    mixed = g.op("MatMul", g.op("Softmax", masked, axis=-1), v)
    joined = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.ints(0, tokens, WIDTH))
    return g.op("MatMul", joined, g.weight(WIDTH, WIDTH))


def section(setting: Setting | None = None) -> Section:
    setting = setting or Setting(seconds=8, least=7)
    result = Section(
        "User tokens once: causal transformers",
        f"Width {WIDTH}, {HEADS} heads, N = {CANDIDATES}, one thread. The source is user one-shot: "
        "it takes the user's tokens once and expands them before the first layer. Medians in ms of "
        "one run, ratios pair by pair.",
        COMMAND,
        ["user + item tokens, layers", "source", "ours", "floor", "source / ours", "floor / ours",
         "max difference"],
    )  # fmt: skip
    for user, item, layers, least in CASES:
        source = transformer(user, item, layers)
        ours = optimized(source, SIDES, CANDIDATES)
        rng = np.random.default_rng(1)
        timing, outputs = timed(
            {"source": source, "ours": ours.model, "floor": cut(ours, SIDES)},
            {"user": rng.standard_normal((1, user, WIDTH), np.float32)},
            {"item": rng.standard_normal((CANDIDATES, item, WIDTH), np.float32)},
            setting,
        )
        apart = float(np.abs(outputs["source"] - outputs["ours"]).max())
        faster = timing.ratio("source", "ours")
        name = f"{user} + {item}, {layers} layers"
        result.rows.append(
            [
                name,
                *(milliseconds(timing.median(each)) for each in timing.names),
                f"{faster:.1f}",
                f"{timing.ratio('floor', 'ours'):.2f}",
                f"{apart:.0e}",
            ]
        )
        result.targets += [
            Target.at_least(f"{name}: at least {least:g}x faster", faster, least, "x"),
            Target.at_most(f"{name}: outputs equal to 1e-5", apart, 1e-5),
        ]
    return result


def main() -> int:
    result = section()
    result.show(console())
    return 0 if result.met else 1


if __name__ == "__main__":
    sys.exit(main())
