"""Model-local functions: who calls whom, and their bodies in place of the calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from mari_onnx.errors import InvalidModel
from mari_onnx.model.nodes import all_nodes, domain

if TYPE_CHECKING:
    import onnx

Key: TypeAlias = "tuple[str, str, str]"

# onnx refuses to inline calls that go deeper than 100.
DEEPEST = 90


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without local functions; the model itself where there are none."""
    if not model.functions:
        return model
    import onnx.inliner

    depth = depths(model)
    functions = list(model.functions)
    # From the graph downwards: what a round leaves out stays a call, and is inlined in the next. Functions that nothing
    # calls are in no round: onnx looks at how deep they go, too.
    for first in range(1, max(depth.values(), default=1) + 1, DEEPEST):
        part = onnx.ModelProto()
        part.CopyFrom(model)
        del part.functions[:]
        part.functions.extend(f for f in functions if first <= depth.get(_key(f), 0) < first + DEEPEST)
        model = onnx.inliner.inline_local_functions(part)
    return model


def depths(model: onnx.ModelProto) -> dict[Key, int]:
    """For each function that is reached, how many calls lie between it and the graph at most, itself counted.

    Raises:
        InvalidModel: a function calls itself, directly or through others.
    """
    functions = {_key(function): function for function in model.functions}
    calls = {key: list(_called(function.node, functions)) for key, function in functions.items()}
    order: list[Key] = []
    done: set[Key] = set()
    for key in functions:
        _visit(key, calls, done, order)
    found: dict[Key, int] = dict.fromkeys(_called(model.graph.node, functions), 1)
    for key in reversed(order):  # callers first
        for other in calls[key] if key in found else ():
            found[other] = max(found.get(other, 0), found[key] + 1)
    return found


def _visit(key: Key, calls: dict[Key, list[Key]], done: set[Key], order: list[Key]) -> None:
    """Adds to `order` what `key` calls, then itself; calls may go deeper than Python recurses."""
    path: dict[Key, Iterator[Key]] = {}
    following: Key | None = key
    while following is not None or path:
        if following is not None and following in path:
            names = [".".join(filter(None, each[:2])) for each in path]
            raise InvalidModel(
                f"the function {'.'.join(filter(None, following[:2]))} calls itself (through {', '.join(names)})",
                "ONNX does not allow recursive functions; export the model again",
            )
        if following is not None and following not in done:
            path[following] = iter(calls[following])
        if not path:
            return
        last = next(reversed(path))
        following = next(path[last], None)
        if following is None:
            del path[last]
            done.add(last)
            order.append(last)


def _called(nodes: Iterable[onnx.NodeProto], functions: dict[Key, onnx.FunctionProto]) -> Iterator[Key]:
    """The functions that nodes call, in their bodies too."""
    for node in all_nodes(nodes):
        key = (domain(node.domain), node.op_type, node.overload)
        if key in functions:
            yield key


def _key(function: onnx.FunctionProto) -> Key:
    return domain(function.domain), function.name, function.overload
