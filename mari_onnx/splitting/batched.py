"""score.batched.onnx: the scoring part of a split for several requests in one run (docs/batching.md).

In: the folder of a split that was checked. Out: one more file in it, and the manifest with it. score.onnx is rewritten
as `optimize --batched` would rewrite it, where states are the user's and rows the item's; then states of different
users and rows made in a foreign batch are scored together, and compared with separate runs of the source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mari_onnx.api import as_source
from mari_onnx.api.several import mixing
from mari_onnx.errors import CannotBatch, MariError, first_line
from mari_onnx.model.dims import symbols
from mari_onnx.model.load import load
from mari_onnx.model.nodes import all_names
from mari_onnx.model.provenance import set_metadata
from mari_onnx.model.save import save
from mari_onnx.model.signature import signature
from mari_onnx.parity.guard import Checked, optimize_checked
from mari_onnx.sides.resolve import INDEX_NAMES, METADATA_KEY, Sides
from mari_onnx.splitting import manifest as manifests
from mari_onnx.splitting.assembly import Assembly
from mari_onnx.splitting.files import PART_KEY, SOURCE_KEY, VERSION_KEY, put
from mari_onnx.splitting.manifest import BatchedInfo, Manifest, PartInfo
from mari_onnx.splitting.rates import row_axis
from mari_onnx.version import __version__

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Options, Rewrite
    from mari_onnx.engine.ir.value import Tensor
    from mari_onnx.model.load import Source

PART, FILE = "batched", "score.batched.onnx"


def batched_part(
    folder: Path,
    manifest: Manifest,
    outputs: Sequence[Tensor],
    source: Source,
    sides: Sides,
    options: Options,
    **check: Any,
) -> tuple[Manifest, Checked]:
    """Makes and checks the file; rewrites that the check finds wrong are undone.

    Args:
        folder, manifest: of the split, which was checked. outputs: of its draft.
        source, sides, options: that the split was made of and with; `sides.batched` says which form.
        check: further arguments of `optimize_checked`.

    Returns:
        The manifest with the file, and what the check says.

    Raises:
        CannotBatch: it cannot be made.
    """
    made = Batching(folder, manifest, outputs, str(sides.batched), sides.index_name, source.external)
    answer = optimize_checked(
        source.model,
        sides,
        # What was chosen for the source says nothing of nodes of score.onnx.
        dataclasses.replace(options, prices=None, skip=frozenset(), declined={}, slower=None, unchanged=False),
        source=source.path if source.path.is_file() and not sides.shapes else None,
        engine=made.rewritten,
        place=made.placed,
        **check,
    )
    return made.manifest, answer


class Batching:
    """Rewrites score.onnx; its methods stand in for the engine and for what the check runs.

    Args:
        folder, manifest: of the split. outputs: of its draft. external: weights are in a file of their own.
        form: "grid", "index" or "offsets". index_name: of the input that the last two add.

    Raises:
        CannotBatch: an output does not have one row per candidate, and not one for each request.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        outputs: Sequence[Tensor],
        form: str,
        index_name: str | None = None,
        external: bool = False,
    ):
        self.folder, self.manifest, self.external = folder, manifest, external
        self.score = load(folder / manifest.parts["score"].file)
        # What is handed over and is an output as it is, the caller has already.
        given = {i.name for i in self.score.graph.input}
        made = [o for o in self.score.graph.output if o.name not in given]
        del self.score.graph.output[:]
        self.score.graph.output.extend(made)
        self.sides = sides_of_score(manifest, self.score, form, index_name)
        self._axes = {t.name: _axis(t, form) for t in outputs}

    def rewritten(self, _: onnx.ModelProto, sides: Sides, options: Options) -> Rewrite:
        """score.onnx for several requests; the source and its sides are what the check goes by."""
        from mari_onnx import engine

        made = engine.rewrite(self.score, self.sides, dataclasses.replace(options, prices=None, split=""))
        if not made.changed:
            raise refused(sides.batched, made.reason)
        return dataclasses.replace(made, tensor_map={})  # tensors of score.onnx are not those of the source

    def placed(self, rewrite: Rewrite) -> Assembly:
        """The folder with the file, as what the check runs."""
        said = {PART_KEY: PART, VERSION_KEY: __version__, SOURCE_KEY: self.manifest.source["sha256"]}
        set_metadata(rewrite.model, {**said, METADATA_KEY: self.sides.to_json()})
        for file in manifests.files(self.folder, FILE):
            file.unlink(missing_ok=True)
        save(rewrite.model, self.folder / FILE, external=self.external)
        files, has = manifests.files(self.folder, FILE), signature(rewrite.model)
        part = PartInfo(
            FILE,
            manifests.digest(files),
            sum(file.stat().st_size for file in files),
            tuple(each.name for each in has.inputs),
            tuple(each.name for each in has.outputs),
        )
        form = BatchedInfo(str(self.sides.batched), self.sides.added, {o: self._axes[o] for o in part.outputs})
        parts = {**self.manifest.parts, PART: part}
        self.manifest = dataclasses.replace(self.manifest, parts=parts, batched=form)
        put(self.folder, self.manifest)
        return Assembly(self.folder, batched=True)


def sides_of_score(
    manifest: Manifest, score: onnx.ModelProto, form: str | None = None, index_name: str | None = None
) -> Sides:
    """The sides of score.onnx: states are the user's, rows the item's. What has no row per candidate belongs to the
    request, as a state does, and keeps its dimensions.
    """
    axes = {t.name: t.axis for t in manifest.rows} | {
        i.name: i.axis for i in manifest.inputs if i.name in manifest.cross
    }
    counts = tuple(i.name for i in manifest.inputs if i.side == "count" and i.name in manifest.cross)
    sides: dict[str, str] = {}
    for name in manifest.parts["score"].inputs:
        if name not in counts:
            rows = "item" if any(t.name == name for t in manifest.rows) else "cross"
            sides[name] = rows if axes.get(name) is not None else "user"
    named = index_name or INDEX_NAMES.get(form or "")
    taken = all_names(score.graph) | {i.name for i in manifest.inputs}
    while named is not None and index_name is None and named in taken:
        named += "_"
    if named in taken:
        raise CannotBatch(
            f"score.onnx has a tensor {named} already", "give the new input another name: --index-name NAME"
        )
    own = {name: axes.get(name) for name in sides}
    return Sides(sides, axes=own, counts=counts, batched=form, index_name=named if form != "grid" else None)


def refuse_mixing(source: Source, sides: Sides) -> None:
    """Raises `CannotBatch` where a candidate's outputs depend on other candidates of the run, or nothing is tagged."""
    if (why := mixing(source.model, sides)) is not None:
        raise refused(sides.batched, why)


def refused(form: str | None, reason: str | None) -> CannotBatch:
    """Why there is no file for several requests."""
    return CannotBatch(
        f"no score.onnx for several requests (--batched {form}) can be made: {reason}",
        "leave --batched out and score one request at a time; docs/batching.md says what can be batched",
    )


def timed(folder: Path, manifest: Manifest, threads: int) -> tuple[Manifest, str]:
    """The manifest with the number of candidates up to which one run for several requests pays, by the clock; and in
    words for what it pays, or why that was not timed.
    """
    from mari_onnx.timing.several import pays_to, ratios, verdict

    files = [folder / manifest.parts[name].file for name in ("score", PART)]
    source = as_source(files[0])
    assert manifest.batched is not None
    sides = sides_of_score(manifest, source.model, manifest.batched.form, manifest.batched.index)
    try:
        found = ratios(source.model, sides, *files, threads=threads)
    except MariError as error:
        return manifest, f"it was not timed whether several requests in one run pay: {first_line(error)}"
    made = dataclasses.replace(manifest, batched=dataclasses.replace(manifest.batched, most=pays_to(found)))
    put(folder, made)
    return made, verdict(found)


def _axis(t: Tensor, form: str) -> int | None:
    """The candidates' axis of an output; None for one that has none.

    Raises:
        CannotBatch: it has a dimension that candidates and something else share, or is of unknown rank.
    """
    if t.shape is None:
        raise refused(form, f"the number of dimensions of the output {t.name} is not known")
    axis = row_axis(t)
    if axis is None and any("N" in symbols(size) for size in t.shape):
        raise refused(form, f"no dimension of the output {t.name} has the candidates, and nothing else, once")
    return axis
