"""What holds for a source is in one object, made once; what is kept beside a tensor is changed in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

import mari_onnx
from mari_onnx import engine
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import extendable, form_of, settle, with_form, without_alternatives
from mari_onnx.engine.ir.value import Axis, Leaf, Sum
from mari_onnx.engine.session import Session
from tests.engine.checks import check
from tests.engine.graphs import Graph, N


def test_no_state_is_hidden() -> None:
    """No context variables in the package, and in the engine no function that assigns a module's names."""
    found = []
    for file in sorted(Path(mari_onnx.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assigns = isinstance(node, ast.Global) and "engine" in file.parts
            if assigns or "contextvars" in names:
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


def _sum(b: Builder) -> tuple[Leaf, Sum]:
    """A tensor [3, 4] and the sum of a row and a column that it is."""
    x, y = Axis(3), Axis(4)
    row, column, both = (
        Leaf(b.input(name, TensorProto.FLOAT, tuple(a.size for a in axes), frozenset()), axes)
        for name, axes in (("row", (x,)), ("column", (y,)), ("both", (x, y)))
    )
    return both, Sum((row, column))


def test_alternatives_are_back_after_a_scope_and_what_was_found_in_it_is_not() -> None:
    formed, form = _sum(Builder(17))
    plain, other = _sum(Builder(17))
    with_form(formed, form)
    with pytest.raises(KeyError), without_alternatives([formed, plain, formed]):  # noqa: PT012
        assert form_of(formed) is None
        with_form(plain, other)
        assert form_of(plain) == other
        raise KeyError
    assert form_of(formed) == form
    assert form_of(plain) is None


def test_a_settled_tensor_keeps_its_form_and_takes_nothing_in() -> None:
    leaf, form = _sum(Builder(17))
    extendable(with_form(leaf, form), lambda axes, more: more, lambda axes, factor: factor)
    assert leaf.tensor.alternatives.add_later is not None
    settle(leaf)
    assert form_of(leaf) == form
    assert (leaf.tensor.alternatives.add_later, leaf.tensor.alternatives.rescale) == (None, None)


def test_one_module_changes_alternatives() -> None:
    changed = set()
    for file in sorted(Path(engine.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "alternatives" and isinstance(node.ctx, ast.Store):
                changed.add(f"{file.parent.name}/{file.name}")
    assert changed == {"ir/forms.py", "ir/value.py"}  # value: a tensor begins without any


def test_the_same_graph_comes_out_wherever_axes_lie_in_memory() -> None:
    """A sum over two dynamic axes of what varies along neither: their sizes are multiplied in the order of the axes."""
    texts, kept = set(), []
    for count in range(40):
        kept.append([Axis(3) for _ in range(count * 7 % 11)])
        g = Graph(18)
        x = g.input("item", N, "T", "R", 2)
        zero = g.Expand(g.user(1, 1, 2), g.Shape(x))
        texts.add(onnx.printer.to_text(check(g.output(g.reduce("Sum", zero, [1, 2])), counts=(3,)).model.graph))
    assert len(texts) == 1
