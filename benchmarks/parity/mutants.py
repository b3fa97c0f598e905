"""What the check finds of each mutant: the table of docs/parity-mutants.md.

    python -m benchmarks.parity.mutants            # all of them, minutes
    python -m benchmarks.parity.mutants hidden     # those made from one pair, or of one module
"""

from __future__ import annotations

import functools
import re
import sys

from mari_onnx.parity import check
from mari_onnx.parity.result import CheckResult
from tests.parity import hidden, test_mutants
from tests.parity.mutants import mutate
from tests.parity.pairs import Pair


@functools.cache
def _pair(name: str) -> Pair:
    return test_mutants.PAIRS[name]()


def _found(result: CheckResult) -> str:
    """The first reason, as short as a cell."""
    if not result.reasons:
        return "nothing"
    reason = result.reasons[0]
    error = re.search(r"error ([-+.e\d]+).*?allowed ([-+.e\d]+)", reason)
    if error:
        return f"error {float(error[1]):.1e}, allowed {float(error[2].rstrip('.,')):.1e}"
    return reason.split(": ", 1)[-1].split(";")[0]


def main() -> None:
    modules = {"hidden": hidden.HIDDEN}
    wanted = set(sys.argv[1:])
    names = wanted | {pair for module, pairs in modules.items() if module in wanted for pair in pairs}
    for name, (base, fault) in test_mutants.MUTANTS.items():
        if names and base not in names:
            continue
        right = _pair(base)
        result = check(right.source, mutate(right.optimized, fault), right.sides)
        print(f"| {name} | `{base}` | {_found(result)} |", flush=True)


if __name__ == "__main__":
    main()
