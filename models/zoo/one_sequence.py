"""Models whose history and candidates are one sequence: each candidate reads the history and itself.

Their user inputs have one row a user, `[1, ...]` in the exports; the N candidates stand behind that user's history.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import MLP, Columns, History
from .schema import CROSS, ITEM, SEQUENCE, USER, Schema


class Sequence(nn.Module):
    """`[a token of the user | events | candidates]`, and what every position may read."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.columns = Columns(schema)
        self.history = History(schema, self.columns.embed)
        self.users = [f for f in schema.pick(USER) if f.kind != SEQUENCE]
        self.items = schema.pick(ITEM) + schema.pick(CROSS)
        self.width, self.before = schema.token, self.history.length + 1
        self.user = nn.Linear(schema.width(self.users), schema.token)
        self.event = nn.Linear(self.history.width, schema.token)
        self.item = nn.Linear(schema.width(self.items), schema.token)

    def forward(self, x: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The sequence `[B, S, width]`, which keys a position reads `[B, S, S]`, and places `[S]`.

        All candidates have the place behind the history.
        """
        events = torch.cat([self.history.embed(f, x[f.name]) for f in self.history.sequences], -1)
        known = x[self.history.sequences[0].name] > 0
        user = self.user(torch.cat(self.columns(self.users, x), dim=-1)).unsqueeze(1)
        item = self.item(torch.cat(self.columns(self.items, x), dim=-1))
        item = item.view(user.size(0), -1, self.width)
        h = torch.cat([user, self.event(events), item], dim=1)
        always = torch.ones_like(user[:, :, 0], dtype=torch.bool)
        shown = torch.cat([always, known, torch.ones_like(item[:, :, 0], dtype=torch.bool)], dim=1)
        place = torch.arange(h.size(1))
        row, column = place.unsqueeze(1), place.unsqueeze(0)
        keep = (column <= row) & ((column < self.before) | (column == row))
        return h, keep & shown.unsqueeze(1), torch.clamp(place, max=self.before)


class HSTULayer(nn.Module):
    """HSTU's layer (Zhai et al. 2024): SiLU instead of softmax, a bias by distance, a gate behind the sum."""

    def __init__(self, before: int, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.heads = before, heads
        self.norm, self.norm_sum = nn.LayerNorm(width), nn.LayerNorm(width)
        self.all = nn.Linear(width, 4 * width)
        self.bias = nn.Embedding(2 * before + 1, heads)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor, keep: Tensor, place: Tensor) -> Tensor:
        b, s, d = h.shape
        gate, *parts = F.silu(self.all(self.norm(h))).chunk(4, dim=-1)
        q, k, v = (a.view(b, s, self.heads, d // self.heads).transpose(1, 2) for a in parts)
        far = place.unsqueeze(1) - place.unsqueeze(0) + self.before
        scores = torch.matmul(q, k.transpose(-2, -1)) + self.bias(far).permute(2, 0, 1)
        weights = F.silu(scores) / self.before * keep.unsqueeze(1).to(h.dtype)
        mixed = torch.matmul(weights, v).transpose(1, 2).reshape(b, s, d)
        return h + self.out(self.norm_sum(mixed) * gate)


class HSTU(nn.Module):
    """HSTU as a ranker: all candidates of a request behind one history."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.sequence = Sequence(schema)
        self.before = self.sequence.before
        self.layers = nn.ModuleList(
            [HSTULayer(self.before, schema.token, schema.heads) for _ in range(schema.layers)]
        )
        self.head = MLP(schema.token, schema.hidden[-1:])

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        h, keep, place = self.sequence(x)
        for layer in self.layers:
            h = layer(h, keep, place)
        return torch.sigmoid(self.head(h[:, self.before :])).view(-1, 1)


class RMSNorm(nn.Module):
    """`x / rms(x) * scale`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-5) * self.scale


class PhoenixLayer(nn.Module):
    """A layer of Phoenix (X, 2026; Grok's): heads that share keys and values, rotary places, scores cut off softly."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.part = heads, width // heads
        self.norms = nn.ModuleList([RMSNorm(width) for _ in range(4)])
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * self.part, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, 2 * width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, h: Tensor, keep: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        b, s, d = h.shape
        z = self.norms[0](h)
        q = _turned(self.q(z).view(b, s, self.heads, self.part).transpose(1, 2), turn)
        k, v = self.kv(z).unsqueeze(1).chunk(2, dim=-1)
        scores = torch.matmul(q, _turned(k, turn).transpose(-2, -1)) * self.part**-0.5
        scores = 30.0 * torch.tanh(scores / 30.0)
        weights = torch.softmax(torch.where(keep.unsqueeze(1), scores, -1e30), dim=-1)
        mixed = torch.matmul(weights, v).transpose(1, 2).reshape(b, s, d)
        h = h + self.norms[1](self.out(mixed))
        z = self.norms[2](h)
        return h + self.norms[3](self.down(F.gelu(self.gate(z)) * self.up(z)))


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of `[.., S, width]`; the two halves of a head are turned together."""
    first, second = x.chunk(2, dim=-1)
    return x * turn[0] + torch.cat([-second, first], dim=-1) * turn[1]


class Phoenix(nn.Module):
    """A transformer over `[user | history | candidates]`, candidates isolated by its mask (as X's Phoenix)."""

    speeds: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.sequence = Sequence(schema)
        self.before = self.sequence.before
        half = schema.token // schema.heads // 2
        self.register_buffer("speeds", 10_000.0 ** (-torch.arange(half) / half), persistent=False)
        self.layers = nn.ModuleList(
            [PhoenixLayer(schema.token, schema.heads) for _ in range(schema.layers)]
        )
        self.norm = RMSNorm(schema.token)
        self.head = nn.Linear(schema.token, 1)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        h, keep, place = self.sequence(x)
        angle = place.unsqueeze(1).to(h.dtype) * self.speeds
        angle = torch.cat([angle, angle], dim=-1)
        turn = torch.cos(angle), torch.sin(angle)
        for layer in self.layers:
            h = layer(h, keep, turn)
        return torch.sigmoid(self.head(self.norm(h[:, self.before :]))).view(-1, 1)
