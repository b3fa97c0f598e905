"""The sample ranking models: each in the form its field uses, over a `Schema` of any width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .feature_crossing import DLRM, CoarseMLP, DCNv2, DeepFM, PackedPNN, WideDeep
from .one_sequence import HSTU, Phoenix
from .schema import DENSE, ID, SEQUENCE, Schema
from .separated import TriangularDCN, UGSep
from .sequence import BST, DIN, DynamicHistory, OneTrans, Reranker
from .towers import MMoE, RankMixer, RequestGrid, TwoTower

ALL = (ID, SEQUENCE, DENSE)


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    build: module over a schema; kinds, cross: which features it takes; free_history: any length.
    layout: `rows` (every input `[N, ...]`), `packed` (one `X[N, F]`), `grid` (user inputs
    `[R, ...]`, the others `[R, N, ...]`) or `sequence` (user inputs `[1, ...]`, the others `[N, ...]`).
    """

    build: Callable[[Schema], nn.Module]
    kinds: tuple[str, ...] = ALL
    cross: bool = False
    layout: str = "rows"
    free_history: bool = False
    outputs: tuple[str, ...] = ("score",)

    def schema(self, full: Schema) -> Schema:
        """The part of `full` that this model is fed with."""
        return full.keep(self.kinds, self.cross)


ZOO: dict[str, Entry] = {
    "coarse_mlp": Entry(CoarseMLP, cross=True),
    "wide_deep": Entry(WideDeep, cross=True),
    "deepfm": Entry(DeepFM, kinds=(ID,)),
    "dcnv2": Entry(DCNv2),
    "dlrm": Entry(DLRM, cross=True),
    "packed_pnn": Entry(PackedPNN, layout="packed"),
    "din": Entry(DIN),
    "bst": Entry(BST, cross=True),
    "dynamic_history": Entry(DynamicHistory, free_history=True),
    "onetrans": Entry(OneTrans, cross=True),
    "two_tower": Entry(TwoTower, cross=True),
    "mmoe": Entry(MMoE, cross=True, outputs=("like", "love")),
    "rankmixer": Entry(RankMixer, cross=True),
    "request_grid": Entry(RequestGrid, layout="grid"),
    "ug_sep": Entry(UGSep, cross=True),
    "rocs_dcnv2": Entry(TriangularDCN),
    "hstu": Entry(HSTU, cross=True, layout="sequence"),
    "phoenix": Entry(Phoenix, cross=True, layout="sequence"),
    "reranker": Entry(Reranker, kinds=(ID, SEQUENCE)),
}
