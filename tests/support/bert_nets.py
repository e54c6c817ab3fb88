"""BERT as a user writes it: token, position and type embeddings, norms behind the additions, a pooler."""

import torch
import torch.nn.functional as F
from torch import nn


class SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = (
            layer(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class BuiltIn(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Block(nn.Module):
    def __init__(self, width, heads, hidden, attention, first):
        super().__init__()
        self.attention, self.first = attention(width, heads), first
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        if self.first:
            x = x + self.attention(self.norm1(x))
            return x + self.down(F.gelu(self.up(self.norm2(x))))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    """Token numbers [batch, length] to scores; ``first`` puts the norms of blocks in front."""

    def __init__(
        self,
        width=16,
        heads=2,
        hidden=32,
        depth=2,
        vocabulary=50,
        places=12,
        classes=3,
        attention=SelfAttention,
        first=False,
        length=8,
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=0)
        self.positions = nn.Embedding(places, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, attention, first) for _ in range(depth))
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes)
        self.register_buffer("position_ids", torch.arange(places)[None], persistent=False)
        self.length = length

    def example_inputs(self):
        return (torch.zeros(2, self.length, dtype=torch.long),)

    def forward(self, ids, token_types=None):
        if token_types is None:
            token_types = torch.zeros_like(ids)
        x = self.tokens(ids) + self.types(token_types) + self.positions(self.position_ids[:, : ids.shape[1]])
        x = self.norm(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))
