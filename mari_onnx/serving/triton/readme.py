"""README.md of a served model: a client's call before and after.

In: a configuration, and whose each input is. Out: Markdown. The Python in it runs as it stands, given `features`:
arrays by input name, of which user inputs have one row and others one row per candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2 as triton

from mari_onnx.serving.triton.config import Port, Ports
from mari_onnx.sides.resolve import Sides
from mari_onnx.splitting.manifest import Manifest

HELPER = '''import numpy as np
import tritonclient.grpc as grpc

client = grpc.InferenceServerClient("localhost:8001")


def tensor(name, array, kind):
    """An input of a request."""
    given = grpc.InferInput(name, list(np.shape(array)), kind)
    given.set_data_from_numpy(np.ascontiguousarray(array))
    return given
'''
SETUP = f"```python\n{HELPER}```\n"


@dataclass(frozen=True)
class Call:
    """How a client had to feed an input before.

    Attributes:
        side: "user", "item", "cross", "packed", "count"; None where nobody said.
        axis: of the candidates in the source; None without one.
    """

    name: str
    side: str | None
    axis: int | None


def calls_of(sides: Sides, names: Sequence[str]) -> list[Call]:
    """How inputs are fed, by the sides of the source."""
    found = []
    for name in names:
        side = "packed" if name in sides.columns else "count" if name in sides.counts else sides.side(name)
        found.append(Call(name, side, sides.axis_of(name) if side not in (None, "count") else None))
    return found


def single(config: triton.ModelConfig, found: Ports, calls: Sequence[Call], file: str) -> str:
    """For a file that takes one request at a time."""
    known = {call.name: call for call in calls}
    repeated = [c for c in calls if c.side == "user" and c.axis is not None and _one_row(found, c)]
    pieces = [f"# {config.name}\n`{file}`, for Triton's onnxruntime backend, one request per run.\n", SETUP]
    if repeated:
        pieces.append(_before(found, known))
        pieces.append("## After\nA user input has one row, however many candidates there are.\n")
    else:
        pieces.append("## A request\n")
    pieces.append(_code(config.name, [(p, f'features["{p.name}"]') for p in found.inputs], _answers(found)))
    pieces.append(_tensors(found.inputs, known))
    return "\n".join(pieces)


def split(config: triton.ModelConfig, found: Ports, manifest: Manifest) -> str:
    """For the ensemble of a split."""
    known = {i.name: Call(i.name, i.side, i.axis) for i in manifest.inputs}
    steps = [step.model_name for step in config.ensemble_scheduling.step]
    unread = [i.name for i in manifest.inputs if i.name not in {p.name for p in found.inputs}]
    made_of = ", ".join(f"`{step}`" for step in steps)
    return "\n".join([
        f"# {config.name}\nAn ensemble of the parts of `{manifest.source['file']}`: {made_of}.\n",
        SETUP,
        _before(found, known),
        "## After\nA user input has one row, however many candidates there are.\n"
        + (f"No part reads {', '.join(unread)}; leave them out.\n" if unread else ""),
        _code(config.name, [(p, f'features["{p.name}"]') for p in found.inputs], _answers(found)),
        _tensors(found.inputs, known),
        _KEPT,
    ])  # fmt: skip


_KEPT = """## What is kept between requests
The model of the user's part answers equal inputs from Triton's cache, where the server has one: start it with
`--cache-config local,size=1073741824`. The cache goes by names and versions of models, so the names of the parts have
the hash of their files: never put the file of another model under the same name. A part that no ensemble names any
more can be removed.
"""


def _before(found: Ports, known: Mapping[str, Call]) -> str:
    fed = []
    for port in found.inputs:
        call, value = known.get(port.name), f'features["{port.name}"]'
        if call is not None and call.side == "user" and call.axis is not None:
            value = f"np.repeat({value}, n, axis={call.axis})"
        fed.append((port, value))
    return (
        "## Before\nThe source, named `source`, with the user's row once per candidate; `n` is the number of "
        "candidates.\n\n" + _code("source", fed, _answers(found))
    )


def _code(model: str, fed: Sequence[tuple[Port, str]], answers: Sequence[str]) -> str:
    lines = [f'    tensor("{port.name}", {value}, "{port.wire}"),' for port, value in fed]
    call = [f'answer = client.infer("{model}", [', *lines, "])", *answers]
    return "```python\n" + "\n".join(call) + "\n```\n"


def _answers(found: Ports) -> list[str]:
    return [f"outputs = {{name: answer.as_numpy(name) for name in {[p.name for p in found.outputs]!r}}}"]


def _one_row(found: Ports, call: Call) -> bool:
    port = next((p for p in found.inputs if p.name == call.name), None)
    return port is not None and call.axis is not None and len(port.shape) > call.axis and port.shape[call.axis] == 1


def _tensors(inputs: Sequence[Port], known: Mapping[str, Call]) -> str:
    rows = ["| input | type | shape | whose |", "|---|---|---|---|"]
    for port in inputs:
        side = known[port.name].side if port.name in known else None
        rows.append(f"| `{port.name}` | {port.wire} | {port.dims or [1]} | {side or ''} |")
    return "\n".join(rows) + "\n"
