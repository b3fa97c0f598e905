"""Exports the corpus to ONNX: every model, split and packed inputs, both of PyTorch's exporters.

Each graph `MODEL.LAYOUT.EXPORTER.onnx` gets a side file `....sides.toml` beside it. A graph counts
only when onnxruntime agrees with PyTorch at several batch sizes; what does not export, or is wrong
from the start, is left as `....failed.txt`. Existing files are kept, so an interrupted run goes on
where it stopped.

    python -m benchmarks.interop.export OUT [--only MODEL or GRAPH] [--small]
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.interop import zoo

LAYOUTS = ("split", "packed")
EXPORTERS = ("dynamo", "script")


class Columns:
    """Features as separate tensors behind the `X[:, a:b]` that the package reads them with."""

    def __init__(self, parts: dict[tuple[int, int], torch.Tensor]) -> None:
        self.parts = parts

    def __getitem__(self, key: tuple[slice, slice]) -> torch.Tensor:
        return self.parts[(int(key[1].start), int(key[1].stop))]

    @property
    def first(self) -> torch.Tensor:
        return next(iter(self.parts.values()))

    @property
    def shape(self) -> torch.Size:
        return self.first.shape

    @property
    def device(self) -> torch.device:
        return self.first.device

    def new_zeros(self, shape: Any) -> torch.Tensor:
        return torch.zeros(shape)


class Split(torch.nn.Module):
    """A model with one input a feature: int64 ids, float32 dense values."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        spans = self.model.feature_index.values()
        return self.model(Columns(dict(zip(spans, parts, strict=True))))


def requests(model: Any, found: zoo.Features, sizes: zoo.Sizes, n: int, seed: int) -> dict[str, torch.Tensor]:
    """`n` rows of one user and n candidates by feature name; user rows are equal."""
    rng = np.random.default_rng(seed)
    columns = {c.name: c for c in found.sparse + found.dense + found.history}
    feeds = {}
    for name, (start, stop) in model.feature_index.items():
        rows = 1 if found.sides[name] == "user" else n
        column = columns.get(name)
        if name == "hist_len":
            values = rng.integers(1, sizes.history + 1, (rows, 1))
        elif hasattr(column, "vocabulary_size"):
            values = rng.integers(0, column.vocabulary_size, (rows, stop - start))
        else:
            values = rng.standard_normal((rows, stop - start)).astype(np.float32)
        feeds[name] = torch.from_numpy(np.repeat(values, n // rows, 0))
    return feeds


def pack(feeds: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([x.float() for x in feeds.values()], 1)


def sides_toml(model: Any, found: zoo.Features, layout: str, inputs: set[str]) -> str:
    """The side file of a graph with these inputs: input names, or columns of the packed one."""
    lines = []
    for side in ("user", "item", "cross"):
        spans = {k: v for k, v in model.feature_index.items() if found.sides[k] == side}
        if layout == "split":
            patterns = [name for name in spans if name in inputs]
        else:
            columns = [k for start, stop in spans.values() for k in range(start, stop)]
            patterns = [f"X[:, {columns}]"]
        lines.append(f"{side} = {json.dumps(patterns)}")
    return "\n".join(lines) + "\n"


def check(path: Path, model: Any, found: zoo.Features, sizes: zoo.Sizes, layout: str) -> set[str]:
    """The graph's inputs; raises AssertionError where onnxruntime and PyTorch differ."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    for n in (7, 64):
        feeds = requests(model, found, sizes, n, seed=n)
        named = {k: v.numpy() for k, v in feeds.items()} if layout == "split" else {"X": pack(feeds).numpy()}
        with torch.no_grad():
            expected = model(pack(feeds)).numpy()
        got = session.run(None, {k: v for k, v in named.items() if k in wanted})[0]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    return wanted


def export(model: Any, found: zoo.Features, sizes: zoo.Sizes, layout: str, exporter: str, path: Path) -> None:
    """Writes one graph to `path`."""
    feeds = requests(model, found, sizes, 5, seed=0)
    if layout == "split":
        module: torch.nn.Module = Split(model).eval()
        names, args = list(feeds), tuple(feeds.values())
    else:
        module, names, args = model, ["X"], (pack(feeds),)
    if exporter == "dynamo":
        batch = torch.export.Dim("N", min=1, max=1 << 16)
        shapes: Any = tuple({0: batch} for _ in args)
        torch.onnx.export(
            module,
            args,
            str(path),
            input_names=names,
            output_names=["score"],
            opset_version=20,
            dynamic_shapes=(shapes,) if layout == "split" else shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    else:
        torch.onnx.export(
            module,
            args,
            str(path),
            input_names=names,
            output_names=["score"],
            opset_version=17,
            dynamic_axes={name: {0: "N"} for name in [*names, "score"]},
            dynamo=False,
        )


def strip(path: Path) -> None:
    """Takes notes of where it was traced (stack traces, doc strings) out of a graph."""
    import onnx

    model = onnx.load(path)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for part in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        part.ClearField("metadata_props")
    onnx.save(model, path)


def cause(error: BaseException) -> str:
    """One line: the first cause of an error, which exporters wrap in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:160]}"


def corpus(out: Path, sizes: zoo.Sizes, only: list[str] | None, bare: bool = False) -> Iterator[tuple[str, str]]:
    """Exports what is not there yet; yields each graph's name and how it went.

    `only` holds names of models (`din`) or of graphs (`din.packed.dynamo`); `bare` graphs are
    stripped.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in zoo.MODELS:
        for exporter in EXPORTERS:
            for layout in LAYOUTS:
                stem = f"{name}.{layout}.{exporter}"
                if only and not {name, stem} & set(only):
                    continue
                path, failed = out / f"{stem}.onnx", out / f"{stem}.failed.txt"
                if path.exists() or failed.exists():
                    continue
                started = time.perf_counter()
                partial = out / f".{stem}.partial.onnx"
                try:
                    model, found = zoo.build(name, sizes)
                    export(model, found, sizes, layout, exporter, partial)
                    if bare:
                        strip(partial)
                    inputs = check(partial, model, found, sizes, layout)
                    sides = sides_toml(model, found, layout, inputs)
                    (out / f"{stem}.sides.toml").write_text(sides)
                    partial.replace(path)
                    yield stem, f"{time.perf_counter() - started:.1f} s"
                except Exception as error:
                    partial.unlink(missing_ok=True)
                    trace = "".join(traceback.format_exception(error))
                    failed.write_text(f"{cause(error)}\n\n{trace[-4000:]}")
                    yield stem, f"failed: {type(error).__name__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", action="append", help="a model or a graph; may be repeated")
    parser.add_argument("--small", action="store_true", help="cut tables, widths and fields: graphs of some 100 kB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    sizes = zoo.SMALL if options.small else zoo.Sizes()
    for stem, result in corpus(options.out, sizes, options.only, bare=options.small):
        print(f"{stem:40s} {result}", flush=True)


if __name__ == "__main__":
    main()
