"""An operator as others that it is made of, each answered by its own rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from onnx import TensorProto, helper

from mari_onnx.engine.context import Context, from_array
from mari_onnx.engine.value import Decline, Value


class Steps:
    """Writes nodes by the rules of their operators, under the name of the source node."""

    def __init__(self, ctx: Context):
        self.ctx, self._count = ctx, 0
        self.env: dict[str, Value] = {}
        self._base = next(o for o in ctx.node.output if o)

    def __call__(self, op: str, *inputs: Value, **attrs: object) -> Value:
        names = []
        for value in inputs:
            names.append(self._name("in"))
            self.env[names[-1]] = value
        out = self._name(op)
        node = helper.make_node(op, names, [out], name=self.ctx.node.name or self._base, **attrs)
        assert self.ctx.visit is not None
        self.ctx.visit(node, self.env)
        return self.env[out]

    def const(self, array: object, dtype: int = TensorProto.INT64) -> Value:
        return from_array(self.ctx.b, np.asarray(array), dtype)

    def ints(self, *values: int) -> Value:
        return self.const(list(values))

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{self._base}/{what}_{self._count}"


@contextmanager
def lowered(ctx: Context) -> Iterator[Steps]:
    """Steps under the name of the source node."""
    if ctx.visit is None:
        raise Decline("no way to write its parts")
    with ctx.b.named():
        yield Steps(ctx)
