"""How much of score.onnx's work depends on the item alone, and could have been done beforehand. It is measured.

In: a source with its sides and the folder of its split. Out: a `mari_onnx.report.residual.Residual`, whose `redundant`
is the work on results, or terms of sums and products, that stay the same whoever the user is. score.onnx runs with the
same items' rows, and with states and other inputs of several users; states and rows are random numbers about those of
a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import ModelError
from mari_onnx.model.load import load
from mari_onnx.model.signature import signature
from mari_onnx.parity.domains.domains import domains
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.requests.draw import Drawer
from mari_onnx.report.candidate_probe import observe, pick_n
from mari_onnx.report.residual import Residual, count
from mari_onnx.splitting.assembly import Assembly, Session

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.requests.request import Request
    from mari_onnx.sides.resolve import Sides

USERS = 3


def item_residual(
    source: onnx.ModelProto, sides: Sides, folder: Path, near: int = 64, draw: object = None
) -> Residual:
    """Measures score.onnx.

    Args:
        near: about how many candidates. draw: `(n, seed) -> Request`, where requests must not be made up.

    Raises:
        ModelError: a model cannot run, or takes one candidate only.
    """
    layout = Layout(signature(source), sides)
    session: Session = Assembly(folder).open("cpu", True, 1)
    ranker = session.ranker
    model = load(folder / ranker.manifest.parts["score"].file)
    n = layout.fixed_n or pick_n(model, near)
    if n < 2:
        raise ModelError(
            "the model runs with one candidate only, so nothing can be compared",
            "export it with a dynamic batch dimension",
        )
    ranges = domains(source, layout)[0]

    def drawn(seed: int) -> Request:
        if callable(draw):
            made: Request = draw(n, seed)
            return made
        # Padding must be seen to be padding: one of the users has none.
        return Drawer(layout, ranges, seed).request(n, full=seed % 3 == 2)

    feeds = [drawn(seed).feed(session.get_inputs()) for seed in range(USERS)]
    rows = ranker.items(feeds[0])
    rows = replace(rows, arrays=_random(rows.arrays, USERS))
    order = np.random.default_rng(0).permutation(n)
    axes = {i.name: i.axis for i in ranker.manifest.inputs}
    found = []
    for seed, feed in enumerate(feeds):
        state = _random(ranker.user(feed).arrays, seed)
        cross = {name: feed[name] for name in ranker.manifest.cross if name in feed}
        found.append({**state, **rows.arrays, **cross})
        if seed == 0:
            turned = {
                name: array if axes[name] is None else np.take(array, order, axis=axes[name])
                for name, array in cross.items()
            }
            found.append({**state, **rows.take(order).arrays, **turned})
    reads = {i.name for i in model.graph.input}
    found = [{name: array for name, array in each.items() if name in reads} for each in found]
    return count(model, observe(model, found, order, of_items=True), n, unread_too=False)


def _random(arrays: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Other numbers of the same size: a unit that is dead for all users or items must not hide that it is read.

    A tensor that may be a mask stays as it is: whole numbers, booleans, and floats that have one or two values, or some
    so large that they blot out others.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for name, array in arrays.items():
        plain = array.dtype.kind == "f" and array.size and np.all(np.abs(array) < 1e4)
        if plain and len(np.unique(array)) > min(2, array.size - 1):
            noise = rng.standard_normal(array.shape) * max(float(np.std(array)), 1e-3)
            array = np.asarray(array + noise, array.dtype)
        found[name] = array
    return found
