"""Models trained so that no user token or column reads the candidate: UG-Sep on RankMixer, ROCS on DCN v2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Columns
from .schema import CROSS, ITEM, USER, Schema
from .towers import grouped


class TokenFFN(nn.Module):
    """A feed-forward layer of its own for each token, added to its input: `[N, tokens, width]`."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(tokens, width, 2 * width) / width**0.5)
        self.up_bias = nn.Parameter(torch.zeros(tokens, 2 * width))
        self.down = nn.Parameter(torch.randn(tokens, 2 * width, width) / (2 * width) ** 0.5)
        self.down_bias = nn.Parameter(torch.zeros(tokens, width))

    def forward(self, h: Tensor) -> Tensor:
        z = F.gelu(torch.einsum("ntd,tde->nte", h, self.up) + self.up_bias)
        return h + torch.einsum("nte,ted->ntd", z, self.down) + self.down_bias


class SeparatedBlock(nn.Module):
    """RankMixer's block as UG-Sep changes it: heads that user tokens get from item tokens are masked.

    User and item tokens have residuals and feed-forward layers of their own, so the user's can be used again for the
    next candidate. What was masked is not lost: a linear map of it is added to the item tokens (compensation).
    """

    mask: Tensor

    def __init__(self, user_tokens: int, item_tokens: int, width: int) -> None:
        super().__init__()
        self.users, self.items, self.width = user_tokens, item_tokens, width
        self.tokens = user_tokens + item_tokens
        self.head = width // self.tokens
        mask = torch.zeros(self.tokens, width, dtype=torch.bool)
        mask[:user_tokens, user_tokens * self.head :] = True
        self.register_buffer("mask", mask, persistent=False)
        self.compensate = nn.Linear(int(mask.sum()), item_tokens * width)
        self.norm_mix, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.user_ffn, self.item_ffn = TokenFFN(user_tokens, width), TokenFFN(item_tokens, width)

    def forward(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.cat([user, item], dim=1)
        heads = h.view(-1, self.tokens, self.tokens, self.head)
        mixed = heads.transpose(1, 2).reshape(-1, self.tokens, self.width)
        masked = mixed[:, : self.users, self.users * self.head :].flatten(1)
        more = self.compensate(masked).view(-1, self.items, self.width)
        mixed = mixed.masked_fill(self.mask, 0.0)
        user = self.norm_mix(user + mixed[:, : self.users])
        item = self.norm_mix(item + mixed[:, self.users :] + more)
        return self.norm_ffn(self.user_ffn(user)), self.norm_ffn(self.item_ffn(item))


class UGSep(nn.Module):
    """RankMixer with user tokens that read no item token (as UG-Sep, arXiv 2602.10455), of RankMixer's widths."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.columns = Columns(schema)
        users, items = schema.pick(USER), schema.pick(ITEM) + schema.pick(CROSS)
        self.user_groups = grouped(users, schema.tokens[0])
        self.item_groups = grouped(items, schema.tokens[1])
        groups = self.user_groups + self.item_groups
        self.project = nn.ModuleList([nn.Linear(schema.width(g), schema.token) for g in groups])
        self.blocks = nn.ModuleList(
            [SeparatedBlock(*schema.tokens, schema.token) for _ in range(schema.layers)]
        )
        self.head = nn.Linear(schema.token, 1)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        groups = self.user_groups + self.item_groups
        columns = [torch.cat(self.columns(group, x), dim=-1) for group in groups]
        tokens = [project(c) for project, c in zip(self.project, columns, strict=True)]
        user = torch.stack(tokens[: len(self.user_groups)], dim=1)
        item = torch.stack(tokens[len(self.user_groups) :], dim=1)
        for block in self.blocks:
            user, item = block(user, item)
        return torch.sigmoid(self.head(torch.cat([user, item], dim=1).mean(dim=1)))


class Triangular(nn.Module):
    """A linear layer whose first `own` outputs read only the first `shared` inputs: a block of its weights is 0."""

    def __init__(self, shared: int, width: int, own: int, out: int) -> None:
        super().__init__()
        self.shared = shared
        self.own, self.rest = nn.Linear(shared, own), nn.Linear(width, out - own)

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([self.own(h[:, : self.shared]), self.rest(h)], dim=-1)


class TriangularDCN(nn.Module):
    """DCN v2 in which user columns read no item column (as ROCS, arXiv 2607.27744): in cross layers and in the MLP."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        users = schema.pick(USER)
        self.order = users + schema.pick(ITEM)
        self.columns = Columns(schema)
        shared, width = schema.width(users), schema.width(self.order)
        self.cross = nn.ModuleList(
            [Triangular(shared, width, shared, width) for _ in range(schema.layers)]
        )
        self.deep = nn.ModuleList()
        own, last = shared, width
        for hidden in schema.hidden:
            self.deep.append(Triangular(own, last, hidden // 2, hidden))
            own, last = hidden // 2, hidden
        self.out = nn.Linear(width + last, 1)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        x0 = torch.cat(self.columns(self.order, x), dim=-1)
        xl = x0
        for layer in self.cross:
            xl = x0 * layer(xl) + xl
        h = x0
        for layer in self.deep:
            h = F.relu(layer(h))
        return torch.sigmoid(self.out(torch.cat([xl, h], dim=-1)))
