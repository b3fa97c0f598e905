"""Whether two Values of the new graph are equal, by the nodes that compute them.

In: two Values. Out: true where they are the same tensor, or where one is a mean and the other the sum of the same
elements divided by their number. Used where one iteration of a Loop takes another branch of an If than the others.
"""

from __future__ import annotations

from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Leaf, Node, Tensor, Value
from mari_onnx.model.dims import Size, divide, product
from mari_onnx.model.ops import Fact, having

VIEWS = having(Fact.VIEW)


def equal(b: Builder, x: Value, y: Value) -> bool:
    """Whether two Values are equal: the same tensor, or a sum over the number of its terms and a mean."""
    if x.groups != y.groups or not isinstance(x.body, Leaf) or not isinstance(y.body, Leaf):
        return False
    if [a for a in x.body.axes if a is not None] != [a for a in y.body.axes if a is not None]:
        return False
    if x.body.tensor is y.body.tensor:
        return True
    div, mean = _maker(x.body.tensor), _maker(y.body.tensor)
    if div is None or mean is None or div.proto.op_type != "Div" or mean.proto.op_type != "ReduceMean":
        return False
    total, by = div.inputs
    assert total is not None
    assert by is not None
    source = _maker(total)
    if source is None or source.proto.op_type != "ReduceSum" or mean.inputs[0] is not source.inputs[0]:
        return False
    left, terms = product(source.outputs[0].known), product(mean.inputs[0].known)  # type: ignore[union-attr]
    number = divide(terms, left)
    return left == product(y.body.tensor.known) and number is not None and _is_size(b, by, number)


def _maker(tensor: Tensor) -> Node | None:
    """The node that made a tensor, but for moves."""
    node = tensor.node
    while node is not None and node.proto.op_type in VIEWS and node.inputs[0] is not None:
        node = node.inputs[0].node
    return node


def _is_size(b: Builder, tensor: Tensor, size: Size) -> bool:
    """Whether a scalar is a dimension, converted."""
    if isinstance(size, int):
        return bool(tensor.scalar == size)
    want = b.size(size)
    while tensor is not want and tensor.node is not None:
        node = tensor.node
        inputs = [t for t in node.inputs if t is not None]
        single = node.proto.op_type == "Concat" and len(inputs) == 1
        if not single and node.proto.op_type not in VIEWS | {"Cast"}:
            break
        tensor = inputs[0]
    return tensor is want
