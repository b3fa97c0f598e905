"""Are two models equal? The second may also be the folder of a split, or have 8-bit weights.

In: the paths of two models, or models as objects. Out: a `CheckResult`. `mari_onnx.check` and `mari-onnx check`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from mari_onnx.api.given import Axes, Dimensions, Model, Names, SidesLike, sides_of_pair, tags
from mari_onnx.errors import UsageError
from mari_onnx.model.load import read
from mari_onnx.parity.float64 import light
from mari_onnx.parity.loss import contract_of
from mari_onnx.parity.result import DIFFERENT, CheckResult
from mari_onnx.parity.settings import Changes, Settings
from mari_onnx.parity.several.check import check as compare
from mari_onnx.splitting.assembly import Assembly
from mari_onnx.splitting.manifest import is_split

if TYPE_CHECKING:
    from mari_onnx.parity.phases import Progress
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.runtime import ModelLike
    from mari_onnx.sides.resolve import Sides


def check(
    source: Model,
    optimized: Model,
    sides: SidesLike = None,
    *,
    user: Names = (),
    item: Names = (),
    cross: Names = (),
    rest: str | None = None,
    shapes: Dimensions | None = None,
    count: Names = (),
    candidate_axis: Axes = None,
    guess: bool = False,
    requests: str | os.PathLike[str] | Iterable[Request] | None = None,
    drawing: bool | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
    **changes: Unpack[Changes],
) -> CheckResult:
    """Compares two models on the same requests, against a float64 run of the source.

    User inputs are fed as `[N, ..]`, all rows equal, to a model that takes N rows, as `[1, ..]` to one that takes one.

    Args:
        source: a path (preferred for large models) or a `ModelProto`.
        optimized: the same; or the folder of a split, whose parts are then run together.
        sides, user, item, cross, rest, shapes, count, candidate_axis, guess: as for `optimize`, of the source's inputs.
            Where nothing is said, the side files beside both models and their metadata are asked.
        requests: recorded requests, or their file; none are drawn then, unless `drawing` says so.
        settings: see `mari_onnx.parity.Settings`; `changes` are fields of it, such as `candidates=(1, 100)`, all but
            its `count`: that name is the tag's.
        progress: called with (phase, done, total).

    Returns:
        The result whatever it is; `CheckResult.raise_if_different` raises.

    Raises:
        UsageError: a tag, the requests or a setting is wrong.
        ModelError: a model cannot be read, or the source cannot be loaded.
        ProviderError: a provider asked for by name is not there, or no node ran on it.
        WriteError: there is no room for the temporary files of a large model.
    """
    pair = Pair(source, optimized)
    said = tags(user, item, cross, rest, shapes, count, candidate_axis, guess)
    found = sides_of_pair([source, optimized], [pair.model, pair.other], sides, **said)
    chosen = replace(settings or Settings(), **changes)
    return pair.check(found, requests=requests, drawing=drawing, settings=chosen, progress=progress)


class Pair:
    """Two models that are to be compared.

    Attributes:
        model, other: both as they are read, to find sides by.

    Raises:
        ModelError: one of them cannot be read.
    """

    def __init__(self, source: ModelLike, optimized: ModelLike):
        self.source, self.optimized = source, optimized
        self.notes, self._compared = _parts(source, optimized)
        self.model, self.other = light(source), light(self._compared)

    def check(
        self,
        sides: Sides,
        *,
        requests: Any = None,
        drawing: bool | None = None,
        settings: Settings,
        progress: Progress | None = None,
    ) -> CheckResult:
        """Compares them. Arguments and errors as `check`, once; both models are let go of.

        Raises:
            UsageError: the second has 8-bit weights, and no requests are recorded.
        """
        compared, notes = self._compared, list(self.notes)
        loss = contract_of(self.other) if compared is self.optimized else None
        del self.model, self.other
        if loss is not None:
            if requests is None:
                raise UsageError(
                    f"{_name(self.optimized)} has 8-bit weights for the user, and only recorded requests tell what "
                    "they cost",
                    "give --data FILE, requests as they were served",
                )
            settings = replace(settings, max_tau_loss=float(loss["max_tau_loss"]))
            notes.append(
                f"{len(loss.get('products', ()))} products of the user have 8-bit weights: outputs need not be equal; "
                f"the order of candidates may change by {loss['max_tau_loss']:g} (1 - Kendall's tau)"
            )
        contract = compared.manifest.contract if isinstance(compared, Assembly) else None
        if contract is not None and contract.state != "float32" and settings.multiple == Settings.multiple:
            settings = replace(settings, coarser=contract.multiple / settings.multiple)
            notes.append(
                f"states and rows are {contract.state}: outputs may be {contract.multiple:g} times farther from the "
                "source in float64 than the source itself is (manifest.json)"
            )
        how = {"requests": requests, "drawing": drawing, "settings": settings, "progress": progress}
        result = compare(self.source, compared, sides, **how)
        if isinstance(compared, Assembly) and compared.manifest.batched is not None and result.verdict != DIFFERENT:
            together = Assembly(compared.folder, batched=True)
            result.add(compare(self.source, together, sides, **how), "score.batched.onnx")
        if compared is not self.optimized:
            result.optimized = _name(self.optimized)
        result.notes += notes
        return result


def _parts(source: ModelLike, optimized: ModelLike) -> tuple[list[str], ModelLike]:
    """What to compare with: the models of a split as one, with a note where they are another source's; or the model."""
    if not isinstance(optimized, str | os.PathLike) or not is_split(Path(optimized)):
        return [], optimized
    parts = Assembly(Path(optimized))
    if isinstance(source, str | os.PathLike) and read(Path(source)).sha256 != parts.manifest.source["sha256"]:
        return [f"{_name(optimized)} was split from another file than {_name(source)}"], parts
    return [], parts


def _name(model: ModelLike) -> str:
    return os.fspath(model) if isinstance(model, str | os.PathLike) else "the optimized model"
