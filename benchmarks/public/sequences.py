"""Next-item models of RecBole that score one item for a history, and its models of users and items."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.public.export import In, Model

ITEMS, HISTORY, WIDTH = 60, 12, 16
UNUSED = ["tensorboard", "torch.utils.tensorboard", "wandb", "kmeans_pytorch", "texttable", "ray", "plotly"]
SEQUENCES = ["BERT4Rec", "Caser", "FOSSIL", "FPMC", "GCSAN", "GRU4Rec", "HGN", "LightSANs", "NARM", "NextItNet", "NPE",
             "RepeatNet", "SASRec", "SINE", "STAMP", "TransRec"]  # fmt: skip
PAIRS = ["BPR", "NeuMF"]


class _Config(dict[str, Any]):
    """Settings; what nobody set is None."""

    def __missing__(self, key: str) -> None:
        return None


class _Data:
    """What models ask of a data set."""

    user_num = item_num = ITEMS

    def num(self, field: str) -> int:
        return ITEMS

    def fields(self, *_: Any, **__: Any) -> list[str]:
        return []

    def __getattr__(self, name: str) -> Any:
        return mock.MagicMock()


def _recbole(name: str, kind: str) -> Any:
    import torch
    import yaml

    for unused in UNUSED:
        sys.modules.setdefault(unused, mock.MagicMock(__spec__=ModuleSpec(unused, None), __version__="99"))
    module: Any = import_module(f"recbole.model.{kind}_recommender")
    root = Path(module.__file__).parents[2] / "properties/model"
    found = _Config(yaml.safe_load((root / f"{name}.yaml").read_text()) or {})
    found.update(
        USER_ID_FIELD="user", ITEM_ID_FIELD="item", ITEM_LIST_LENGTH_FIELD="length", LIST_SUFFIX="_list",
        NEG_PREFIX="neg_", MAX_ITEM_LIST_LENGTH=HISTORY, device=torch.device("cpu"), embedding_size=WIDTH,
        hidden_size=WIDTH, inner_size=2 * WIDTH, n_layers=2, n_heads=2, num_layers=1, loss_type="CE", dropout_prob=0.1,
        layer_norm_eps=1e-5, data_path="", train_neg_sample_args={},
    )  # fmt: skip
    if name == "FPMC":
        found["loss_type"] = "BPR"
    if name == "NARM":
        found["n_layers"] = 1
    if name == "FOSSIL":
        found["order_len"] = 3
    if found.get("mlp_hidden_size"):
        found["mlp_hidden_size"] = [32, 16]

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = getattr(module, name)(found, _Data())

        def forward(self, user: Any, item: Any, history: Any = None, length: Any = None) -> Any:
            return self.net.predict({"user": user, "item": item, "item_list": history, "length": length})

    return Scores()


def models() -> Iterator[Model]:
    """All of them."""
    inputs = [In("user", "user", (), ITEMS), In("item", "item", (), ITEMS)]
    history = [In("history", "user", (HISTORY,), ITEMS), In("length", "user", (), HISTORY + 1)]
    for name in SEQUENCES:
        yield Model(f"rec_{name.lower()}", "recbole", partial(_recbole, name, "sequential"), [*inputs, *history])
    for name in PAIRS:
        yield Model(f"rec_{name.lower()}", "recbole", partial(_recbole, name, "general"), inputs)
