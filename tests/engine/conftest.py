"""A rule that trips raises here, instead of leaving its node as it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mari_onnx.engine import interpreter


@pytest.fixture(autouse=True, scope="package")
def strict() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "STRICT", True)
        yield
