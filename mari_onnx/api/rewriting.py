"""The rewrite of a source, and the rewrite that was checked on what is about to be written."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mari_onnx import lossy
from mari_onnx.api.given import at_its_number, with_given_shapes
from mari_onnx.api.optimized import VERSION_KEY, Optimized, finished
from mari_onnx.api.several import not_batched, refuse_mixing, refuse_taken
from mari_onnx.choices import options_for
from mari_onnx.errors import CannotCompare, MariError, OutputsDiffer, first_line
from mari_onnx.model.load import Source
from mari_onnx.model.save import Staged
from mari_onnx.model.signature import signature
from mari_onnx.model.upgrade import upgraded
from mari_onnx.parity.settings import Settings
from mari_onnx.sides.resolve import METADATA_KEY, Sides
from mari_onnx.suggest import unknown_sides
from mari_onnx.version import __version__

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Options, Rewrite
    from mari_onnx.parity.guard import Checked
    from mari_onnx.parity.requests.draw import Request

AS_CHOSEN = "the choices that were given leave all of it as it is"


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
    return finished(source, sides, options, _engine(source)(source.model, sides, options))


@contextlib.contextmanager
def checked(
    source: Source,
    sides: Sides,
    path: Path,
    options: Options | None = None,
    *,
    requests: str | os.PathLike[str] | Iterable[Request] | None = None,
    providers: Sequence[str] = ("auto",),
    if_slower: str | None = None,
    threads: int = 1,
    max_tau_loss: float | None = None,
    coverage: int = Settings.coverage,
    progress: Any = None,
) -> Iterator[tuple[Optimized, Staged]]:
    """The rewrite of `source`, checked on what is staged for `path`; the caller may commit it.

    A rewrite with which outputs differ is dropped and all is done again; the report's incidents
    tell. Then source and output are timed, where `if_slower` says so, on so many threads. With `max_tau_loss`, the
    user's products get 8-bit weights (`optimize`, user_weights). coverage: of the check's `Settings`.

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
        refuse_taken(source.model, sides)
        refuse_mixing(source.model, sides)
    staged: list[Staged] = []

    def place(rewrite: Rewrite) -> Path:
        while staged:
            staged.pop().discard()
        staged.append(finished(source, sides, options, rewrite).stage(path))
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
            coverage=coverage,
            progress=progress,
        )

    try:
        answer, speed = answered(options), None
        if sides.batched and not answer.rewrite.changed:
            raise not_batched(sides, answer.rewrite.reason)
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
        done = finished(source, sides, answer.options, answer.rewrite)
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


def _pays_until(source: Source, sides: Sides, options: Options, several: Path, threads: int) -> str:
    """From which N on several requests in one run stop paying, by the clock; why not, where that cannot be timed."""
    from mari_onnx.timing.several import until

    one = rewritten(source, dataclasses.replace(sides, batched=None), options)
    try:
        with one.stage(several.with_name(f"{several.name}.one")) as single:
            return until(source.model, sides, single.path, several, threads=threads)
    except MariError as error:
        return f"it was not timed whether several requests in one run pay: {first_line(error)}"


def _could_be_tagged(model: onnx.ModelProto) -> bool:
    return any(not each.rank_known or each.shape for each in signature(model).inputs)
