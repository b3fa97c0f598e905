"""Names of tensors of the new graph: a tensor that equals one of the source has its name.

In: the Values by source name, and the tensors of the new graph. Out: the same tensors, renamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import helper

from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Leaf, Node, Tensor, Value


def name_outputs(b: Builder, wanted: Sequence[tuple[str, Tensor]], kept: set[str]) -> list[Tensor]:
    """The graph outputs, each under its name: the tensor is renamed, or copied by an Identity if it must keep another
    name.

    kept: names of inputs and initializers; an output that is one of these, unchanged, needs no node.
    """
    out: dict[str, Tensor] = {}
    captured = {t.name for node in b.nodes for t in node.captured}
    for name, tensor in wanted:
        if name in out or tensor.name == name:
            out.setdefault(name, tensor)
            continue
        if tensor.node is None or tensor.name in out or tensor.name in kept or tensor.name in captured:
            b.origin, b.label = name, name
            proto = helper.make_node("Identity", [tensor.name], [name])
            tensor = b._append(proto, [tensor], [tensor.dtype], [tensor.shape])[0]
        tensor.name = name
        out[name] = tensor
    return list(out.values())


def restore_names(env: Mapping[str, Value], nodes: list[Node], outputs: list[Tensor]) -> None:
    """Gives tensors that equal a tensor of the source its name, so that a diff of the two graphs is easy to read."""
    taken = {t.name for n in nodes for t in [*n.inputs, *n.outputs, *n.captured] if t is not None}
    captured = {t.name for n in nodes for t in n.captured}
    keep = {t.name for t in outputs}
    made = {t.name for n in nodes for t in n.outputs}
    for name, value in env.items():
        body = value.body
        if not isinstance(body, Leaf) or name in taken or value.groups is None:
            continue
        tensor = body.tensor
        if tensor.name not in made or tensor.name in keep or tensor.name in captured or tensor.source is not None:
            continue
        if tensor.shape == value.shape:
            taken.add(name)
            tensor.name = tensor.source = name


def tensor_map(env: Mapping[str, Value], made: set[str]) -> dict[str, str]:
    """Names of source tensors -> names of tensors of the new graph that have the same elements and rank, where those
    that do not vary along an axis may have size 1 there.
    """
    found = {}
    for name, value in env.items():
        body = value.body
        if not isinstance(body, Leaf) or value.groups is None or body.tensor.name not in made:
            continue
        if any(len(group) > 1 for group in value.groups) or len(body.axes) != len(value.groups):
            continue
        if all(a is None or group == (a,) for a, group in zip(body.axes, value.groups, strict=True)):
            found[name] = body.tensor.name
    return found
