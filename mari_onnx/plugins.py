"""Rules of other packages: a team's custom operators without a fork.

A package names a module in the entry-point group `mari_onnx.rules`. Importing that module registers its rules
(`@rule`, `@mapped`, see docs/writing-rules.md), as importing `mari_onnx.engine.rules` does ours.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from mari_onnx.errors import UsageError, first_line

GROUP = "mari_onnx.rules"


@cache
def load_rules() -> tuple[str, ...]:
    """Imports the modules of the group, once in a process; answers their names.

    Raises:
        UsageError: one of them fails, for example because it has a rule for an operator that has one.
    """
    found = sorted(entry_points(group=GROUP), key=lambda each: each.name)
    for each in found:
        try:
            each.load()
        except Exception as error:
            raise UsageError(
                f"the plug-in {each.name!r} ({each.value}) cannot be loaded: {type(error).__name__}: "
                f"{first_line(error)}",
                "mend it, or uninstall its package",
            ) from error
    return tuple(each.name for each in found)
