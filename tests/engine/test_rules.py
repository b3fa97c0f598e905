"""What every rule owes its reader."""

from __future__ import annotations

import pytest

from mari_onnx.engine import rules
from mari_onnx.engine.rule import RULES


@pytest.mark.parametrize("key", sorted(RULES), ids=lambda key: ".".join(filter(None, key)))
def test_a_rule_says_what_it_does(key: tuple[str, str]) -> None:
    function = RULES[key].answer
    assert function.__module__.startswith(rules.__name__)
    assert (function.__doc__ or "").strip(), f"{function.__module__}.{function.__name__} has no docstring"
