"""Which module of the model a node belongs to, as its exporter noted it.

In: the nodes of a graph. Out: for each node the names of the modules around it, outermost first: `("layers", "3",
"attention")`. torch.onnx.export notes them in the node's metadata, its older exporter, TensorFlow and others in the
node's name. Nodes without a note (sizes, what an exporter added) go to the module that reads them.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import onnx

Scope: TypeAlias = "tuple[str, ...]"
# A scope, or the like: what is around something, outermost first.
Path: TypeAlias = "tuple[Any, ...]"

# Names may have any number of levels; groups are drawn for the first.
LEVELS = 16
NOTED = "pkg.torch.onnx.name_scopes"
# What torch notes where it does not know the module.
_UNKNOWN = "_empty_nn_module_stack"


def scope(node: onnx.NodeProto) -> Scope | None:
    """The modules around one node, by its metadata or else by its name; None where nothing is noted."""
    noted = next((p.value for p in node.metadata_props if p.key == NOTED), "")
    if noted:
        try:
            names = [str(x) for x in ast.literal_eval(noted)]
        except (SyntaxError, ValueError):
            names = []
        # Each is the full name of a module, the last that of the node.
        last = names[-2] if len(names) > 1 else _UNKNOWN
        return None if last.startswith(_UNKNOWN) else _parts(last)
    # tf2onnx joins the names of nodes that it joins; the first is taken.
    name = node.name.split(";")[0]
    if "/" not in name:
        return None
    found: list[str] = []
    before = ""
    for part in [x for x in name.split("/") if x][:-1]:
        # A member of a Sequential repeats the name of the whole: "mlp/mlp.0".
        found += _parts(part.removeprefix(f"{before}."))
        before = part
    return tuple(found[:LEVELS])


def _parts(name: str) -> Scope:
    return tuple([x for x in name.split(".") if x][:LEVELS])


def scopes(nodes: Sequence[onnx.NodeProto]) -> list[Scope]:
    """The modules around each node of a graph; one without a note is in the innermost module around all its readers."""
    return settled(nodes, [scope(node) for node in nodes])


def settled(nodes: Sequence[onnx.NodeProto], known: Sequence[Path | None]) -> list[Path]:
    """Places of all nodes, where some are `None`: the innermost place around all nodes that read them.

    Args:
        nodes: of a graph, in topological order.
        known: a path from the outermost place to the innermost for each, or None.
    """
    readers: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, []).append(i)
    found: list[Path] = [place or () for place in known]
    for i in range(len(nodes) - 1, -1, -1):
        if known[i] is None:
            found[i] = common([found[k] for name in nodes[i].output for k in readers.get(name, ())])
    return found


def common(places: Sequence[Path]) -> Path:
    """The longest path that all begin with; () of none."""
    if not places:
        return ()
    first, last = min(places), max(places)
    same = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same]


def relative(full: Scope, around: Scope) -> str:
    """How a module is called within another one: `attention`, or `layers.3` where its own name is but a number."""
    own = full[len(around) :] or full[-1:]
    if own[0].isdigit() and len(full) > len(own):
        own = full[len(full) - len(own) - 1 :]
    return ".".join(own)
