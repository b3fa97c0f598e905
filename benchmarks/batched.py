"""Which models can take several requests in one run, and why others cannot.

    python -m benchmarks.batched FOLDER.. [--forms grid,index,offsets] [--from K] [--files K]

Each model (`NAME.onnx`, with a side file beside it) is written for several requests in each form and compared with
separate runs of the source, on 1 and 7 candidates for each request and without the search for what requests reach, so
that a hundred models take minutes. A line for each that is refused or differs, then how many there were.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

from mari_onnx import api
from mari_onnx.choices import options_for
from mari_onnx.errors import MariError, first_line
from mari_onnx.parity.several.check import check
from mari_onnx.sides.resolve import BATCHED, Sides, side_file_beside


def outcome(source: api.Source, sides: Sides) -> str:
    """What becomes of a model for several requests: "equal", or why it is refused or what differs."""
    try:
        api._refuse_taken(source.model, sides)
        api._refuse_mixing(source.model, sides)
        done = api.rewritten(source, sides, options_for(assume=True))
        if not done.changed:
            return f"refused: {done.rewrite.reason}"
        result = check(source.path, done.model, sides, candidates=(1, 7), coverage=0, count=1)
        return "equal" if result.ok else f"{result.verdict}: {result.reasons[0]}"
    except MariError as error:
        return f"refused: {first_line(error)}"


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
