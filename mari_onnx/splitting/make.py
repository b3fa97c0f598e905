"""Splits a model, checks the parts together, and writes their folder.

In: a source with its sides. Out: a `Split`, in a folder of its own until it is saved. Where outputs differ, rewrites
are undone as for `optimize`; where they still differ, the item's part is left out; where they differ even then, nothing
is written.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mari_onnx.api import as_source, at_its_number, sides_of, unknown_sides, with_given_shapes
from mari_onnx.choices import choices_of, options_for
from mari_onnx.errors import CannotCompare, ModelError, OutputsDiffer, Unchanged, UsageError
from mari_onnx.model.load import Source
from mari_onnx.model.provenance import set_metadata
from mari_onnx.model.save import save
from mari_onnx.model.signature import Input, signature
from mari_onnx.model.upgrade import upgraded
from mari_onnx.parity.guard import Checked, optimize_checked
from mari_onnx.parity.requests.recorded import as_requests
from mari_onnx.parity.result import CANNOT_COMPARE, CheckResult
from mari_onnx.sides.resolve import Sides
from mari_onnx.splitting import manifest as manifests
from mari_onnx.splitting.assembly import Assembly
from mari_onnx.splitting.choices import Cut, SplitChoices
from mari_onnx.splitting.folder import free_folder, write
from mari_onnx.splitting.manifest import InputInfo, Manifest, OutputInfo, PartInfo, TensorInfo
from mari_onnx.splitting.parts import candidate_symbol, dimension
from mari_onnx.splitting.plan import Budget, Plan, Planner, Point, numpy_name
from mari_onnx.splitting.ranker import Ranker
from mari_onnx.splitting.rates import row_axis
from mari_onnx.splitting.timed import LARGEST, contenders, fastest
from mari_onnx.version import __version__

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Options, Rewrite
    from mari_onnx.parity.phases import Progress
    from mari_onnx.parity.requests.request import Request

PART_KEY, VERSION_KEY, SOURCE_KEY = "mari_onnx.part", "mari_onnx.version", "mari_onnx.source_sha256"


@dataclass
class Split:
    """A model that was split.

    Attributes:
        folder: where its files are; of a temporary folder as long as this object lives, until `save`.
        plan: what was cut, and where. points: what other numbers of bytes per item would bring.
        choices: with which the same split is made again.
        check: of the parts together against the source; None where none was asked for.
        notes: what a reader should know.
    """

    folder: Path
    manifest: Manifest
    plan: Plan
    points: list[Point]
    choices: SplitChoices
    check: CheckResult | None = None
    notes: list[str] = field(default_factory=list)
    _kept: Any = None

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
        """The manifest, what other numbers of bytes per item would bring, and the check (docs/splitting.md)."""
        return {
            "manifest": self.manifest.to_dict(),
            "points": [dataclasses.asdict(point) for point in self.points],
            "choices": self.choices.to_dict(),
            "notes": self.notes,
            "check": self.check.to_dict() if self.check is not None else None,
        }

    def ranker(self, provider: str = "cpu", threads: int = 1) -> Ranker:
        """The three models, loaded."""
        return Ranker(self.folder, provider, threads)

    def save(self, folder: str | Path, force: bool = False) -> None:
        """Writes the files to `folder`, all of them or none.

        Args:
            force: replace an earlier split.

        Raises:
            OutputInTheWay: something else is there, or an earlier split and `force` is not given.
            WriteError: it cannot be written.
        """
        target = free_folder(folder, force)
        write(self.folder, target)
        self.folder, self._kept = target, None


def split(
    model: str | Path | onnx.ModelProto,
    sides: Sides | Mapping[str, str] | str | Path | None = None,
    *,
    user: Iterable[str] = (),
    item: Iterable[str] = (),
    cross: Iterable[str] = (),
    rest: str | None = None,
    shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    count: Iterable[str] = (),
    candidates: int = 500,
    item_bytes: int | None = None,
    user_bytes: int | None = None,
    requests: str | Path | Iterable[Request] | None = None,
    providers: Sequence[str] = ("auto",),
    threads: int = 1,
    prices: Path | None = None,
    choices: SplitChoices | None = None,
    clock: bool = True,
) -> Split:
    """Splits a model into one of the user's part, one of the item's and one that scores; checks them together.

    Args:
        model, sides, user, item, cross, rest, shapes, count, requests, providers, threads, prices: as for `optimize`.
            Inputs that nothing tags count as cross.
        candidates: N per request, for which the cut is chosen.
        item_bytes, user_bytes: how much may be handed over for an item, and for a user.
        choices: of an earlier split (`Split.choices`): the same split is made, whatever is faster now.
        clock: where several cuts should take about as long, they are timed. Without, prices alone decide, and the same
            files come out each time.

    Raises:
        SidesUnknown, UsageError: see `mari_onnx.sides.resolve`; a budget is too small.
        ModelError: the model cannot be read or run, or cannot be split.
        Unchanged: nothing can be computed beforehand.
        OutputsDiffer, CannotCompare: the check failed, or could not be made.
    """
    source = as_source(model)
    given = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    found = sides_of(source, sides, True, user=user, item=item, cross=cross, rest=rest, shapes=given, count=count)
    options = options_for(candidates, threads=threads, prices=prices, choices=choices.choices if choices else None)
    return split_source(
        source, found, options, Budget(item_bytes, user_bytes), choices=choices, clock=threads if clock else None,
        requests=requests, providers=providers,
    )  # fmt: skip


def split_source(
    source: Source,
    sides: Sides,
    options: Options,
    budget: Budget | None = None,
    *,
    choices: SplitChoices | None = None,
    clock: int | None = None,
    requests: str | Path | Iterable[Request] | None = None,
    providers: Sequence[str] = ("auto",),
    progress: Progress | None = None,
    **changes: Any,
) -> Split:
    """`split` of a source that was read. clock: threads with which close plans are timed; None for none. changes:
    fields of the check's `Settings`. Raises as `split` does.
    """
    from mari_onnx.runtime import require

    if sides.batched:
        raise UsageError("a model for several requests cannot be split", "leave --batched out")
    source = with_given_shapes(source, sides)
    options = at_its_number(options, source.model, sides)
    recorded = as_requests(requests, signature(source.model), sides)
    for provider in providers:
        require(provider)
    notes: list[str] = []
    for items in (True, False):
        work = _Work(source, sides, options, budget or Budget(), items, choices.cut if choices else None, clock)
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
        if answer.ok or work.plan is None or not work.plan.rows:
            break
        assert answer.result is not None
        if answer.result.verdict == CANNOT_COMPARE:
            break
        notes.append(f"the item's part is computed per request: made beforehand, {answer.result.reasons[0]}")
    _refuse(answer)
    if choices is not None and work.chosen is not None and choices.cut != work.chosen:
        notes.append("the choices that were given do not fit; others were made")
    return work.finished(answer, notes)


def unchecked(
    source: Source, sides: Sides, options: Options, budget: Budget | None = None, clock: int | None = None
) -> Split:
    """`split_source` without the check, for benchmarks: nothing says that the parts are equal to the source."""
    source = with_given_shapes(source, sides)
    options = dataclasses.replace(at_its_number(options, source.model, sides), assume=True)
    work = _Work(source, sides, options, budget or Budget(), True, None, clock)
    rewrite = work.rewritten(source.model, sides, options)
    work.placed(rewrite)
    return work.finished(Checked(rewrite, None, options), [])


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


class _Work:
    """One way to split a source: its rewrites, and the files of the last one."""

    def __init__(
        self,
        source: Source,
        sides: Sides,
        options: Options,
        budget: Budget,
        items: bool,
        chosen: Cut | None,
        clock: int | None,
    ):
        self.source, self.sides, self.options = source, sides, options
        self.chosen, self.clock = chosen, clock
        made = upgraded(source.model)
        self.model, self.notes = made.model, list(made.notes)
        assert options.prices is not None
        self.planner = Planner(self.model, options.prices, options.candidates, budget, options.target, items)
        self.plan: Plan | None = None
        self.slower = frozenset[str]()
        self.points: list[Point] = []
        self.manifest: Manifest | None = None
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def rewritten(self, model: onnx.ModelProto, sides: Sides, options: Options) -> Rewrite:
        """The rewrite whose draft is best to cut; see `mari_onnx.engine.rewrite`."""
        from mari_onnx import engine

        self.plan = self._again(sides, options)
        if self.plan is None:
            joined = engine.rewrite(self.model, sides, dataclasses.replace(options, split="joined"))
            left = joined.left_for_time
            made = [
                engine.rewrite(self.model, sides, dataclasses.replace(options, split="apart", slower=slower))
                for slower in dict.fromkeys([left, frozenset[str]()])
            ]
            usable = [each for each in [*made, joined] if each.draft is not None]
            if not usable:
                raise ModelError(f"{self._name} cannot be split: {joined.reason}")
            plans, self.points = self.planner.plans(usable)
            self.plan = self._fastest(plans)
        if not sides and not self.plan.user and not self.plan.item:
            raise unknown_sides(self.source)
        if self.plan.user is None and self.plan.item is None:
            raise Unchanged(
                f"nothing in {self._name} can be computed before a request: no operator reads inputs of the user alone "
                "or of the item alone with a result that is worth handing over",
                "mari-onnx optimize computes the user's part once per request",
            )
        self.chosen, self.slower = self.plan.cut, self.plan.rewrite.left_for_time
        return dataclasses.replace(self.plan.rewrite, changed=True)

    def _again(self, sides: Sides, options: Options) -> Plan | None:
        """The plan that was chosen before, of a rewrite with these options; None where there is none."""
        if self.chosen is None:
            return None
        from mari_onnx import engine

        slower = options.slower if options.slower is not None else self.slower
        how = dataclasses.replace(options, split=self.chosen.form, slower=slower)
        made = engine.rewrite(self.model, sides, how)
        return self.planner.exactly(made, self.chosen) if made.draft is not None else None

    def _fastest(self, plans: Sequence[Plan]) -> Plan:
        """By the prices, and where plans are close by the clock."""
        timed = contenders(plans)
        if self.clock is None or len(timed) < 2 or self.source.size > LARGEST:
            return plans[0]
        threads, self.clock = self.clock, None  # once: a rewrite with less in it keeps the choice where it can
        found = fastest(timed, self._written, self.source.model, self.sides, self.options.candidates, threads)
        return dataclasses.replace(found, cut=dataclasses.replace(found.cut, by="clock")) if found else plans[0]

    @property
    def _name(self) -> str:
        return self.source.path.name or "the model"

    def placed(self, _: Rewrite) -> Assembly:
        """The files of the last rewrite, as what the check runs."""
        assert self.plan is not None
        return Assembly(self._written(self.plan))

    def _written(self, plan: Plan) -> Path:
        """The files of a plan, in a temporary folder."""
        self.folder = tempfile.TemporaryDirectory(prefix="mari-onnx-")
        folder = Path(self.folder.name)
        parts = {}
        for name, part in (("user", plan.user), ("item", plan.item), ("score", plan.score)):
            if part is None:
                continue
            set_metadata(part.model, {PART_KEY: name, VERSION_KEY: __version__, SOURCE_KEY: self.source.sha256})
            path = folder / f"{name}.onnx"
            save(part.model, path, external=self.source.external)
            files = manifests.files(folder, path.name)
            inputs = tuple(t.name for t in part.inputs if t.name in {i.name for i in signature(part.model).inputs})
            size = sum(f.stat().st_size for f in files)
            outputs = tuple(t.name for t in part.outputs)
            parts[name] = PartInfo(path.name, manifests.digest(files), size, inputs, outputs)
        self.manifest = self._manifest(plan, parts)
        (folder / manifests.FILE).write_text(self.manifest.to_json(), encoding="utf-8")
        return folder

    def _manifest(self, plan: Plan, parts: Mapping[str, PartInfo]) -> Manifest:
        draft = plan.rewrite.draft
        assert draft is not None
        symbol, planner = candidate_symbol(draft), self.planner
        sig = signature(self.source.model)
        stored = draft.stored

        def handed(t: Any) -> TensorInfo:
            shape = tuple(dimension(size, symbol) for size in t.shape or ())
            return TensorInfo(t.name, numpy_name(t), shape, row_axis(t), planner.bytes_of([t]), t.node is not None)

        def taken(i: Input) -> InputInfo:
            side = "packed" if i.name in self.sides.columns else self.sides.side(i.name)
            if side is None:
                whole = "user" if stored[i.name].deps == {"user"} else "cross"
                side = "count" if i.name in self.sides.counts else whole
            axis = row_axis(stored[i.name]) if side != "user" else self.sides.axis_of(i.name)
            if side == "user" and (axis is None or len(i.shape) <= axis or stored[i.name].shape is None
                                   or stored[i.name].known[axis] != 1):  # fmt: skip
                axis = None
            return InputInfo(i.name, i.type, i.shape, axis, side)

        words = {t.name: plan.rates.words(t) for t in draft.outputs}
        known = {t.name for t in (*plan.state, *plan.rows)}
        return Manifest(
            {"file": self.source.path.name, "sha256": self.source.sha256},
            self.sides.to_dict(),
            tuple(map(taken, sig.inputs)),
            tuple(OutputInfo(o.name, o.type, o.shape, words.get(o.name, "cross")) for o in sig.outputs),
            parts,
            tuple(map(handed, plan.state)),
            tuple(map(handed, plan.rows)),
            tuple(n for n in parts["score"].inputs if n not in known),
            self.options.candidates,
            plan.seconds,
        )

    def finished(self, answer: Checked, notes: list[str]) -> Split:
        """The split that was checked."""
        assert self.plan is not None
        assert self.manifest is not None
        assert self.folder is not None
        notes = [*self.notes, *notes, *(f"undone: {each}" for each in answer.incidents)]
        choices = SplitChoices(choices_of(answer.rewrite, answer.options, self.source.sha256), self.plan.cut)
        folder = Path(self.folder.name)
        return Split(folder, self.manifest, self.plan, self.points, choices, answer.result, notes, self.folder)

