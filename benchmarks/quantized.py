"""Statically quantized models, source against output: time, and rows that are a step away.

    python -m benchmarks.quantized [--models FILE.onnx ...] [--candidates 500,64] [--formats qdq,qoperator]

Each model is quantized by onnxruntime on drawn requests: QDQ and QOperator, one scale for a tensor of weights or one
for each column, unsigned or signed activations. Without files these are a plain ranker, DCNv2, DIN and MMoE of the
samples. One thread, in thread time, in turns. A step is one of the scores' quantization, where they are quantized.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from benchmarks.batching import ranker
from mari_onnx import api, runtime
from mari_onnx.choices import options_for
from mari_onnx.errors import MariError, first_line
from mari_onnx.model.signature import signature
from mari_onnx.parity.domains.domains import domains
from mari_onnx.parity.judge.rounding import site
from mari_onnx.parity.requests.draw import Drawer, Layout
from mari_onnx.sides.resolve import Sides
from mari_onnx.timing.speed import Stopwatch

SAMPLES = ("dcnv2", "din", "mmoe")
REQUESTS = 8
"""Requests of 64 candidates that scales are chosen by, and of 500 on which rows are compared."""


class Requests:
    """What onnxruntime's quantizer reads requests from."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]):
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next request; None after the last."""
        return next(self._feeds, None)


def quantized(
    model: onnx.ModelProto, sides: Sides, folder: Path, layout: str, by_column: bool, signed: bool
) -> onnx.ModelProto:
    """The model as `quantize_static` makes it. layout: "qdq" or "qoperator"."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    logging.disable(logging.WARNING)
    where = Layout(signature(model), sides)
    drawer = Drawer(where, domains(model, where)[0], 1)
    inputs = signature(model).inputs
    feeds = [drawer.request(64).feed(inputs) for _ in range(REQUESTS)]
    CalibrationDataReader.register(Requests)
    copy, path = onnx.ModelProto(), folder / "quantized.onnx"
    copy.CopyFrom(model)  # what is given to it is written to
    quantize_static(
        copy,
        path,
        Requests(feeds),  # type: ignore[arg-type]
        quant_format=QuantFormat.QDQ if layout == "qdq" else QuantFormat.QOperator,
        per_channel=by_column,
        activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(path)


def away(source: onnx.ModelProto, output: onnx.ModelProto, sides: Sides) -> tuple[float, float]:
    """The share of rows whose scores differ, and the largest difference; in steps where scores are quantized."""
    where = Layout(signature(source), sides)
    drawer = Drawer(where, domains(source, where)[0], 7)
    sessions = [runtime.session(model, threads=1) for model in (source, output)]
    steps = []
    known = {t.name: onnx.numpy_helper.to_array(t) for t in source.graph.initializer}
    for each in source.graph.output:
        found = site(source, each.name)
        scale = known.get(found.node.input[1]) if found is not None and len(found.node.input) > 1 else None
        steps.append(float(scale) if scale is not None and scale.size == 1 else 1.0)
    rows, far, most = 0, 0, 0.0
    for _ in range(REQUESTS):
        request = drawer.request(500)
        mine, theirs = (s.run(None, request.feed(s.get_inputs())) for s in sessions)
        pairs = zip(mine, theirs, steps, strict=True)
        apart = [np.abs(a.astype(float) - b).reshape(len(a), -1) / s for a, b, s in pairs]
        worst = np.max([a.max(axis=1) for a in apart], axis=0)
        rows, far, most = rows + worst.size, far + int((worst > 1e-3).sum()), max(most, float(worst.max(initial=0)))
    return far / rows, most


def lines(name: str, model: onnx.ModelProto, sides: Sides, counts: list[int], formats: list[str]) -> Iterator[str]:
    """A line of the table for each way to quantize the model."""
    for layout in formats:
        for by_column in (False, True):
            for signed in (False, True):
                how = f"{layout}, {'column' if by_column else 'tensor'}, {'int8' if signed else 'uint8'}"
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        made = quantized(model, sides, Path(folder), layout, by_column, signed)
                        source = api.as_source(made)
                        done = api.rewritten(source, sides, options_for(assume=True))
                    except (MariError, ValueError, RuntimeError) as error:
                        yield f"| {name} | {how} | {first_line(error)} | | | |"
                        continue
                watch = Stopwatch(made, sides, made, 1, max(counts))
                speed = watch.speed(done.model, counts, counts)
                share, most = away(made, done.model, sides)
                times = " | ".join(f"{speed.ratios[n]:.2f}x" for n in counts)
                yield f"| {name} | {how} | {times} | {share:.2%} | {most:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="float models with side files beside them")
    parser.add_argument("--candidates", default="500,64")
    parser.add_argument("--formats", default="qdq,qoperator")
    args = parser.parse_args()
    counts = [int(n) for n in args.candidates.split(",")]
    print(f"| model | quantized | {' | '.join(f'N={n}' for n in counts)} | rows that differ | steps at most |")
    print(f"|---|---|{'---|' * len(counts)}---|---|")
    models = [(path.stem, path) for path in args.models or [Path("models", f"{name}.onnx") for name in SAMPLES]]
    if not args.models:
        sides = Sides({"user": "user", "item": "item"})
        for name, widths in (("ranker", (512, 256)), ("small ranker", (128, 64))):
            user, item = (1024, 512) if name == "ranker" else (200, 120)
            for line in lines(name, ranker(*widths, user=user, item=item), sides, counts, args.formats.split(",")):
                print(line, flush=True)
    for name, path in models:
        source = api.as_source(path)
        for line in lines(name, source.model, api.sides_of(source, None), counts, args.formats.split(",")):
            print(line, flush=True)


if __name__ == "__main__":
    main()
