"""The Python API behind `mari_onnx.optimize` and `mari_onnx.inspect`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mari_onnx import lossy
from mari_onnx.choices import CHOICES_KEY, Choices, choices_of, options_for
from mari_onnx.errors import CannotBatch, CannotCompare, OutputsDiffer, UsageError, first_line
from mari_onnx.model.load import Source, read
from mari_onnx.model.provenance import carry_over, differences, set_metadata
from mari_onnx.model.save import Staged, stage, stage_copy
from mari_onnx.model.signature import signature
from mari_onnx.model.upgrade import upgraded
from mari_onnx.parity.candidates import with_axes
from mari_onnx.parity.loss import MAX_TAU_LOSS
from mari_onnx.sides.resolve import METADATA_KEY, Sides, resolve, side_file_beside
from mari_onnx.sides.shapes import reshaped
from mari_onnx.suggest import unknown_sides
from mari_onnx.version import __version__

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Options, Rewrite
    from mari_onnx.parity.guard import Checked
    from mari_onnx.parity.requests.draw import Request
    from mari_onnx.report import Report

VERSION_KEY = "mari_onnx.version"
SOURCE_KEY = "mari_onnx.source_sha256"
REPORT_KEY = "mari_onnx.report"
PRICES_KEY = "mari_onnx.prices_sha256"
AS_CHOSEN = "the choices that were given leave all of it as it is"


@dataclass
class Optimized:
    """What `optimize` answers.

    Attributes:
        model: the output graph; the source's own where nothing was to be lifted.
        changed: False where the model is the source's.
        report: what was done and why not more.
        source: the model it came from.
        rewrite: what the engine answered.
    """

    model: onnx.ModelProto
    changed: bool
    report: Report
    source: Source
    rewrite: Rewrite

    @property
    def sides(self) -> Sides:
        """The sides that the rewrite went by."""
        return self.report.sides

    def measure(self) -> None:
        """Measures the redundant work of source and output; the report's `residual` has it.

        Raises:
            ModelError: the model cannot run.
        """
        from mari_onnx.report.explain_rest import measured

        output = self.model if self.changed else None
        folder = str(self.source.path.parent)
        self.report.residual = measured(self.source.model, output, self.report, folder)

    def what_if_separated(self) -> None:
        """Counts what a model would save whose user's part does not read the candidate; the report's `separation`."""
        from mari_onnx.engine import Options
        from mari_onnx.separation import savings

        source, options = upgraded(self.source.model).model, Options(self.report.candidates)
        self.report.separation = savings(source, self.sides, options).to_dict()

    def html(self) -> str:
        """The report as a page that works from disk, without a network."""
        from mari_onnx.report.html import page

        return page(self.source.model, self.rewrite, self.report)

    def stage(self, path: str | Path) -> Staged:
        """Writes the model beside `path`, byte for byte the source where nothing changed."""
        if not self.changed and not self.source.external and self.source.path.is_file():
            return stage_copy(self.source.path, path)
        return stage(self.model, path, external=self.source.external)

    def save(self, path: str | Path) -> None:
        """Writes the model to `path`, whole or not at all."""
        with self.stage(path) as staged:
            staged.commit()


def optimize(
    model: str | Path | onnx.ModelProto,
    sides: Sides | Mapping[str, str] | str | Path | None = None,
    *,
    user: Iterable[str] = (),
    item: Iterable[str] = (),
    cross: Iterable[str] = (),
    rest: str | None = None,
    shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    count: Iterable[str] = (),
    batched: str | None = None,
    index: str | Iterable[str] = (),
    index_name: str | None = None,
    candidates: int | Mapping[int, float] | None = None,
    check: bool = True,
    requests: str | Path | Iterable[Request] | None = None,
    providers: Sequence[str] = ("auto",),
    target: str = "cpu",
    threads: int = 1,
    prices: Path | None = None,
    choices: Choices | None = None,
    if_slower: str | None = None,
    user_weights: str | None = None,
    max_tau_loss: float = MAX_TAU_LOSS,
) -> Optimized:
    """Rewrites a model so that what depends on the user alone is computed once per request.

    Args:
        model: a path or a model; it is only read.
        sides: `Sides`, a mapping of input name to side, or the path of a side file. Without it,
            the model's metadata, a side file beside the model, and its dimensions are asked.
        user, item, cross, rest, count: as the flags of the command line.
        shapes: input name -> dimensions that the file lacks or fixes: sizes, symbols such as "N", None.
        batched: write a model for several requests in one run, "grid", "index" or "offsets" (docs/batching.md);
            needs the check.
        index: the input that says, for each candidate, which row of the user inputs is its user's.
        index_name: the name of the input that "index" and "offsets" add.
        candidates: the N that rewrites have to pay for; or several, N -> how much its time counts. By default 16, 64
            and 500, which count alike.
        check: run both models and compare; a difference raises. Without it nothing is assumed that a run has to tell.
        requests: recorded requests, or their file, to compare on in addition to drawn ones.
        providers: what to run the check on; see `parity.Settings`.
        target: what rewrites are chosen for: onnxruntime on the "cpu", any runtime ("portable"), or "cuda".
        threads, prices, choices: see `mari_onnx.choices.options_for`.
        if_slower: also time source and output against each other after the check, and where the output is slower
            "warn" in the report, "undo" what makes it so, or "fail".
        user_weights: "int8": 8-bit weights for products of the user that are faster so. The output is then not equal to
            the source; it is judged on `requests` by the order of candidates, of which `max_tau_loss` may be lost.

    Raises:
        SidesUnknown, UsageError: see `mari_onnx.sides.resolve`.
        ModelError: the model cannot be read or run.
        OutputsDiffer, CannotCompare: the check failed, or could not be made.
        Slower: the output is slower, and `if_slower` is "fail".
    """
    source = as_source(model)
    given = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    tags = {"user": user, "item": item, "cross": cross, "rest": rest, "shapes": given, "count": count}
    tags |= {"index": [index] if isinstance(index, str) else [*index], "index_name": index_name}
    found = sides_of(source, sides, check, batched=batched, **tags)
    options = options_for(candidates, target=target, threads=threads, prices=prices, choices=choices)
    if not check and found.several:
        what = "index" if found.indices else "batched"
        raise UsageError(f"{what} needs the check", "only running the model shows whether its requests mix")
    if user_weights is not None:
        lossy.refuse(found, target, check, requests is not None)
    if not check:
        return rewritten(source, found, options)
    with (
        tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder,
        checked(
            source,
            found,
            Path(folder, "optimized.onnx"),
            options,
            requests=requests,
            providers=providers,
            if_slower=if_slower,
            threads=threads,
            max_tau_loss=max_tau_loss if user_weights is not None else None,
        ) as (done, _),
    ):
        return done


def inspect(
    model: str | Path | onnx.ModelProto,
    sides: Sides | Mapping[str, str] | str | Path | None = None,
    *,
    candidates: int | Mapping[int, float] | None = None,
    measure: bool = False,
    what_if: str | None = None,
) -> Report:
    """What `optimize` would do with the model, and why not more; nothing is written.

    What `optimize` would assume, for its check to verify, is assumed here too and marked in the report (`assumptions`).

    Args:
        model, sides, candidates: as for `optimize`.
        measure: run source and output, and see which work gives results equal for all candidates.
        what_if: "separation": count what a retrained model would save if the user's tokens, or columns, did not read
            the candidate, for each layer at which the two mix for good (`Report.separation`).

    Raises:
        UsageError: `what_if` is something else.
    """
    if what_if not in (None, "separation"):
        raise UsageError(f"what_if {what_if!r} is not known", 'it may be "separation"')
    source = as_source(model)
    done = rewritten(source, sides_of(source, sides), options_for(candidates, assume=True))
    if measure:
        done.measure()
    if what_if is not None:
        done.what_if_separated()
    return done.report


def as_source(model: str | Path | onnx.ModelProto) -> Source:
    """The model with its origin; one given as a message has no path."""
    if isinstance(model, str | Path):
        return read(model)
    from mari_onnx.model.topological_sort import put_in_order
    from mari_onnx.model.validate import check_structure

    model = put_in_order(model, copy=True)
    check_structure(model)
    data = model.SerializeToString(deterministic=True)
    return Source(model, Path(), hashlib.sha256(data).hexdigest(), False, len(data))


def with_given_shapes(source: Source, sides: Sides) -> Source:
    """The source with the dimensions that `sides.shapes` gives; its file is as it was.

    Raises:
        UsageError: see `mari_onnx.sides.shapes.with_shapes`.
    """
    return dataclasses.replace(source, model=reshaped(source.model, sides.shapes))


def at_its_number(options: Options, model: onnx.ModelProto, sides: Sides) -> Options:
    """The options with the only number of candidates that a model takes which was exported with a fixed batch.

    A batch of 1 is not taken for a number of candidates: with one there would be nothing to save.
    """
    from mari_onnx.parity.layout import Layout

    fixed = Layout(signature(model), sides).fixed_n
    if fixed is None or fixed < 2:
        return options
    return dataclasses.replace(options, candidates=fixed, weights={fixed: 1.0})


def rewritten(
    source: Source,
    sides: Sides,
    options: Options | None = None,
) -> Optimized:
    """The rewrite of `source`, not checked.

    Args:
        options: by default `options_for()`.

    Raises:
        SidesUnknown: neither tags nor the graph say whose inputs are whose.
    """
    source = with_given_shapes(source, sides)
    options = at_its_number(options or options_for(), source.model, sides)
    return _finished(source, sides, options, _engine(source)(source.model, sides, options))


@contextlib.contextmanager
def checked(
    source: Source,
    sides: Sides,
    path: Path,
    options: Options | None = None,
    *,
    requests: str | Path | Iterable[Request] | None = None,
    providers: Sequence[str] = ("auto",),
    if_slower: str | None = None,
    threads: int = 1,
    max_tau_loss: float | None = None,
    progress: Any = None,
) -> Iterator[tuple[Optimized, Staged]]:
    """The rewrite of `source`, checked on what is staged for `path`; the caller may commit it.

    A rewrite with which outputs differ is dropped and all is done again; the report's incidents
    tell. Then source and output are timed, where `if_slower` says so, on so many threads. With `max_tau_loss`, the
    user's products get 8-bit weights (`optimize`, user_weights).

    Raises:
        Slower: the output is slower, and `if_slower` is "fail".
        CannotBatch: an output for several requests is asked for, and cannot be made.
        SidesUnknown: as `rewritten`.
        OutputsDiffer: outputs differ whatever is dropped.
        CannotCompare: the source gives nothing to compare with.
    """
    from mari_onnx.parity.guard import optimize_checked
    from mari_onnx.parity.requests.recorded import as_requests
    from mari_onnx.parity.result import CANNOT_COMPARE
    from mari_onnx.runtime import require

    source = with_given_shapes(source, sides)
    options = at_its_number(options or options_for(), source.model, sides)
    recorded = as_requests(requests, signature(source.model), sides)
    for provider in providers:
        require(provider)  # before minutes of work
    if sides.batched:
        _refuse_taken(source.model, sides)
        _refuse_mixing(source.model, sides)
    staged: list[Staged] = []

    def place(rewrite: Rewrite) -> Path:
        while staged:
            staged.pop().discard()
        staged.append(_finished(source, sides, options, rewrite).stage(path))
        return staged[0].path

    def answered(how: Options) -> Checked:
        return optimize_checked(
            source.model,
            sides,
            how,
            source=source.path if source.path.is_file() and not sides.shapes else None,
            engine=_engine(source),
            place=place,
            requests=recorded,
            providers=tuple(providers),
            progress=progress,
        )

    try:
        answer, speed = answered(options), None
        if sides.batched and not answer.rewrite.changed:
            raise _not_batched(sides, answer.rewrite.reason)
        if if_slower is not None and not sides.batched and answer.ok and answer.result is not None:
            from mari_onnx.timing.speed import settled

            origin = source.path if source.path.is_file() and not sides.shapes else source.model
            timed = (source.model, sides, origin, answer, staged[0].path, answered)
            answer, speed = settled(*timed, if_slower=if_slower, threads=threads, progress=progress)
        if answer.result is not None and not answer.result.ok:
            if answer.result.verdict == CANNOT_COMPARE:
                raise CannotCompare(
                    f"the optimized model cannot be compared with the source: {answer.result}",
                    "nothing was written; --no-check writes the model without comparing it",
                )
            raise OutputsDiffer(
                f"the optimized model's outputs differ from the source's: {answer.result}",
                "nothing was written. First make sure that inputs tagged user are equal for all "
                "candidates; if they are, this is a defect of mari-onnx, please report it",
            )
        done = _finished(source, sides, answer.options, answer.rewrite)
        done.report.incidents = list(answer.incidents)
        done.report.speed = speed
        if if_slower is not None and sides.batched and answer.result is not None:
            done.report.notes.append(_pays_until(source, sides, answer.options, staged[0].path, threads))
        if answer.result is None:
            while staged:
                staged.pop().discard()
            staged.append(done.stage(path))
        else:
            done.report.check = answer.result.to_dict()
        if max_tau_loss is not None:
            done = lossy.with_user_weights(done, staged, path, recorded, max_tau_loss, threads)
        yield done, staged[0]
    finally:
        while staged:
            staged.pop().discard()


def _engine(source: Source) -> Callable[[onnx.ModelProto, Sides, Options], Rewrite]:
    """The engine's `rewrite`, which refuses where sides are missing and leaves its own outputs."""
    from mari_onnx import engine

    metadata = {entry.key: entry.value for entry in source.model.metadata_props}

    def rewrite(model: onnx.ModelProto, sides: Sides, options: Options) -> Rewrite:
        if sides.batched and METADATA_KEY in metadata and METADATA_KEY in (p.key for p in model.metadata_props):
            return engine.Rewrite(model, False, [], reason=f"it takes several requests already ({sides.batched})")
        if sides.batched:  # prices and the clock compare with a source, and none takes several requests
            options = dataclasses.replace(options, prices=None)
        made = upgraded(model)
        result = engine.rewrite(made.model, sides, options)
        if options.unchanged and result.changed:
            result = dataclasses.replace(result, model=model, changed=False, reason=AS_CHOSEN, assumptions=[])
        if made.failed is not None:
            result = dataclasses.replace(result, reason=made.failed)
        own = metadata.get(VERSION_KEY) == __version__
        if own and metadata.get(METADATA_KEY) == sides.to_json():
            # Written by this very version for these sides: what it left, it leaves again.
            return dataclasses.replace(
                result, changed=False, reason="it was optimized by this version already", assumptions=[]
            )
        if not sides and not result.changed and _could_be_tagged(model):
            raise unknown_sides(source)
        return result

    return rewrite


def _finished(source: Source, sides: Sides, options: Options, result: Rewrite) -> Optimized:
    """The rewrite with what it has to carry of the source, its provenance, and its report."""
    from mari_onnx.report import build

    report = build(source.model, result, sides, options.candidates)
    report.choices = choices_of(result, options, source.sha256).to_dict()
    if result.estimated:
        report.estimated = {n: round(ratio, 2) for n, ratio in sorted(result.estimated.items())}
    report.source = _file_facts(source)
    report.notes = list(upgraded(source.model).notes) if result.changed else []
    if sides.batched and result.changed:
        report.notes.append(_per_request(report))
    if result.alone is not None:
        n, ratio = result.alone
        report.notes.append(
            f"for {n} candidates alone another choice is faster (--candidates {n}), an estimated {ratio:.1f}x; "
            "for few candidates it is the slower one"
        )
    if not result.changed:
        report.after = report.before
        return Optimized(source.model, False, report, source, result)
    output = result.model
    carry_over(source.model, output)
    set_metadata(
        output,
        {
            METADATA_KEY: sides.to_json(),
            VERSION_KEY: __version__,
            SOURCE_KEY: source.sha256,
            REPORT_KEY: json.dumps(report.short()),
            CHOICES_KEY: json.dumps(report.choices),
            **({PRICES_KEY: options.prices.sha256} if options.prices is not None and options.prices.foreign else {}),
        },
    )
    if wrong := differences(source.model, output, [sides.added] if sides.added is not None else []):
        raise RuntimeError("the rewrite changed the model's interface: " + "; ".join(wrong))
    return Optimized(output, True, report, source, result)


def _per_request(report: Report) -> str:
    """The work of a run for several requests, by request and by candidate."""
    before, after = report.before, report.after
    return (
        f"several requests in one run ({report.sides.batched}) of {report.candidates} candidates each: a request takes "
        f"{after.flops * report.candidates:.3g} FLOPs ({before.flops * report.candidates:.3g} in the source), of which "
        f"{after.once_flops * report.candidates:.3g} are the user's; a candidate {after.flops:.3g} ({before.flops:.3g})"
    )


def _refuse_mixing(model: onnx.ModelProto, sides: Sides) -> None:
    """Raises `CannotBatch` where a candidate's outputs depend on other candidates of the run."""
    from mari_onnx.parity.domains.domains import domains
    from mari_onnx.parity.layout import Layout
    from mari_onnx.parity.several.mixing import mixes

    if not sides:
        raise _not_batched(sides, "no input is tagged, so nothing says which inputs have a row for each request")
    layout = Layout(signature(model), sides)
    where = mixes(model, layout, domains(model, layout)[0])
    if where is not None:
        raise _not_batched(sides, where)


def _pays_until(source: Source, sides: Sides, options: Options, several: Path, threads: int) -> str:
    """From which N on several requests in one run stop paying, by the clock; why not, where that cannot be timed."""
    from mari_onnx.errors import MariError
    from mari_onnx.timing.several import until

    one = rewritten(source, dataclasses.replace(sides, batched=None), options)
    try:
        with one.stage(several.with_name(f"{several.name}.one")) as single:
            return until(source.model, sides, single.path, several, threads=threads)
    except MariError as error:
        return f"it was not timed whether several requests in one run pay: {first_line(error)}"


def _refuse_taken(model: onnx.ModelProto, sides: Sides) -> None:
    """Raises `UsageError` where the input that the output has and the source has not has a name of the source."""
    from mari_onnx.model.nodes import all_names

    if sides.added is not None and sides.added in all_names(model.graph):
        raise UsageError(
            f"the model has a tensor {sides.added!r} already, and --batched {sides.batched} adds an input of that name",
            "give the new input another name: --index-name NAME",
        )


def _not_batched(sides: Sides, reason: str | None) -> CannotBatch:
    return CannotBatch(
        f"no output for several requests (--batched {sides.batched}) can be made: {reason}",
        "leave --batched out and run one request at a time; docs/batching.md says what can be batched",
    )


def sides_of(
    source: Source, sides: Sides | Mapping[str, str] | str | Path | None, run: bool = True, **flags: Any
) -> Sides:
    """The sides of a source. sides: see `optimize`. run: the source may be run to find out. flags: of `resolve`."""
    if isinstance(sides, Sides):
        given = {name: flags[name] for name in ("batched", "index_name") if flags.get(name)}
        indices = tuple(flags.get("index", ())) or sides.indices
        sides = dataclasses.replace(sides, indices=indices, **given)
        return with_axes(source.model, sides, source.model if run else None)
    file = sides if isinstance(sides, str | Path) else None
    if isinstance(sides, Mapping):
        from mari_onnx.sides.resolve import SIDES, fnmatch_escape

        for side in SIDES:
            named = [fnmatch_escape(name) for name, each in sides.items() if each == side]
            flags[side] = [*flags.get(side, ()), *named]
    if file is None and source.path.is_file():
        file = side_file_beside(source.path)
    metadata = {entry.key: entry.value for entry in source.model.metadata_props}
    found = resolve(signature(source.model), file=file, metadata=metadata.get(METADATA_KEY), **flags)
    return with_axes(source.model, found, source.model if run else None)


def _could_be_tagged(model: onnx.ModelProto) -> bool:
    return any(not each.rank_known or each.shape for each in signature(model).inputs)


def _file_facts(source: Source) -> dict[str, Any]:
    facts: dict[str, Any] = {"sha256": source.sha256, "bytes": source.size}
    return {"path": str(source.path), **facts} if source.path.name else facts
