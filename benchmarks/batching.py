"""Several requests in one run against as many runs of the output for one request.

    python -m benchmarks.batching [--seconds 2] [--models FILE.onnx ...] [--sizes 16x32,16x500] [--forms grid,index]
        [--unchecked]

One thread, in thread time, in turns; the ratio is the median of the pairs'. Without files it is a ranker with user
1024, item 256 and hidden 512, with one hidden layer and with two, at 16 requests of 32 candidates, 64 of 8, 1 of 500;
beside them the matrix products of such a run alone, which no way to batch can be faster than.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mari_onnx import api, runtime
from mari_onnx.choices import options_for
from mari_onnx.errors import MariError, first_line
from mari_onnx.model.load import Source
from mari_onnx.model.signature import signature
from mari_onnx.parity.candidates import with_axes
from mari_onnx.sides.resolve import Sides, resolve, side_file_beside
from mari_onnx.timing.several import measure_together

SIZES = ((16, 32), (64, 8), (1, 500))
SINGLE = "one request per run"


def ranker(*hidden: int, user: int = 1024, item: int = 256, seed: int = 0) -> onnx.ModelProto:
    """`[user | item]` through layers of these widths and one of 1, with Relu between them."""
    rng, nodes, weights = np.random.default_rng(seed), [], []
    nodes.append(helper.make_node("Concat", ["user", "item"], ["x0"], axis=1))
    widths = (user + item, *hidden, 1)
    for k, (wide, columns) in enumerate(pairwise(widths)):
        drawn = rng.standard_normal((wide, columns)) * np.sqrt(2 / wide)
        weights.append(numpy_helper.from_array(drawn.astype(np.float32), f"w{k}"))
        weights.append(numpy_helper.from_array(rng.standard_normal(columns).astype(np.float32), f"b{k}"))
        out = "score" if k == len(widths) - 2 else f"h{k}"
        nodes.append(helper.make_node("Gemm", [f"x{k}", f"w{k}", f"b{k}"], [out]))
        if out != "score":
            nodes.append(helper.make_node("Relu", [out], [f"x{k + 1}"]))
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", w]) for n, w in (("user", user), ("item", item))]
    outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1])]
    graph = helper.make_graph(nodes, "ranker", infos, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def rows(
    source: Source,
    sides: Sides,
    sizes: Sequence[tuple[int, int]],
    seconds: float,
    forms: Sequence[str],
    checking: bool = True,
) -> list[str]:
    """A line of a table for each form and size: milliseconds of all requests, and how many times faster one run is.

    checking: compare with separate runs first, and refuse what mixes candidates.
    """
    found = []
    sides = with_axes(source.model, sides, source.model)
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
        single = Path(folder, "single.onnx")
        api.rewritten(source, sides, options_for(assume=True)).save(single)
        for form in forms:
            batched, several = replace(sides, batched=form), Path(folder, f"{form}.onnx")
            if checking:
                with api.checked(source, batched, several) as (_, staged):
                    staged.commit()
            else:
                done = api.rewritten(source, batched, options_for(assume=True))
                if not done.changed:
                    found.append(f"| {form} | refused: {done.rewrite.reason} | | | |")
                    continue
                done.save(several)
            for each in measure_together(
                source.model, batched, {SINGLE: single}, {form: several}, sizes, seconds=seconds
            ):
                assert each.apart[form] < 1e-2, f"{form} differs by {each.apart[form]}"
                low, high = each.timing.quartiles(SINGLE, form)
                apart, together = (each.timing.median(name) * 1e3 for name in (SINGLE, form))
                ratio = each.timing.ratio(SINGLE, form)
                size = f"{each.requests} x {each.n} | {form}"
                found.append(f"| {size} | {apart:.3f} ms | {together:.3f} ms | {ratio:.2f}x | {low:.2f}-{high:.2f} |")
    return found


def products(requests: int, n: int, hidden: Sequence[int], user: int = 1024, item: int = 256) -> float:
    """Seconds of the matrix products of such a run alone: the user's for each request, others for each candidate."""
    rng = np.random.default_rng(0)
    shapes = [(requests, user, hidden[0]), (requests * n, item, hidden[0])]
    shapes += [(requests * n, wide, columns) for wide, columns in pairwise((*hidden, 1))]
    nodes, weights, infos, feed = [], [], [], {}
    for k, (count, wide, columns) in enumerate(shapes):
        feed[f"x{k}"] = rng.standard_normal((count, wide)).astype(np.float32)
        weights.append(numpy_helper.from_array(rng.standard_normal((wide, columns)).astype(np.float32), f"w{k}"))
        infos.append(helper.make_tensor_value_info(f"x{k}", TensorProto.FLOAT, [count, wide]))
        nodes.append(helper.make_node("MatMul", [f"x{k}", f"w{k}"], [f"y{k}"]))
    outputs = [helper.make_tensor_value_info(f"y{k}", TensorProto.FLOAT, None) for k in range(len(shapes))]
    graph = helper.make_graph(nodes, "products", infos, outputs, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = runtime.session(made, threads=1, what="the products")
    times = []
    for _ in range(60):
        begin = time.thread_time()
        session.run(None, feed)
        times.append(time.thread_time() - begin)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="sources with side files beside them")
    parser.add_argument("--sizes", default=",".join(f"{r}x{n}" for r, n in SIZES))
    parser.add_argument("--forms", default="grid,index")
    parser.add_argument("--unchecked", action="store_true", help="do not compare with separate runs first")
    args = parser.parse_args()
    forms = args.forms.split(",")
    sizes = [(int(r), int(n)) for r, n in (size.split("x") for size in args.sizes.split(","))]
    print("| model | requests x candidates | form | one per run | all in one | faster | middle half |")
    print("|---|---|---|---|---|---|---|")
    if not args.models:
        for name, hidden in (("one hidden layer", (512,)), ("two hidden layers", (512, 256))):
            source = api.as_source(ranker(*hidden))
            for row in rows(source, Sides({"user": "user", "item": "item"}), sizes, args.seconds, forms):
                print(f"| {name} {row}", flush=True)
            for requests, n in sizes:
                alone = products(requests, n, hidden) * 1e3
                print(f"| {name} | {requests} x {n} | its products alone | | {alone:.3f} ms | | |", flush=True)
    for path in args.models:
        try:
            source = api.as_source(path)
            sides = resolve(signature(source.model), file=side_file_beside(path))
            for row in rows(source, sides, sizes, args.seconds, forms, not args.unchecked):
                print(f"| {path.stem} {row}", flush=True)
        except MariError as error:
            print(f"| {path.stem} | refused: {first_line(error)} | | | | | |", flush=True)


if __name__ == "__main__":
    main()
