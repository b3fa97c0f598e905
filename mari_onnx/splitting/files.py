"""The files of a plan: its models and their manifest.

In: a plan, and the source that it splits. Out: a temporary folder, and the `Manifest` in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import helper

from mari_onnx.model.provenance import set_metadata
from mari_onnx.model.save import save
from mari_onnx.model.signature import Input, signature
from mari_onnx.splitting import manifest as manifests
from mari_onnx.splitting.manifest import InputInfo, Manifest, OutputInfo, PartInfo, TensorInfo
from mari_onnx.splitting.parts import candidate_symbol, dimension
from mari_onnx.splitting.rates import row_axis
from mari_onnx.version import __version__

if TYPE_CHECKING:
    from mari_onnx.engine.ir.value import Tensor
    from mari_onnx.model.load import Source
    from mari_onnx.sides.resolve import Sides
    from mari_onnx.splitting.plan import Planner
from mari_onnx.splitting.ways import Plan

PART_KEY, VERSION_KEY, SOURCE_KEY = "mari_onnx.part", "mari_onnx.version", "mari_onnx.source_sha256"


def written(
    plan: Plan, planner: Planner, source: Source, sides: Sides, candidates: int
) -> tuple[tempfile.TemporaryDirectory[str], Manifest]:
    """A folder with the files of a plan. planner: that made it. candidates: the N that it was made for."""
    kept = tempfile.TemporaryDirectory(prefix="mari-onnx-")
    folder, parts = Path(kept.name), {}
    for name, part in (("user", plan.user), ("item", plan.item), ("score", plan.score)):
        if part is None:
            continue
        # The hashes of user.onnx and item.onnx are the keys of states and rows. They do not name the source, so that
        # these stay valid where only layers of score.onnx were trained further.
        named = {SOURCE_KEY: source.sha256} if name == "score" else {}
        set_metadata(part.model, {PART_KEY: name, VERSION_KEY: __version__, **named})
        path = folder / f"{name}.onnx"
        save(part.model, path, external=source.external)
        files = manifests.files(folder, path.name)
        inputs = tuple(t.name for t in part.inputs if t.name in {i.name for i in signature(part.model).inputs})
        size = sum(f.stat().st_size for f in files)
        outputs = tuple(t.name for t in part.outputs)
        parts[name] = PartInfo(path.name, manifests.digest(files), size, inputs, outputs)
    manifest = _manifest(plan, planner, source, sides, candidates, parts)
    put(folder, manifest)
    return kept, manifest


def put(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of a temporary folder."""
    (folder / manifests.FILE).write_text(manifest.to_json(), encoding="utf-8")


def _manifest(
    plan: Plan, planner: Planner, source: Source, sides: Sides, candidates: int, parts: Mapping[str, PartInfo]
) -> Manifest:
    draft = plan.way.rewrite.draft
    assert draft is not None
    symbol, stored = candidate_symbol(draft), draft.stored
    sig = signature(source.model)

    types = {i.name: i.type for i in signature(plan.score.model).inputs}

    def handed(t: Tensor) -> TensorInfo:
        shape = tuple(dimension(size, symbol) for size in t.shape or ())
        kind = types.get(t.name) or str(np.dtype(helper.tensor_dtype_to_np_dtype(t.dtype)))
        size = planner.elements(t) * np.dtype(object if kind == "string" else kind).itemsize
        return TensorInfo(t.name, kind, shape, row_axis(t), size, t.node is not None)

    def taken(i: Input) -> InputInfo:
        side = "packed" if i.name in sides.columns else sides.side(i.name)
        if side is None:
            whole = "user" if stored[i.name].deps == {"user"} else "cross"
            side = "count" if i.name in sides.counts else whole
        axis = row_axis(stored[i.name]) if side != "user" else sides.axis_of(i.name)
        if side == "user" and (axis is None or len(i.shape) <= axis or stored[i.name].shape is None
                               or stored[i.name].known[axis] != 1):  # fmt: skip
            axis = None
        return InputInfo(i.name, i.type, i.shape, axis, side)

    words = {t.name: plan.way.rates.words(t) for t in draft.outputs}
    known = {t.name for t in (*plan.way.state, *plan.way.rows)}
    return Manifest(
        {"file": source.path.name, "sha256": source.sha256},
        sides.to_dict(),
        tuple(map(taken, sig.inputs)),
        tuple(OutputInfo(o.name, o.type, o.shape, words.get(o.name, "cross")) for o in sig.outputs),
        parts,
        tuple(map(handed, plan.way.state)),
        tuple(map(handed, plan.way.rows)),
        tuple(n for n in parts["score"].inputs if n not in known),
        candidates,
        plan.way.seconds,
    )
