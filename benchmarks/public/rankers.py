"""Rankers over fields of ids and numbers: MLGB, pytorch-widedeep and keras-rs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest import mock

from benchmarks.public.export import In, Model

UNUSED = ["gensim", "gensim.utils", "spacy", "spacy.symbols", "cv2", "torchvision", "torchvision.models",
          "torchvision.models._api", "torchvision.transforms", "torchvision.transforms.functional"]  # fmt: skip
USERS, ITEMS, IDS, HISTORY, WIDTH = 9, 6, 40, 10, 8
FIELDS = [
    In("user_ids", "user", (USERS,), IDS),
    In("user_numbers", "user", (3,)),
    In("item_ids", "item", (ITEMS,), IDS),
    In("item_numbers", "item", (2,)),
]
SEQUENCE = In("history", "user", (3, HISTORY), IDS)
MLGB = [
    "LR", "MLP", "PLM", "DLRM", "MaskNet", "DCM", "DCN", "EDCN", "FM", "FFM", "HOFM", "FwFM", "FEFM", "FmFM", "AFM",
    "LFM", "IM", "DeepIM", "IFM", "DIFM", "FNN", "PNN", "PIN", "ONN", "AFN", "NFM", "WDL", "DeepFM", "DeepFEFM", "FLEN",
    "CCPM", "FGCNN", "XDeepFM", "FiBiNet", "AutoInt",
]  # fmt: skip
MLGB_SEQUENCES = ["GRU4Rec", "Caser", "SASRec", "BERT4Rec", "BST", "DIN", "DIEN", "DSIN"]
MLGB_TASKS = ["SharedBottom", "ESMM", "MMoE", "PLE", "PEPNet"]
WIDE = ["AutoInt", "AutoIntPlus", "DeepCrossNetwork", "DeepCrossNetworkV2", "GatedDeepCrossNetwork",
        "DeepFactorizationMachine", "DeepFieldAwareFactorizationMachine", "ExtremeDeepFactorizationMachine",
        "DeepInterestNetwork"]  # fmt: skip


def _mlgb() -> None:
    """MLGB without its half of TensorFlow."""
    for name in ("tensorflow", "mlgb.tf", "mlgb.tf.agg"):
        sys.modules.setdefault(name, mock.MagicMock(spec=ModuleType(name)))
    agg: Any = sys.modules["mlgb.tf.agg"]
    agg.tf_ranking_models_map = agg.tf_matching_models_map = agg.tf_mtl_models_map = {}


def _sparse(count: int, length: int = 1) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"feature_name": f"f{i}", "input_length": length, "mask_zero": True, "feature_nunique": IDS - 1,
         "embed_feature_nunique": IDS, "embed_dim": WIDTH}
        for i in range(count)
    )  # fmt: skip


def _dense(count: int) -> tuple[dict[str, str], ...]:
    return tuple({"feature_name": f"d{i}"} for i in range(count))


def _ranker(name: str, module: str) -> Any:
    """A model of MLGB over all fields, or over the user's with a history and the item's."""
    import torch

    _mlgb()
    cls = getattr(import_module(f"mlgb.torch.models.{module}"), name)
    sequence = name in MLGB_SEQUENCES
    user = (_dense(3), _sparse(USERS), _sparse(3, HISTORY))
    names: Any = (user, (_dense(2), _sparse(ITEMS))) if sequence else (_dense(5), _sparse(USERS + ITEMS))
    how: dict[str, Any] = {"embed_dim": WIDTH}
    if sequence:
        how["user_inputs_if_sequential"] = True
    known = cls.__init__.__code__.co_varnames
    how |= {k: (32, 16) for k in ("dnn_hidden_units", "user_dnn_hidden_units", "item_dnn_hidden_units") if k in known}
    how |= {k: v for k, v in (("trm_mha_head_num", 2), ("trm_mha_head_dim", 8)) if k in known}

    class Ranker(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cls(names, **how)

        def forward(self, uid: Any, unum: Any, iid: Any, inum: Any, history: Any = None) -> Any:
            ids, numbers = uid.int(), unum
            if sequence:
                found = self.net(((numbers, ids, history.int()), (inum, iid.int())))
            else:
                found = self.net((torch.cat([numbers, inum], 1), torch.cat([ids, iid.int()], 1)))
            return torch.cat([*found], 1) if isinstance(found, list | tuple) else found

    return Ranker()


def _wide(name: str) -> Any:
    """A model of pytorch-widedeep with one score."""
    import torch

    for unused in UNUSED:
        sys.modules.setdefault(unused, mock.MagicMock(__spec__=ModuleSpec(unused, None)))  # of its text and images
    from pytorch_widedeep.models import rec

    columns = [f"u{i}" for i in range(USERS)] + [f"i{i}" for i in range(ITEMS)]
    numbers = [f"n{i}" for i in range(5)]
    how: dict[str, Any] = {"continuous_cols": numbers}
    pairs: Any = [(c, IDS) for c in columns]
    if name in ("DeepCrossNetwork", "DeepCrossNetworkV2", "GatedDeepCrossNetwork"):
        how |= {"cat_embed_input": [(c, IDS, WIDTH) for c in columns], "mlp_hidden_dims": [32, 16]}
    elif name.startswith("AutoInt"):
        how |= {"input_dim": WIDTH, "num_heads": 2, "cat_embed_input": pairs, "embed_continuous_method": "standard"}
        if name == "AutoIntPlus":
            how["mlp_hidden_dims"] = [32, 16]
    elif name == "DeepInterestNetwork":
        behaviours = [f"h{i}" for i in range(HISTORY)]
        how = {"user_behavior_confiq": (behaviours, IDS, WIDTH), "target_item_col": "i0", "mlp_hidden_dims": [32, 16]}
        how["cat_embed_input"] = [(c, IDS, WIDTH) for c in columns if c != "i0"]
        columns, numbers = columns + behaviours, []
    else:
        how |= {"num_factors": WIDTH, "cat_embed_input": pairs, "mlp_hidden_dims": [32, 16], "reduce_sum": False}
        if name == "ExtremeDeepFactorizationMachine":
            how = {k: v for k, v in how.items() if k != "reduce_sum"} | {"input_dim": WIDTH, "cin_layer_dims": [12, 12]}
            how.pop("num_factors")
        elif name == "DeepFieldAwareFactorizationMachine":
            how.pop("continuous_cols")
            numbers = []
    places = {c: i for i, c in enumerate([*columns, *numbers])}

    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = getattr(rec, name)(column_idx=places, **how)
            width = getattr(self.net, "output_dim", 0) or 1
            self.top = torch.nn.Linear(width, 1) if width > 1 else torch.nn.Identity()

        def forward(self, uid: Any, unum: Any, iid: Any, inum: Any, history: Any = None) -> Any:
            parts = [uid.float(), iid.float()]
            if history is not None:
                parts.append(history[:, 0].float())
            if numbers:
                parts += [unum, inum]
            return self.top(self.net(torch.cat(parts, 1)))

    return Wide()


def _keras(name: str) -> Any:
    """Layers of keras-rs, as its DLRM and DCN examples put them together."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import keras_rs
    import torch

    class Keras(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(IDS, WIDTH)
            crosses = [keras_rs.layers.FeatureCross(projection_dim=8 if name == "dcn_mix" else None) for _ in range(2)]
            self.layers = [*crosses] if name != "dlrm" else [keras_rs.layers.DotInteraction()]
            self.tower = keras.Sequential([keras.layers.Dense(32, "relu"), keras.layers.Dense(1)])
            self.kept = torch.nn.ModuleList([*self.layers, self.tower])

        def forward(self, uid: Any, unum: Any, iid: Any, inum: Any) -> Any:
            fields = [self.table(x)[:, i] for x in (uid, iid) for i in range(x.shape[1])]
            numbers = torch.cat([unum, inum], 1)
            if name == "dlrm":
                return self.tower(torch.cat([self.layers[0](fields), numbers], 1))
            first = found = torch.cat([*fields, numbers], 1)
            for layer in self.layers:
                found = layer(first, found)
            return self.tower(found)

    return Keras()


def models() -> Iterator[Model]:
    """All of them."""
    for module, names in (("ranking", MLGB + MLGB_SEQUENCES), ("mtl", MLGB_TASKS)):
        for name in names:
            inputs = [*FIELDS, SEQUENCE] if name in MLGB_SEQUENCES else FIELDS
            yield Model(f"mlgb_{name.lower()}", "mlgb", partial(_ranker, name, module), inputs)
    for name in WIDE:
        inputs = [*FIELDS, SEQUENCE] if name == "DeepInterestNetwork" else FIELDS
        yield Model(f"widerec_{name.lower()}", "pytorch-widedeep", partial(_wide, name), inputs)
    for name in ("dlrm", "dcn", "dcn_mix"):
        yield Model(f"keras_{name}", "keras-rs", partial(_keras, name), FIELDS)
