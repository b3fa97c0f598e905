"""Models of the user's history: DIN, BST, GRU with target attention, a causal transformer, a BERT."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import MLP, Columns, Embeddings, History
from .schema import CROSS, ID, ITEM, SEQUENCE, USER, Schema


class DIN(nn.Module):
    """DIN (Zhou et al. 2018): an MLP over `[q, k, q-k, q*k]` weighs each event."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.fields = [f for f in schema.features if f.kind != SEQUENCE]
        self.columns = Columns(schema)
        self.history = History(schema, self.columns.embed)
        width = self.history.width
        self.unit = MLP(4 * width, schema.attention, activation=nn.Sigmoid)
        self.mlp = MLP(schema.width(self.fields) + width, schema.hidden, activation=nn.PReLU)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        keys, query, mask = self.history(x)
        q = query.unsqueeze(1).expand(-1, keys.size(1), -1)
        scores = self.unit(torch.cat([q, keys, q - keys, q * keys], dim=-1)).squeeze(-1)
        scores = torch.where(mask, scores, torch.zeros_like(scores))
        interest = torch.matmul(scores.unsqueeze(1), keys).squeeze(1)
        return torch.sigmoid(self.mlp(torch.cat([*self.columns(self.fields, x), interest], dim=-1)))


class BST(nn.Module):
    """BST (Chen et al. 2019): one encoder layer over the history with the candidate at its end."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.fields = [f for f in schema.features if f.kind != SEQUENCE]
        self.columns = Columns(schema)
        self.history = History(schema, self.columns.embed)
        width = self.history.width
        self.position = nn.Parameter(torch.randn(1, self.history.length + 1, width) * 0.05)
        self.encoder = nn.TransformerEncoderLayer(
            width, schema.heads, 2 * width, dropout=0.0, batch_first=True
        )
        flat = (self.history.length + 1) * width + schema.width(self.fields)
        self.mlp = MLP(flat, schema.hidden, activation=nn.LeakyReLU)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        keys, query, mask = self.history(x)
        tokens = torch.cat([keys, query.unsqueeze(1)], dim=1) + self.position
        padding = torch.cat([~mask, torch.zeros_like(mask[:, :1])], dim=1)
        h = self.encoder(tokens, src_key_padding_mask=padding)
        h = h.masked_fill(padding.unsqueeze(-1), 0.0)
        flat = torch.flatten(h, start_dim=1)
        return torch.sigmoid(self.mlp(torch.cat([flat, *self.columns(self.fields, x)], dim=-1)))


class DynamicHistory(nn.Module):
    """Interest extraction by a GRU, then target attention; the history's length is free."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.fields = [f for f in schema.features if f.kind != SEQUENCE]
        self.columns = Columns(schema)
        self.history = History(schema, self.columns.embed)
        width = self.history.width
        self.gru = nn.GRU(width, width, batch_first=True)
        self.query = nn.Linear(width, width, bias=False)
        self.mlp = MLP(schema.width(self.fields) + 2 * width, schema.hidden)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        keys, query, mask = self.history(x)
        states, _ = self.gru(keys)
        scores = torch.bmm(states, self.query(query).unsqueeze(2)).squeeze(2)
        scores = (scores / math.sqrt(keys.size(2))).masked_fill(~mask, -1e9)
        weights = F.softmax(scores, dim=1)
        interest = torch.sum(weights.unsqueeze(2) * states, dim=1)
        row = torch.cat([*self.columns(self.fields, x), interest, query], dim=1)
        return torch.sigmoid(self.mlp(row))


class CausalBlock(nn.Module):
    """Pre-norm causal attention and FFN; events share QKV weights, each other token has its own."""

    def __init__(self, events: int, others: int, width: int, heads: int) -> None:
        super().__init__()
        self.events, self.heads = events, heads
        self.norm_attention, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.qkv_own = nn.Parameter(torch.randn(others, width, 3 * width) / math.sqrt(width))
        self.out = nn.Linear(width, width)
        self.ffn = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, h: Tensor, future: Tensor, padding: Tensor) -> Tensor:
        n, t, d = h.shape
        z = self.norm_attention(h)
        shared = self.qkv(z[:, : self.events])
        own = torch.einsum("ntd,tde->nte", z[:, self.events :], self.qkv_own)
        q, k, v = torch.cat([shared, own], dim=1).chunk(3, dim=-1)
        q, k, v = (a.view(n, t, self.heads, d // self.heads).transpose(1, 2) for a in (q, k, v))
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(d // self.heads)
        scores = scores.masked_fill(future, float("-inf"))
        scores = scores.masked_fill(padding, float("-inf"))
        mixed = torch.matmul(F.softmax(scores, dim=-1), v)
        h = h + self.out(mixed.transpose(1, 2).reshape(n, t, d))
        return h + self.ffn(self.norm_ffn(h))


class OneTrans(nn.Module):
    """A causal transformer over events, then user tokens, then item tokens (as OneTrans, 2025)."""

    future: Tensor
    itself: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.columns = Columns(schema)
        self.history = History(schema, self.columns.embed)
        self.users = [f for f in schema.pick(USER) if f.kind != SEQUENCE]
        self.items = schema.pick(ITEM) + schema.pick(CROSS)
        self.width, (self.user_tokens, self.item_tokens) = schema.token, schema.tokens
        self.event = nn.Linear(self.history.width, schema.token)
        self.user = nn.Linear(schema.width(self.users), schema.token * self.user_tokens)
        self.item = nn.Linear(schema.width(self.items), schema.token * self.item_tokens)
        others = self.user_tokens + self.item_tokens
        total = self.history.length + others
        self.position = nn.Parameter(torch.randn(self.history.length, schema.token) * 0.05)
        self.register_buffer(
            "future", torch.triu(torch.ones(total, total), 1).bool(), persistent=False
        )
        self.register_buffer("itself", torch.eye(total).bool(), persistent=False)
        sizes = (self.history.length, others, schema.token, schema.heads)
        self.blocks = nn.ModuleList([CausalBlock(*sizes) for _ in range(schema.layers)])
        self.norm = nn.LayerNorm(schema.token)
        self.head = MLP(self.item_tokens * schema.token, schema.hidden)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        keys, _, mask = self.history(x)
        user = self.user(torch.cat(self.columns(self.users, x), dim=-1))
        item = self.item(torch.cat(self.columns(self.items, x), dim=-1))
        h = torch.cat(
            [
                self.event(keys) + self.position,
                user.view(-1, self.user_tokens, self.width),
                item.view(-1, self.item_tokens, self.width),
            ],
            dim=1,
        )
        known = torch.zeros_like(user[:, : self.user_tokens], dtype=torch.bool)
        known_items = torch.zeros_like(item[:, : self.item_tokens], dtype=torch.bool)
        padding = torch.cat([~mask, known, known_items], dim=1)
        # A padded event sees itself, so that no row of the softmax is empty.
        padding = padding[:, None, None, :] & ~self.itself
        for block in self.blocks:
            h = block(h, self.future, padding)
        candidate = self.norm(h)[:, -self.item_tokens :]
        return torch.sigmoid(self.head(candidate.flatten(1)))


class BertLayer(nn.Module):
    """Attention of all tokens to all, a feed-forward layer, LayerNorm behind each (BERT)."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.norm_attention, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, h: Tensor, lowest: Tensor) -> Tensor:
        n, t, d = h.shape
        parts = (f(h).view(n, t, self.heads, d // self.heads) for f in (self.q, self.k, self.v))
        q, k, v = (a.transpose(1, 2) for a in parts)
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(d // self.heads) + lowest
        mixed = torch.matmul(F.softmax(scores, dim=-1), v).transpose(1, 2).reshape(n, t, d)
        h = self.norm_attention(h + self.out(mixed))
        return self.norm_ffn(h + self.ffn(h))


class Reranker(nn.Module):
    """A BERT over a token for each feature and event, `[CLS] user, history, candidate`; it reads the first position."""

    def __init__(self, schema: Schema, layers: int = 3) -> None:
        super().__init__()
        self.embed = Embeddings(schema, schema.token)
        self.events = schema.pick(kind=SEQUENCE)
        self.users, self.items = schema.pick(USER, ID), schema.pick(ITEM, ID)
        length = 1 + len(self.users) + self.events[0].width + len(self.items)
        self.start = nn.Parameter(torch.randn(1, 1, schema.token) * 0.1)
        self.position = nn.Parameter(torch.randn(length, schema.token) * 0.05)
        self.norm = nn.LayerNorm(schema.token)
        sizes = (schema.token, schema.heads, 2 * schema.token)
        self.layers = nn.ModuleList([BertLayer(*sizes) for _ in range(layers)])
        self.pool, self.head = nn.Linear(schema.token, schema.token), nn.Linear(schema.token, 1)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        user = torch.stack([self.embed(f, x[f.name]) for f in self.users], dim=1)
        events = [self.embed(f, x[f.name]) for f in self.events]
        item = torch.stack([self.embed(f, x[f.name]) for f in self.items], dim=1)
        start = self.start.expand(item.size(0), -1, -1)
        history = torch.stack(events).sum(dim=0)
        h = self.norm(torch.cat([start, user, history, item], dim=1) + self.position)
        empty = (x[self.events[0].name] == 0).to(h.dtype)
        front, back = torch.zeros_like(h[:, : 1 + len(self.users), 0]), torch.zeros_like(item[:, :, 0])
        lowest = torch.cat([front, empty, back], dim=1)[:, None, None, :] * torch.finfo(h.dtype).min
        for layer in self.layers:
            h = layer(h, lowest)
        return torch.sigmoid(self.head(torch.tanh(self.pool(h[:, 0]))))
