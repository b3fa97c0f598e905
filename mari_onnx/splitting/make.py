"""Splits a model, checks the parts together, and writes their folder.

In: a source with its sides. Out: a `Split`, in a folder of its own until it is saved. Where outputs differ, rewrites
are undone as for `optimize`; where they still differ, the item's part is left out; where they differ even then, nothing
is written.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mari_onnx.api.given import (
    Axes,
    Dimensions,
    Model,
    Names,
    SidesLike,
    as_source,
    at_its_number,
    sides_of,
    tags,
    with_given_shapes,
)
from mari_onnx.choices import choices_of, options_for
from mari_onnx.errors import CannotCompare, OutputsDiffer, UsageError
from mari_onnx.model.load import Source
from mari_onnx.model.signature import signature
from mari_onnx.parity.guard import Checked, optimize_checked
from mari_onnx.parity.requests.recorded import as_requests
from mari_onnx.parity.result import CANNOT_COMPARE, CheckResult
from mari_onnx.parity.settings import Settings
from mari_onnx.parity.several.check import check, form_in
from mari_onnx.shown import Rows, Shown
from mari_onnx.sides.resolve import Sides
from mari_onnx.splitting import half as halves
from mari_onnx.splitting.batched import batched_part, refuse_mixing, timed
from mari_onnx.splitting.choices import SplitChoices, Stored, stored_as
from mari_onnx.splitting.files import put
from mari_onnx.splitting.folder import free_folder, write
from mari_onnx.splitting.left import Left
from mari_onnx.splitting.manifest import Contract, Manifest
from mari_onnx.splitting.ranker import Ranker
from mari_onnx.splitting.ways import Budget, Plan, Point
from mari_onnx.splitting.work import Work

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Options
    from mari_onnx.parity.phases import Progress
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.runtime import ModelLike
    from mari_onnx.splitting.work import Choose

RATES = {"user": "per user", "item": "per item"}


@dataclass(repr=False)
class Split(Shown):
    """A model that was split.

    Attributes:
        folder: where its files are; of a temporary folder as long as this object lives, until `save`.
        plan: what was cut, and where. points: what other numbers of bytes per item would bring.
        rates: FLOPs of each part: for one user, one item, one candidate.
        left: what score.onnx still computes of the item alone, and why.
        choices: with which the same split is made again.
        check: of the parts together against the source; None where none was asked for.
        together: of several requests in one run; None where that was not asked for.
        notes: what a reader should know.
    """

    folder: Path
    manifest: Manifest
    plan: Plan
    points: list[Point]
    rates: dict[str, float]
    left: list[Left]
    choices: SplitChoices
    check: CheckResult | None = None
    together: CheckResult | None = None
    notes: list[str] = field(default_factory=list)
    _kept: Any = None

    def shown(self) -> tuple[str, Rows]:
        """See `Shown`."""
        said = self.manifest
        rows = [
            (part.file, f"{self.rates[name]:.3g} FLOPs {RATES.get(name, 'per candidate')}, {part.bytes:,} bytes")
            for name, part in said.parts.items()
            if name in self.rates
        ]
        if said.batched is not None:
            rows.append((said.parts["batched"].file, f"several requests in one run ({said.batched.form})"))
        rows.append(("handed over", f"{said.bytes_per_user} bytes per user, {said.bytes_per_item} bytes per item"))
        checked = "no" if self.check is None else f"{self.check}; largest difference {self.check.max_error:.1e}"
        rows.append(("checked", checked))
        return f"Split: {said.source['file'] or 'a model'}", [*rows, *(("note", note) for note in self.notes[:3])]

    @property
    def user(self) -> onnx.ModelProto | None:
        """The model of the user's part; None where the user's inputs are handed over as they are."""
        return self.plan.user.model if self.plan.user is not None else None

    @property
    def item(self) -> onnx.ModelProto | None:
        """The model of the item's part; None where the item's inputs are handed over as they are."""
        return self.plan.item.model if self.plan.item is not None else None

    @property
    def score(self) -> onnx.ModelProto:
        """The model that scores candidates."""
        return self.plan.score.model

    def to_dict(self) -> dict[str, Any]:
        """The manifest, what other numbers of bytes per item would bring, FLOPs at each rate, what score.onnx still
        computes of the item, and the check (docs/splitting.md).
        """
        return {
            "manifest": self.manifest.to_dict(),
            "points": [dataclasses.asdict(point) for point in self.points],
            "choices": self.choices.to_dict(),
            "rates": self.rates,
            "left": [each.to_dict() for each in self.left],
            "notes": self.notes,
            "check": self.check.to_dict() if self.check is not None else None,
            "together": self.together.to_dict() if self.together is not None else None,
        }

    def ranker(self, provider: str = "cpu", threads: int = 1) -> Ranker:
        """The three models, loaded."""
        return Ranker(self.folder, provider, threads)

    def save(self, folder: str | Path, force: bool = False) -> None:
        """Writes the files to `folder`, all of them or none.

        Args:
            force: replace an earlier split.

        Raises:
            OutputInTheWay: something else is there or beside an earlier split, or such a split and no `force`.
            WriteError: it cannot be written.
        """
        target = free_folder(folder, force)
        write(self.folder, target)
        self.folder, self._kept = target, None


def split(
    model: Model,
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
    batched: str | None = None,
    candidates: int = 500,
    item_bytes: int | None = None,
    user_bytes: int | None = None,
    requests: str | os.PathLike[str] | Iterable[Request] | None = None,
    providers: Sequence[str] = ("auto",),
    threads: int = 1,
    prices: str | os.PathLike[str] | None = None,
    choices: SplitChoices | None = None,
    clock: bool = True,
    state: Stored | None = None,
) -> Split:
    """Splits a model into one of the user's part, one of the item's and one that scores; checks them together.

    Args:
        model, sides, user, item, cross, rest, shapes, count, candidate_axis, guess: as for `optimize`. Inputs that
            nothing tags count as cross.
        requests, providers, threads, prices: as for `optimize`.
        batched: make score.batched.onnx, too, which scores several requests in one run: "grid", "index" or "offsets"
            (docs/batching.md).
        candidates: N per request, for which the cut is chosen.
        item_bytes, user_bytes: how much may be handed over for an item, and for a user.
        choices: of an earlier split (`Split.choices`): the same split is made, whatever is faster now.
        clock: where several cuts should take about as long, they are timed. Without, prices alone decide, and the same
            files come out each time.
        state: "float16" hands states and rows over in half precision, which takes half the bytes; outputs then differ
            by more than the check allows otherwise (`Manifest.contract`). By default as in `choices`, else "float32".

    Raises:
        SidesUnknown, UsageError: see `mari_onnx.sides.resolve`; a budget is too small; `state` contradicts `choices`.
        ModelError: the model cannot be read or run, or cannot be split.
        Unchanged: nothing can be computed beforehand.
        CannotBatch: several requests cannot be scored in one run.
        OutputsDiffer, CannotCompare: the check failed, or could not be made.
    """
    source = as_source(model)
    said = tags(user, item, cross, rest, shapes, count, candidate_axis, guess)
    found = sides_of(source, sides, True, batched=batched, **said)
    table = None if prices is None else Path(prices)
    options = options_for(candidates, threads=threads, prices=table, choices=choices.choices if choices else None)
    return split_source(
        source, found, options, Budget(item_bytes, user_bytes), choices=choices, clock=threads if clock else None,
        state=state, requests=requests, providers=providers,
    )  # fmt: skip


def split_source(
    source: Source,
    sides: Sides,
    options: Options,
    budget: Budget | None = None,
    *,
    choices: SplitChoices | None = None,
    clock: int | None = None,
    state: Stored | None = None,
    requests: str | os.PathLike[str] | Iterable[Request] | None = None,
    providers: Sequence[str] = ("auto",),
    progress: Progress | None = None,
    **changes: Any,
) -> Split:
    """`split` of a source that was read. clock: threads with which close plans are timed; None for none. changes:
    fields of the check's `Settings`. Raises as `split` does.

    If `sides.batched` says so, score.batched.onnx is made, too.
    """
    from mari_onnx.runtime import require

    if sides.indices:
        raise UsageError("a model for several requests cannot be split", "leave --index out")
    if form_in(source.model) is not None:
        raise UsageError("a model for several requests cannot be split", "split the model that it was made of")
    several, sides = sides, dataclasses.replace(sides, batched=None, index_name=None)
    half = stored_as(state, choices) == "float16"
    source = with_given_shapes(source, sides)
    options = at_its_number(options, source.model, sides)
    recorded = as_requests(requests, signature(source.model), sides)
    for provider in providers:
        require(provider)
    if several.batched:
        refuse_mixing(source, several)
    notes: list[str] = []
    for items in (True, False):
        work = Work(source, sides, options, budget or Budget(), items, choices.cut if choices else None, clock, half)
        answer = optimize_checked(
            source.model,
            sides,
            options,
            source=source.path if source.path.is_file() and not sides.shapes else None,
            engine=work.rewritten,
            place=work.placed,
            requests=recorded,
            providers=tuple(providers),
            progress=progress,
            **changes,
        )
        if answer.ok or work.plan is None or not work.plan.way.rows:
            break
        assert answer.result is not None
        if answer.result.verdict == CANNOT_COMPARE:
            break
        notes.append(f"the item's part is computed per request: made beforehand, {answer.result.reasons[0]}")
    _refuse(answer)
    if choices is not None and work.chosen is not None and choices.cut != work.chosen:
        notes.append("the choices that were given do not fit; others were made")
    contract = Contract(max_error=answer.result.max_error if answer.result is not None else None)
    if half:
        settings = Settings(**{**changes, "providers": tuple(providers)})
        settings = dataclasses.replace(settings, coarser=halves.COARSER)
        origin: ModelLike = source.path if source.path.is_file() and not sides.shapes else source.model
        answer.result = check(
            origin, work.round(), sides, requests=recorded, drawing=True,
            settings=settings, progress=progress,
        )  # fmt: skip
        _refuse_half(answer.result)
        contract = Contract("float16", settings.multiple * settings.coarser, answer.result.max_error)
    done = _finished(work, answer, notes, contract)
    if several.batched:
        changes = {**changes, "coarser": halves.COARSER if half else 1.0, "providers": tuple(providers)}
        _add_batched(done, work, several, clock, requests=recorded, progress=progress, **changes)
    return done


def _add_batched(done: Split, work: Work, sides: Sides, clock: int | None, **check: Any) -> None:
    """Adds score.batched.onnx, checked. sides: of the source, which say how. check: arguments of `optimize_checked`."""
    draft = done.plan.way.rewrite.draft
    assert draft is not None
    made, answer = batched_part(done.folder, done.manifest, draft.outputs, work.source, sides, work.options, **check)
    _refuse(answer)
    done.manifest, done.together = made, answer.result
    done.notes += [f"undone for several requests: {each}" for each in answer.incidents]
    if clock is not None:
        done.manifest, said = timed(done.folder, done.manifest, clock)
        done.notes.append(said)


def unchecked(
    source: Source,
    sides: Sides,
    options: Options,
    budget: Budget | None = None,
    clock: int | None = None,
    choose: Choose | None = None,
) -> Split:
    """`split_source` without the check, for benchmarks: nothing says that the parts are equal to the source.

    Args:
        choose: which way to take, instead of what prices and the clock prefer.
    """
    source = with_given_shapes(source, sides)
    options = dataclasses.replace(at_its_number(options, source.model, sides), assume=True)
    work = Work(source, sides, options, budget or Budget(), True, None, clock, choose=choose)
    rewrite = work.rewritten(source.model, sides, options)
    work.placed(rewrite)
    return _finished(work, Checked(rewrite, None, options), [], Contract())


def _finished(work: Work, answer: Checked, notes: list[str], contract: Contract) -> Split:
    """The split that was checked."""
    assert work.plan is not None
    assert work.manifest is not None
    assert work.folder is not None
    notes = [*work.notes, *notes, *(f"undone: {each}" for each in answer.incidents)]
    choices = SplitChoices(
        choices_of(answer.rewrite, answer.options, work.source.sha256), work.plan.way.cut, contract.state
    )
    folder, manifest = Path(work.folder.name), dataclasses.replace(work.manifest, contract=contract)
    put(folder, manifest)
    plan, n = work.plan, manifest.candidates
    rates = {
        name: work.planner.flops(part) / (1 if name == "user" else n)
        for name, part in (("user", plan.user), ("item", plan.item), ("score", plan.score))
        if part is not None
    }
    left, kept = work.left, work.folder
    return Split(folder, manifest, plan, work.points, rates, left, choices, answer.result, notes=notes, _kept=kept)


def _refuse(answer: Checked) -> None:
    result = answer.result
    if result is None or result.ok:
        return
    if result.verdict == CANNOT_COMPARE:
        raise CannotCompare(f"the parts cannot be compared with the source: {result}", "nothing was written")
    raise OutputsDiffer(
        f"the outputs of the parts differ from the source's: {result}",
        "nothing was written. First make sure that inputs tagged user are equal for all candidates, and that those "
        "tagged item depend on the item alone; if so, this is a defect of mari-onnx, please report it",
    )


def _refuse_half(result: CheckResult) -> None:
    if not result.ok:
        raise OutputsDiffer(
            f"with states in half precision the outputs of the parts differ from the source's: {result}",
            "nothing was written. Leave --state out: in float32 the parts are equal to the source",
        )
