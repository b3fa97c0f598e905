"""Models with towers, experts, token mixing, and many requests in one batch."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import MLP, Columns
from .schema import CROSS, ITEM, USER, Feature, Schema, interleave


class TwoTower(nn.Module):
    """A tower a side, fused late by an MLP over `[u, v, u*v, cross]`."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.users, self.items = schema.pick(USER), schema.pick(ITEM)
        self.cross = schema.pick(CROSS)
        self.columns = Columns(schema)
        width = schema.hidden[-1]
        self.user_tower = MLP(schema.width(self.users), schema.hidden, head=False)
        self.item_tower = MLP(schema.width(self.items), schema.hidden, head=False)
        self.fusion = MLP(3 * width + schema.width(self.cross), schema.hidden)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        u = self.user_tower(torch.cat(self.columns(self.users, x), dim=-1))
        v = self.item_tower(torch.cat(self.columns(self.items, x), dim=-1))
        u, v = F.normalize(u, dim=-1), F.normalize(v, dim=-1)
        fused = torch.cat([u, v, u * v, *self.columns(self.cross, x)], dim=-1)
        return torch.sigmoid(self.fusion(fused)).squeeze(-1)


class MMoE(nn.Module):
    """MMoE (Ma et al. 2018), two tasks: shared experts, a softmax gate and a tower a task."""

    def __init__(self, schema: Schema, experts: int = 4, tasks: int = 2) -> None:
        super().__init__()
        self.order = interleave(schema.pick(USER), schema.pick(ITEM) + schema.pick(CROSS))
        self.columns = Columns(schema)
        width, *rest = schema.width(self.order), *schema.hidden
        self.experts = nn.ModuleList([MLP(width, rest[:-1], head=False) for _ in range(experts)])
        self.gates = nn.ModuleList([nn.Linear(width, experts, bias=False) for _ in range(tasks)])
        self.towers = nn.ModuleList([MLP(rest[-2], rest[-1:]) for _ in range(tasks)])

    def forward(self, x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        row = torch.cat(self.columns(self.order, x), dim=1)
        experts = torch.stack([expert(row) for expert in self.experts], dim=1)
        answers = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weights = F.softmax(gate(row), dim=-1).unsqueeze(1)
            answers.append(torch.sigmoid(tower(torch.bmm(weights, experts).squeeze(1))))
        return tuple(answers)


class MixerBlock(nn.Module):
    """RankMixer's block: tokens exchange heads, then each has a feed-forward layer of its own."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens, self.width = tokens, width
        self.norm_mix, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up = nn.Parameter(torch.randn(tokens, width, 2 * width) / width**0.5)
        self.up_bias = nn.Parameter(torch.zeros(tokens, 2 * width))
        self.down = nn.Parameter(torch.randn(tokens, 2 * width, width) / (2 * width) ** 0.5)
        self.down_bias = nn.Parameter(torch.zeros(tokens, width))

    def forward(self, h: Tensor) -> Tensor:
        heads = h.view(-1, self.tokens, self.tokens, self.width // self.tokens)
        mixed = heads.transpose(1, 2).reshape(-1, self.tokens, self.width)
        h = self.norm_mix(h + mixed)
        z = F.gelu(torch.einsum("ntd,tde->nte", h, self.up) + self.up_bias)
        return self.norm_ffn(h + torch.einsum("nte,ted->ntd", z, self.down) + self.down_bias)


class RankMixer(nn.Module):
    """RankMixer-like (2025): features grouped into tokens by meaning, mixed without attention."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.columns = Columns(schema)
        users, items = schema.pick(USER), schema.pick(ITEM) + schema.pick(CROSS)
        user_tokens, item_tokens = schema.tokens
        self.groups = grouped(users, user_tokens) + grouped(items, item_tokens)
        self.project = nn.ModuleList(
            [nn.Linear(schema.width(g), schema.token) for g in self.groups]
        )
        self.blocks = nn.ModuleList(
            [MixerBlock(len(self.groups), schema.token) for _ in range(schema.layers)]
        )
        self.head = nn.Linear(schema.token, 1)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        groups = [torch.cat(self.columns(group, x), dim=-1) for group in self.groups]
        tokens = [project(group) for project, group in zip(self.project, groups, strict=True)]
        h = torch.stack(tokens, dim=1)
        for block in self.blocks:
            h = block(h)
        return torch.sigmoid(self.head(h.mean(dim=1)))


def grouped(features: list[Feature], count: int) -> list[list[Feature]]:
    """`features` in `count` groups of about equal length, in order."""
    cuts = [len(features) * i // count for i in range(count + 1)]
    return [features[start:stop] for start, stop in itertools.pairwise(cuts)]


class RequestGrid(nn.Module):
    """R requests of N candidates: user inputs `[R, ...]`, others and scores `[R, N, ...]`."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.users, self.items = schema.pick(USER), schema.pick(ITEM)
        self.columns = Columns(schema)
        self.mlp = MLP(schema.width(schema.features), schema.hidden)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        item = torch.cat(self.columns(self.items, x), dim=-1)
        user = torch.cat(self.columns(self.users, x), dim=-1)
        user = user.unsqueeze(1).expand(-1, item.size(1), -1)
        return torch.sigmoid(self.mlp(torch.cat([user, item], dim=-1))).squeeze(-1)
