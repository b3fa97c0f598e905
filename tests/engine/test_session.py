"""What holds for a source is in one object, made once; nothing else lives longer than a walk."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mari_onnx
from mari_onnx import engine
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.session import Session
from tests.engine.graphs import Graph, check


def test_no_state_is_hidden() -> None:
    """No context variables, and no function that assigns a module's names."""
    found = []
    for file in sorted(Path(mari_onnx.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Global) or "contextvars" in names:
                found.append(f"{file}:{node.lineno}")
    assert not found, f"state that callers cannot see: {found}"


def test_the_source_is_read_once_for_all_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that grows is written again with dearer nodes; what is known of its source is not found again."""
    made: list[type] = []
    for kind in (Builder, Session):

        def init(self: object, *args: object, kind: type = kind, old: object = kind.__init__) -> None:
            made.append(kind)
            old(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(kind, "__init__", init)
    monkeypatch.setattr(engine, "GROWTH", 0.0)
    g = Graph(17)
    check(g.output(g.MatMul(g.Concat(g.user(60), g.item(20), axis=1), g.weight(80, 40))), weighed=True)
    assert made.count(Builder) > made.count(Session) == 1
