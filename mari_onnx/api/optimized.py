"""What a rewrite answers: the model with all that it has to carry of its source, and the report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mari_onnx.choices import CHOICES_KEY, choices_of
from mari_onnx.model.load import Source
from mari_onnx.model.provenance import carry_over, differences, set_metadata
from mari_onnx.model.save import Staged, stage, stage_copy
from mari_onnx.model.upgrade import upgraded
from mari_onnx.shown import Rows, Shown
from mari_onnx.sides.resolve import METADATA_KEY, Sides
from mari_onnx.version import __version__

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Options, Rewrite
    from mari_onnx.report import Report

VERSION_KEY = "mari_onnx.version"
SOURCE_KEY = "mari_onnx.source_sha256"
REPORT_KEY = "mari_onnx.report"
PRICES_KEY = "mari_onnx.prices_sha256"


@dataclass(repr=False)
class Optimized(Shown):
    """What `optimize` answers. Printed, it says what was gained and what was checked.

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

    def shown(self) -> tuple[str, Rows]:
        """See `Shown`."""
        from mari_onnx.report.brief import rows

        return f"Optimized: {self.source.path.name or 'a model'}", rows(self.report.to_dict())

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


def finished(source: Source, sides: Sides, options: Options, result: Rewrite) -> Optimized:
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


def _file_facts(source: Source) -> dict[str, Any]:
    facts: dict[str, Any] = {"sha256": source.sha256, "bytes": source.size}
    return {"path": str(source.path), **facts} if source.path.name else facts
