"""Models over one flat row: MLP, Wide&Deep, DeepFM, DCNv2, DLRM, PNN with a packed input."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import MLP, Columns, masked_mean
from .schema import CROSS, DENSE, ID, ITEM, SEQUENCE, USER, Feature, Schema, interleave


class CoarseMLP(nn.Module):
    """Coarse ranking: one MLP over all features, user and item fields interleaved (fragmented).

    `neat` puts the user fields first instead: the same model, for comparison.
    """

    def __init__(self, schema: Schema, neat: bool = False) -> None:
        super().__init__()
        users, others = schema.pick(USER), schema.pick(ITEM) + schema.pick(CROSS)
        self.order = users + others if neat else interleave(users, others)
        self.columns = Columns(schema)
        widths = (schema.width(schema.features), *schema.hidden)
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])
        self.out = nn.Linear(widths[-1], 1)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        h = torch.cat(self.columns(self.order, x), dim=1)
        for layer in self.layers:
            h = F.relu(layer(h))
        return torch.sigmoid(self.out(h))


class WideDeep(nn.Module):
    """Wide&Deep (Cheng et al. 2016): a linear part, a deep one with BatchNorm."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.ids, self.dense = schema.pick(kind=ID), schema.pick(kind=DENSE)
        self.all = list(schema.features)
        self.wide_ids = nn.ModuleDict({f.name: nn.Embedding(f.vocab, 1) for f in self.ids})
        for table in self.wide_ids.values():
            nn.init.zeros_(table.weight)
        self.wide_dense = nn.Linear(schema.width(self.dense), 1)
        self.columns = Columns(schema)
        width = schema.width(self.all)
        self.norm = nn.BatchNorm1d(width)
        self.deep = MLP(width, schema.hidden, norm=True, dropout=0.1)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        wide = self.wide_dense(torch.cat([x[f.name] for f in self.dense], dim=-1))
        for feature in self.ids:
            wide = wide + self.wide_ids[feature.name](x[feature.name])
        deep = self.deep(self.norm(torch.cat(self.columns(self.all, x), dim=-1)))
        return torch.sigmoid(wide + deep).squeeze(-1)


class DeepFM(nn.Module):
    """DeepFM (Guo et al. 2017), one table for all fields: ids are stacked and offset."""

    offsets: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.fields = interleave(schema.pick(USER, ID), schema.pick(ITEM, ID))
        sizes = torch.tensor([f.vocab for f in self.fields])
        self.register_buffer("offsets", torch.cumsum(sizes, 0) - sizes)
        self.embedding = nn.Embedding(int(sizes.sum()), schema.dim)
        self.linear = nn.Embedding(int(sizes.sum()), 1)
        self.bias = nn.Parameter(torch.zeros(1))
        nn.init.xavier_uniform_(self.embedding.weight)
        nn.init.zeros_(self.linear.weight)
        self.mlp = MLP(len(self.fields) * schema.dim, schema.hidden, dropout=0.1)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        ids = torch.stack([x[f.name] for f in self.fields], dim=1) + self.offsets
        e = self.embedding(ids)
        first = torch.sum(self.linear(ids), dim=1) + self.bias
        square_of_sum = torch.sum(e, dim=1) ** 2
        sum_of_square = torch.sum(e**2, dim=1)
        second = 0.5 * torch.sum(square_of_sum - sum_of_square, dim=1, keepdim=True)
        deep = self.mlp(torch.flatten(e, start_dim=1))
        return torch.sigmoid(first + second + deep).squeeze(1)


class DCNv2(nn.Module):
    """DCN v2 (Wang et al. 2021), parallel: full-rank cross layers beside an MLP."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.order = interleave(schema.pick(USER), schema.pick(ITEM))
        self.columns = Columns(schema)
        width = schema.width(self.order)
        self.cross = nn.ModuleList([nn.Linear(width, width) for _ in range(schema.layers)])
        self.deep = MLP(width, schema.hidden, head=False)
        self.out = nn.Linear(width + schema.hidden[-1], 1)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        x0 = torch.cat(self.columns(self.order, x), dim=-1)
        xl = x0
        for layer in self.cross:
            xl = x0 * layer(xl) + xl
        return torch.sigmoid(self.out(torch.cat([xl, self.deep(x0)], dim=-1)))


class DLRM(nn.Module):
    """DLRM (Naumov et al. 2019): bottom MLP over numbers, dot products of all pairs, top MLP."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.dense = schema.pick(kind=DENSE)
        self.fields = [f for f in schema.features if f.kind != DENSE]
        self.columns = Columns(schema)
        self.dim = schema.dim
        self.bottom = MLP(schema.width(self.dense), (schema.hidden[-1], schema.dim), head=False)
        count = len(self.fields) + 1
        pairs = [(i, j) for i in range(count) for j in range(i)]
        self.register_buffer("rows", torch.tensor([i for i, _ in pairs]), persistent=False)
        self.register_buffer("cols", torch.tensor([j for _, j in pairs]), persistent=False)
        self.top = MLP(schema.dim + len(pairs), schema.hidden)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        bottom = self.bottom(torch.cat([x[f.name] for f in self.dense], dim=1))
        fields = self.columns(self.fields, x)
        t = torch.cat([bottom, *fields], dim=1).view(bottom.size(0), -1, self.dim)
        z = torch.bmm(t, torch.transpose(t, 1, 2))
        top = torch.cat([bottom, z[:, self.rows, self.cols]], dim=1)
        return torch.sigmoid(self.top(top))


class PackedPNN(nn.Module):
    """PNN (Qu et al. 2016), inner products, over one packed row `X` `[N, F]` float32."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.order = interleave(schema.pick(USER), schema.pick(ITEM))
        self.places = packed_columns(self.order)
        self.columns = Columns(schema)
        self.dim = schema.dim
        self.fields = [f for f in self.order if f.kind != DENSE]
        self.dense = [f for f in self.order if f.kind == DENSE]
        count = len(self.fields)
        self.first = [i for i in range(count) for j in range(i + 1, count)]
        self.second = [j for i in range(count) for j in range(i + 1, count)]
        width = count * schema.dim + len(self.first) + schema.width(self.dense)
        self.mlp = MLP(width, schema.hidden)

    def column(self, feature: Feature, rows: Tensor) -> Tensor:
        start, stop = self.places[feature.name]
        return rows[:, start:stop]

    def embed(self, feature: Feature, rows: Tensor) -> Tensor:
        """`[N, 1, dim]`"""
        ids = self.column(feature, rows).long()
        e = self.columns.embed(feature, ids)
        return masked_mean(e, ids).unsqueeze(1) if feature.kind == SEQUENCE else e

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        rows = x["X"]
        embedded = [self.embed(f, rows) for f in self.fields]
        p = torch.cat([embedded[i] for i in self.first], dim=1)
        q = torch.cat([embedded[j] for j in self.second], dim=1)
        inner = torch.sum(p * q, dim=2)
        linear = torch.flatten(torch.cat(embedded, dim=-1), start_dim=1)
        dense = torch.cat([self.column(f, rows) for f in self.dense], dim=-1)
        return torch.sigmoid(self.mlp(torch.cat([linear, inner, dense], dim=-1)))


def packed_columns(order: list[Feature]) -> dict[str, tuple[int, int]]:
    """First and past-the-last column of each feature in the packed row."""
    places, start = {}, 0
    for feature in order:
        stop = start + max(feature.width, 1)
        places[feature.name] = (start, stop)
        start = stop
    return places
