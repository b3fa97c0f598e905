"""The models of deepctr-torch, built over one set of features.

12 user, 3 context (request-level, so user side), 8 item and 2 cross id fields; 7 dense features
(3 user, 2 item, 2 cross); a history of 50 item ids with its length. Weights are random; embedding
tables and batch statistics are drawn anew, wide enough that every feature moves the output (the
package's own start is 1e-4, where errors would hide).
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def _stay_offline() -> None:
    """The package looks for a newer version online when imported; here it does not."""
    utils: Any = types.ModuleType("deepctr_torch.utils")
    utils.check_version = lambda version: None
    sys.modules.setdefault("deepctr_torch.utils", utils)


@dataclass(frozen=True)
class Sizes:
    """Extents of the corpus: table rows, embedding width, hidden widths, history length."""

    rows: int = 1000
    width: int = 16
    hidden: tuple[int, ...] = (512, 256, 128)
    history: int = 50
    fields: dict[str, int] = field(default_factory=lambda: {"u": 12, "c": 3, "i": 8, "x": 2})


SMALL = Sizes(rows=12, width=4, hidden=(16, 8), history=6, fields={"u": 4, "c": 1, "i": 3, "x": 1})

SIDE = {"u": "user", "c": "user", "i": "item", "x": "cross"}
DENSE = {"user": 3, "item": 2, "cross": 2}


@dataclass(frozen=True)
class Features:
    """Feature columns of one model and the side of each feature by name."""

    sparse: list[Any]
    dense: list[Any]
    history: list[Any]
    sides: dict[str, str]


def features(sizes: Sizes, shared_history: bool) -> Features:
    """Feature columns; `shared_history` lets the history use the candidate's table (DIN, DIEN)."""
    _stay_offline()
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat

    sides: dict[str, str] = {}
    sparse = []
    for prefix, count in sizes.fields.items():
        for k in range(count):
            sparse.append(SparseFeat(f"{prefix}{k}", sizes.rows, sizes.width))
            sides[f"{prefix}{k}"] = SIDE[prefix]
    dense = []
    for side, count in DENSE.items():
        for k in range(count):
            dense.append(DenseFeat(f"{side}_d{k}", 1))
            sides[f"{side}_d{k}"] = side
    names = ["i0", "i1"] if shared_history else ["i0"]
    history = []
    for name in names:
        table = name if shared_history else f"hist_{name}"
        column = SparseFeat(f"hist_{name}", sizes.rows, sizes.width, embedding_name=table)
        history.append(VarLenSparseFeat(column, sizes.history, "mean", length_name="hist_len"))
        sides[f"hist_{name}"] = "user"
    sides["hist_len"] = "user"
    return Features(sparse, dense, history, sides)


@dataclass(frozen=True)
class Entry:
    """One model of the corpus: how to build it, and whether it attends to its history."""

    build: Callable[[Features, Sizes], Any]
    attends: bool = False


def _model(name: str, *, dense: bool = True, linear: bool = True, history: bool = True, **options: Any) -> Entry:
    """A model of `(linear columns, dnn columns)`, or without `linear` of dnn columns alone.

    Options whose value is `"hidden"` take the corpus' hidden widths.
    """

    def build(f: Features, sizes: Sizes) -> Any:
        import deepctr_torch.models as models

        columns = f.sparse + (f.history if history else [])
        deep = columns + (f.dense if dense else [])
        given = {k: (sizes.hidden if v == "hidden" else v) for k, v in options.items()}
        first = [columns + f.dense] if linear else []
        return getattr(models, name)(*first, deep, task="binary", **given)

    return Entry(build)


def _multi_task(name: str, **options: Any) -> Entry:
    def build(f: Features, sizes: Sizes) -> Any:
        import deepctr_torch.models as models

        given = {k: (sizes.hidden if v == "hidden" else v) for k, v in options.items()}
        return getattr(models, name)(f.sparse + f.history + f.dense, **given)

    return Entry(build)


def _din(**options: Any) -> Entry:
    def build(f: Features, sizes: Sizes) -> Any:
        from deepctr_torch.models import DIN

        return DIN(f.sparse + f.history + f.dense, ["i0", "i1"], dnn_hidden_units=sizes.hidden, **options)

    return Entry(build, attends=True)


def _dien(gru: str) -> Entry:
    def build(f: Features, sizes: Sizes) -> Any:
        from deepctr_torch.models import DIEN

        return DIEN(
            f.sparse + f.history + f.dense,
            ["i0", "i1"],
            gru_type=gru,
            dnn_hidden_units=sizes.hidden,
        )

    return Entry(build, attends=True)


def _mlr() -> Entry:
    def build(f: Features, sizes: Sizes) -> Any:
        from deepctr_torch.models import MLR

        return MLR(f.sparse + f.history + f.dense, bias_feature_columns=f.sparse[:3])

    return Entry(build)


MODELS: dict[str, Entry] = {
    "wdl": _model("WDL", dnn_hidden_units="hidden"),
    "wdl_bn": _model("WDL", dnn_hidden_units="hidden", dnn_use_bn=True),
    "deepfm": _model("DeepFM", dnn_hidden_units="hidden"),
    "xdeepfm": _model("xDeepFM", dnn_hidden_units="hidden", cin_layer_size=(128, 64)),
    "afm": _model("AFM", dense=False),
    "ifm": _model("IFM", dense=False, dnn_hidden_units="hidden"),
    "difm": _model("DIFM", dense=False, dnn_hidden_units="hidden"),
    "autoint": _model("AutoInt", dnn_hidden_units="hidden"),
    "dcn_vector": _model("DCN", dnn_hidden_units="hidden", cross_parameterization="vector"),
    "dcn_matrix": _model("DCN", dnn_hidden_units="hidden", cross_parameterization="matrix"),
    "dcnmix": _model("DCNMix", dnn_hidden_units="hidden"),
    "fibinet": _model("FiBiNET", dnn_hidden_units="hidden"),
    "fibinet_all": _model("FiBiNET", dnn_hidden_units="hidden", bilinear_type="all"),
    "fibinet_each": _model("FiBiNET", dnn_hidden_units="hidden", bilinear_type="each"),
    "nfm": _model("NFM", dnn_hidden_units="hidden"),
    "mlr": _mlr(),
    "onn": _model("ONN", dnn_hidden_units="hidden", history=False),
    "pnn": _model("PNN", linear=False, dnn_hidden_units="hidden"),
    "pnn_outer": _model("PNN", linear=False, dnn_hidden_units="hidden", use_outter=True),
    "ccpm": _model("CCPM", dense=False, dnn_hidden_units="hidden"),
    "afn": _model("AFN", dense=False, afn_dnn_hidden_units="hidden"),
    "din": _din(),
    "din_softmax": _din(att_weight_normalization=True, att_activation="relu"),
    "dien": _dien("GRU"),
    "dien_aigru": _dien("AIGRU"),
    "dien_augru": _dien("AUGRU"),
    "shared_bottom": _multi_task("SharedBottom", bottom_dnn_hidden_units="hidden"),
    "esmm": _multi_task("ESMM", tower_dnn_hidden_units="hidden"),
    "mmoe": _multi_task("MMOE", expert_dnn_hidden_units="hidden"),
    "ple": _multi_task("PLE", expert_dnn_hidden_units="hidden"),
}


def length_column(name: str, sizes: Sizes) -> int | None:
    """The column of the history's length in the packed input; None without a history."""
    return None if name == "onn" else sum(sizes.fields.values()) + sizes.history


def build(name: str, sizes: Sizes) -> tuple[Any, Features]:
    """The model `name` in evaluation mode with weights worth comparing, and its features."""
    import torch

    entry = MODELS[name]
    if name == "onn":  # One pair of tables for every pair of fields.
        sizes = Sizes(min(sizes.rows, 100), sizes.width, sizes.hidden, sizes.history, sizes.fields)
    found = features(sizes, entry.attends)
    model = entry.build(found, sizes).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight.normal_(0, 0.3, generator=generator)
            elif getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
        for name_, weight in model.named_parameters():
            # Linear layers of the package start at 1e-4 too.
            if weight.ndim >= 2 and "embedding" not in name_ and float(weight.std()) < 0.01:
                fan = weight[0].numel() if weight.ndim > 1 else weight.numel()
                weight.normal_(0, (1.0 / max(fan, 1)) ** 0.5, generator=generator)
    return model, found
