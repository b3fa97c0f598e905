"""Which models can take several requests in one run, and why others cannot.

    python -m benchmarks.batched FOLDER.. [--forms grid,index,offsets] [--from K] [--files K]

Each model (`NAME.onnx`, with a side file beside it) is written for several requests in each form. Runs of 1, 2 and 7
requests of different users are compared with one run of the source for each, to a thousandth of the largest score; this
is less than the check of `optimize`, so that a hundred models take minutes. A line for each that is refused or differs,
then how many there were.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from mari_onnx import api, runtime
from mari_onnx.api.several import refuse_mixing, refuse_taken
from mari_onnx.choices import options_for
from mari_onnx.errors import MariError, first_line
from mari_onnx.model.load import Source
from mari_onnx.model.signature import signature
from mari_onnx.parity.coverage.empty import survivors
from mari_onnx.parity.domains.domains import domains
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.requests.draw import Drawer
from mari_onnx.parity.several.form import Form
from mari_onnx.sides.resolve import BATCHED, Sides, side_file_beside


def outcome(source: Source, sides: Sides) -> str:
    """What becomes of a model for several requests: "equal", or why it is refused or what differs."""
    try:
        refuse_taken(source.model, sides)
        refuse_mixing(source.model, sides)
        done = api.rewritten(source, sides, options_for(assume=True))
        if not done.changed:
            return f"refused: {done.rewrite.reason}"
        return _compared(source, done.model, sides)
    except MariError as error:
        return f"refused: {first_line(error)}"


def _compared(source: Source, output: onnx.ModelProto, sides: Sides) -> str:
    """Whether runs of several requests equal separate runs of the source."""
    layout = Layout(signature(source.model), sides)
    form, drawer = Form(layout, output), Drawer(layout, domains(source.model, layout)[0], 1)
    single, several = runtime.session(source.path, what="the source"), runtime.session(output, what="the output")
    names = [o.name for o in form.outputs]
    free = {name: 5 + k for k, name in enumerate(layout.free)}
    for size in (1, 2, 7):
        counts = [layout.fixed_n or (3 if form.kind == "grid" else 2 + k % 4) for k in range(size)]
        requests = survivors(source.model, [drawer.request(n, free=free) for n in counts])
        if not requests:
            continue
        have = form.apart(runtime.run(several, form.feed(requests), "the output", names), requests)
        for request, mine in zip(requests, have, strict=True):
            want = runtime.run(single, request.feed(layout.signature.inputs), "the source", names)
            for name, a, b in zip(names, want, mine, strict=True):
                scale = np.abs(a[np.isfinite(a)]).max(initial=1e-6)
                if a.shape != b.shape or not np.allclose(a, b, rtol=0, atol=1e-3 * scale, equal_nan=True):
                    return f"different: {name} of {size} requests"
    return "equal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--forms", default=",".join(BATCHED))
    parser.add_argument("--from", type=int, default=0, dest="first", help="leave out so many files")
    parser.add_argument("--files", type=int, default=None, help="look at no more files than this")
    args = parser.parse_args()
    paths = sorted(path for folder in args.folders for path in folder.glob("*.onnx"))
    paths = paths[args.first :][: args.files]
    tally: Counter[tuple[str, str]] = Counter()
    for path in paths:
        source = api.as_source(path)
        try:
            sides = api.sides_of(source, side_file_beside(path.with_name(path.name.replace(".torchscript", ""))))
        except MariError as error:
            print(f"{path.name}: {first_line(error)}", flush=True)
            continue
        for form in args.forms.split(","):
            found = outcome(source, replace(sides, batched=form))
            tally[form, found.split(":")[0]] += 1
            if found != "equal":
                print(f"{path.name} {form} {found[:300]}", flush=True)
    for (form, found), count in sorted(tally.items()):
        print(f"{count:5d}  {form}  {found}")


if __name__ == "__main__":
    main()
