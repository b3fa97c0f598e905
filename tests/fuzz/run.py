"""Fuzzing for hours: ``python -m tests.fuzz.run --examples 20000``.

Each failing case is shrunk and written to ``--keep`` (a folder; tests/fuzz/cases for those that are to stay as
regression tests), one file per fault; a fault that was met before is counted, not shrunk again. A table is printed at
the end, and written to ``--report`` as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.case import Case, cases, load
from tests.fuzz.oracle import Fault, judge
from tests.fuzz.sequence import SequenceCase, judge_sequence, sequence_cases
from tests.fuzz.several import judge_several
from tests.fuzz.steps import FRONTIER, STEPS

CHUNK = 50
"""Examples with one seed; after a fault the next seed goes on."""
SHRINK = 40.0
"""Seconds that one fault is shrunk."""


class Search:
    """Chunks of examples until the number asked for is reached."""

    def __init__(self, keep: Path, first: int, several: str | None = None, sequences: float = 0.0, among: Any = STEPS):
        self.keep, self.next, self.several, self.sequences, self.among = keep, first, several, sequences, among
        self.tally: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.best: Case | SequenceCase | None = None
        self.found: Fault | None = None
        self.until = 0.0

    def one(self, case: Case | SequenceCase) -> None:
        self.tally["drawn"] += 1
        if self.found is None:
            self.tally["graphs"] += 1
            self.operators.update(node.op_type for node in case.model.graph.node)
        elif time.monotonic() > self.until:
            return
        try:
            tally = self.tally if self.found is None else None
            if isinstance(case, SequenceCase):
                judge_sequence(case, tally)
            else:
                judge(case, tally) if self.several is None else judge_several(case, self.several, tally)
        except Fault as fault:
            if self.found is None:
                self.faults[fault.signature] += 1
                if self.faults[fault.signature] > 1:
                    return
                self.found, self.until = fault, time.monotonic() + SHRINK
            elif fault.kind != self.found.kind:
                return
            if self.best is None or case.size < self.best.size:
                self.best, self.why = case, fault
            raise

    def chunk(self, examples: int) -> None:
        self.best = self.found = None
        graphs = cases(among=self.among)
        drawn = st.floats(0, 1).flatmap(lambda x: sequence_cases() if x < self.sequences else graphs)
        search = given(drawn if self.sequences else graphs)(lambda case: self.one(case))
        search = settings(
            max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )(search)  # fmt: skip
        try:
            seed(self.next)(search)()
        except Exception as error:
            if self.best is None:  # a step that asked for what cannot be
                self.tally["chunks cut short by the generator"] += 1
                print(f"seed {self.next}: {type(error).__name__}: {error}", flush=True)
                self.next += 1
                return
            assert self.found is not None
            self.faults[self.why.signature] += self.why.signature != self.found.signature
            self.keep.mkdir(parents=True, exist_ok=True)
            path = self.keep / f"{self.why.kind}-{self.next}.json"
            self.best.save(path, str(self.why))
            print(f"{path}: {self.why}\n{self.best}\n", flush=True)
        self.next += 1


def replay(paths: list[Path]) -> int:
    failed = 0
    for path in paths:
        try:
            judge(load(path))
            print(f"{path}: right")
        except Fault as fault:
            failed += 1
            print(f"{path}: {fault}")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first chunk")
    parser.add_argument("--minutes", type=float, default=None, help="stop after this time")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--report", type=Path, default=None)
    parser.add_argument("--replay", type=Path, nargs="+", help="kept cases, instead of drawing")
    parser.add_argument("--batched", default=None, help="several requests in one run, in this form")
    parser.add_argument("--sequences", type=float, default=0.1, help="share of history and candidates in one sequence")
    parser.add_argument("--frontier", action="store_true", help="graphs with a mask, a write, integers or an If each")
    args = parser.parse_args()
    if args.replay:
        return replay(args.replay)
    sequences = args.sequences if args.batched is None else 0.0
    among = FRONTIER if args.frontier else STEPS
    search, begin = Search(args.keep, args.seed, args.batched, sequences, among), time.monotonic()
    with suppress(KeyboardInterrupt):
        while search.tally["graphs"] < args.examples:
            if args.minutes is not None and time.monotonic() - begin > args.minutes * 60:
                break
            search.chunk(min(CHUNK, args.examples - search.tally["graphs"]))
            if args.report is not None:  # after each chunk: a search that is stopped goes on at the next seed
                content = {"tally": search.tally, "faults": search.faults, "operators": search.operators,
                           "seeds": [args.seed, search.next], "seconds": round(time.monotonic() - begin)}  # fmt: skip
                args.report.write_text(json.dumps(content, indent=1) + "\n")
    took = time.monotonic() - begin
    for name, count in [*search.tally.most_common(), *search.faults.most_common()]:
        print(f"{count:8d}  {name}")
    print(f"{took:8.0f}  seconds")
    return 1 if search.faults else 0


if __name__ == "__main__":
    sys.exit(main())
