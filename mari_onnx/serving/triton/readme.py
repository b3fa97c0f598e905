"""README.md of a served model: a client's call before and after.

In: a configuration, and whose each input is. Out: Markdown. The Python in it runs as it stands, given `features`:
arrays by input name, of which user inputs have one row and others one row per candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2 as triton

from mari_onnx.serving.protocol import ITEM_IDS, USER_KEY
from mari_onnx.serving.triton.config import Port, Ports
from mari_onnx.serving.triton.ragged import Form
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
        pieces.append(_before(found.inputs, found.outputs, known))
        pieces.append("## After\nA user input has one row, however many candidates there are.\n")
    else:
        pieces.append("## A request\n")
    pieces.append(_code(config.name, [(p, f'features["{p.name}"]') for p in found.inputs], _answers(found.outputs)))
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
        _before(found.inputs, found.outputs, known),
        "## After\nA user input has one row, however many candidates there are.\n"
        + (f"No part reads {', '.join(unread)}; leave them out.\n" if unread else ""),
        _code(config.name, [(p, f'features["{p.name}"]') for p in found.inputs], _answers(found.outputs)),
        _tensors(found.inputs, known),
        _KEPT,
    ])  # fmt: skip


def together(config: triton.ModelConfig, found: Ports, form: Form, calls: Sequence[Call], file: str) -> str:
    """For a file whose requests Triton puts together. found: of the file before it was changed for Triton."""
    known = {call.name: call for call in calls}
    fed = [p for p in found.inputs if p.name != form.offsets and p.name not in form.counts]
    before = [p for p in found.inputs if p.name != form.offsets]
    pieces = [
        f"# {config.name}\n`{file}`, for Triton's onnxruntime backend, {config.max_batch_size} requests a run.\n",
        SETUP,
        _before(before, found.outputs, known),
        "## After\nOne request is still one user and the candidates; the server puts requests together. A user input "
        "has one row, and every tensor has a first dimension of 1, that of the batch.\n",
        _code(config.name, [(p, _in_batch(p, known.get(p.name))) for p in fed], _answers(found.outputs, "[0]")),
        _tensors([_sent(config, p) for p in fed], known),
        "A request whose inputs differ in their number of candidates, or with a first dimension above 1, fails, and\n"
        "so do the requests that run together with it. The Python backend refuses such a request alone.\n",
    ]
    return "\n".join(pieces)


def of_service(config: triton.ModelConfig, ports: Sequence[Port], manifest: Manifest, store: bool) -> str:
    """For the Python backend. ports: its inputs. store: it has rows of items."""
    known = {i.name: Call(i.name, i.side, i.axis) for i in manifest.inputs}
    before = [Port(p.name, p.type, ()) for p in ports if p.name in known]
    outputs = [Port(o.name, "", ()) for o in manifest.outputs]
    own = {USER_KEY: "np.array([[user.encode()]], object)", ITEM_IDS: "np.array([candidates])"}
    fed = []
    for port in ports:
        call = known.get(port.name)
        if call is not None and call.side == "item" and store:
            continue
        fed.append((port, own[port.name] if call is None else _in_batch(port, call, one_row=False)))
    kept = (
        f"`{USER_KEY}` is the key under which the user's state is kept. While it is, a request may leave out the "
        "user's inputs.\n"
        + (
            f"`{ITEM_IDS}` are the candidates, whose rows the store has; without it, send the item's inputs.\n"
            if store
            else ""
        )
    )
    return "\n".join([
        f"# {config.name}\nThe split of `{manifest.source['file']}` in Triton's Python backend.\n",
        SETUP,
        _before(before, outputs, known),
        f"## After\nEvery tensor has a first dimension of 1, that of the batch. {kept}",
        _code(config.name, fed, _answers(outputs, "[0]")),
        _tensors([_sent(config, p) for p in ports], known),
    ])  # fmt: skip


def _in_batch(port: Port, call: Call | None, one_row: bool = True) -> str:
    """The features of an input with the dimension of the batch, in which a user input has its row.

    one_row: the row is the first dimension wherever it was in the source.
    """
    value = f'features["{port.name}"]'
    if not (port.shape[1:] if one_row else port.shape) and (call is None or call.side in ("user", None)):
        return f"np.reshape({value}, (1, 1))"
    if call is not None and call.side == "user" and call.axis is not None and (call.axis == 0 or one_row):
        return value if call.axis == 0 else f"np.moveaxis({value}, {call.axis}, 0)"
    return f"{value}[None]"


def _sent(config: triton.ModelConfig, port: Port) -> Port:
    """As a request has it."""
    dims = next(io.dims for io in config.input if io.name == port.name)
    return Port(port.name, port.type, (1, *(None if d < 0 else d for d in dims)))


_KEPT = """## What is kept between requests
The model of the user's part answers equal inputs from Triton's cache, where the server has one: start it with
`--cache-config local,size=1073741824`. The cache goes by names and versions of models, so the names of the parts have
the hash of their files: never put the file of another model under the same name. A part that no ensemble names any
more can be removed.
"""


def _before(inputs: Sequence[Port], outputs: Sequence[Port], known: Mapping[str, Call]) -> str:
    fed = []
    for port in inputs:
        call, value = known.get(port.name), f'features["{port.name}"]'
        if call is not None and call.side == "user" and call.axis is not None:
            value = f"np.repeat({value}, n, axis={call.axis})"
        fed.append((port, value))
    return (
        "## Before\nThe source, named `source`, with the user's row once per candidate; `n` is the number of "
        "candidates.\n\n" + _code("source", fed, _answers(outputs))
    )


def _code(model: str, fed: Sequence[tuple[Port, str]], answers: Sequence[str]) -> str:
    lines = [f'    tensor("{port.name}", {value}, "{port.wire}"),' for port, value in fed]
    call = [f'answer = client.infer("{model}", [', *lines, "])", *answers]
    return "```python\n" + "\n".join(call) + "\n```\n"


def _answers(outputs: Sequence[Port], row: str = "") -> list[str]:
    return [f"outputs = {{name: answer.as_numpy(name){row} for name in {[p.name for p in outputs]!r}}}"]


def _one_row(found: Ports, call: Call) -> bool:
    port = next((p for p in found.inputs if p.name == call.name), None)
    return port is not None and call.axis is not None and len(port.shape) > call.axis and port.shape[call.axis] == 1


def _tensors(inputs: Sequence[Port], known: Mapping[str, Call]) -> str:
    rows = ["| input | type | shape | whose |", "|---|---|---|---|"]
    for port in inputs:
        side = known[port.name].side if port.name in known else None
        rows.append(f"| `{port.name}` | {port.wire} | {port.dims or [1]} | {side or ''} |")
    return "\n".join(rows) + "\n"
