"""Layers that the sample models share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .schema import DENSE, ID, SEQUENCE, Feature, Schema


class MLP(nn.Sequential):
    """`[.., width] -> [.., hidden[-1]]`, or `[.., 1]` with `head`."""

    def __init__(
        self,
        width: int,
        hidden: Sequence[int],
        head: bool = True,
        norm: bool = False,
        activation: type[nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        layers: list[nn.Module] = []
        for out in hidden:
            layers.append(nn.Linear(width, out))
            if norm:
                layers.append(nn.BatchNorm1d(out))
            layers.append(activation())
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = out
        if head:
            layers.append(nn.Linear(width, 1))
        super().__init__(*layers)


class Embeddings(nn.Module):
    """One table an id feature; a sequence is looked up in the table of its item feature."""

    def __init__(self, schema: Schema, dim: int | None = None) -> None:
        super().__init__()
        self.tables = nn.ModuleDict()
        for feature in schema.pick(kind=ID):
            table = nn.Embedding(feature.vocab, dim or schema.dim, padding_idx=0)
            nn.init.normal_(table.weight[1:], std=0.1)
            self.tables[feature.name] = table

    def forward(self, feature: Feature, ids: Tensor) -> Tensor:
        """`[N] -> [N, dim]`, or `[N, T] -> [N, T, dim]` for a sequence."""
        return self.tables[feature.table or feature.name](ids)


def masked_mean(sequence: Tensor, ids: Tensor) -> Tensor:
    """Mean of `sequence` `[N, T, D]` over the positions whose id is not 0: `[N, D]`."""
    mask = (ids > 0).unsqueeze(-1).to(sequence.dtype)
    return (sequence * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)


class Columns(nn.Module):
    """Features as columns: embeddings, pooled histories and numbers, a list of `[N, width]`."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.embed = Embeddings(schema)

    def forward(self, features: Iterable[Feature], x: dict[str, Tensor]) -> list[Tensor]:
        columns = []
        for feature in features:
            value = x[feature.name]
            if feature.kind != DENSE:
                value = self.embed(feature, value)
            if feature.kind == SEQUENCE:
                value = masked_mean(value, x[feature.name])
            columns.append(value)
        return columns


class History(nn.Module):
    """The user's history and the candidate in the same space."""

    def __init__(self, schema: Schema, embed: Embeddings) -> None:
        super().__init__()
        self.sequences = schema.pick(kind=SEQUENCE)
        by_name = {f.name: f for f in schema.features}
        self.targets = [by_name[f.table] for f in self.sequences]
        self.length = self.sequences[0].width
        self.width = schema.dim * len(self.sequences)
        self.embed = embed

    def forward(self, x: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """keys `[N, T, width]`, the candidate `[N, width]`, mask `[N, T]` (true: a real event)."""
        keys = torch.cat([self.embed(f, x[f.name]) for f in self.sequences], dim=-1)
        query = torch.cat([self.embed(f, x[f.name]) for f in self.targets], dim=-1)
        return keys, query, x[self.sequences[0].name] > 0
