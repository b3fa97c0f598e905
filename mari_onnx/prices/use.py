"""What a node asks of the machine: the class of its kernel, and how much of each thing that takes that kernel time.

A kernel's time is taken for a sum of amounts times prices: ``seconds = sum(price * amount)``. Amounts follow from the
node and its shapes alone (`kernels`, `products`, `moves`); prices are measured (`mari_onnx.timing.calibrate`) and read
from a table (`mari_onnx.prices.table`). Classes are those of onnxruntime's CPU kernels: where one kernel takes
different ways for different shapes (a Gemm of one row, a broadcast in short runs), each way is a class or an amount of
its own.

Amounts:
    node: 1, what starting the kernel takes.
    mults: multiply-adds of products, their columns filled up to whole registers.
    elements: of the result; of what is read, where that is more (reductions, Softmax).
    large: elements, where they are more than a core's own cache holds.
    singles: stretches of one element each, which a Concat moves without a call.
    runs: stretches of memory that are read or written in one go; an element-wise operator whose operands broadcast,
        and what moves elements, take time for each.
    calls: products of matrices within one batched MatMul or Conv; blocks that are reduced one after the other.
    weights: elements of a second operand that is read for few rows, or of a Conv's for each image.
    packed: elements of a second operand that is not constant, so that it is packed at each run.
    moved: elements of an Einsum's result that the product leaves in another order.
    far: elements that a Transpose moves across more than the first cache holds.
    rows, steps, visits: of Softmax and norms, of recurrences, of nodes of trees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Use:
    """The class of a kernel, and amounts by name."""

    kernel: str
    amounts: dict[str, float]


@dataclass(frozen=True)
class Call:
    """A node with the shapes of its inputs and outputs (None: absent or not known), and which inputs are constant.

    in_place: whether the first input's memory may become the result's. second: the value of the second input, where
    that is a constant of one element.
    """

    node: onnx.NodeProto
    ins: Sequence[Shape | None]
    outs: Sequence[Shape | None]
    constant: Sequence[bool] = ()
    in_place: bool = True
    second: float | None = None

    def shape(self, k: int) -> Shape:
        """Of input k; () where it is not known."""
        return (self.ins[k] if k < len(self.ins) else None) or ()

    @property
    def out(self) -> Shape:
        """Shape of the first output; () where it is not known."""
        return (self.outs[0] if self.outs else None) or ()

    def fixed(self, k: int) -> bool:
        """Whether input k is a constant."""
        return k < len(self.constant) and self.constant[k]


KERNELS: dict[str, Callable[[Call], list[Use]]] = {}


def kernel_of(*ops: str) -> Callable[[Callable[[Call], list[Use]]], Callable[[Call], list[Use]]]:
    """Registers what these operators ask for."""

    def register(function: Callable[[Call], list[Use]]) -> Callable[[Call], list[Use]]:
        KERNELS.update(dict.fromkeys(ops, function))
        return function

    return register


def size(shape: Shape) -> int:
    """Number of elements."""
    return math.prod(shape)
