"""Vision transformers whose class token, positions, patches and fixed tables are held in other ways."""

import math

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, PLACES = 16, 16


class Blocks(nn.Module):
    """Two blocks of single-head attention and an MLP."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(2))

    def forward(self, x):
        for i in range(2):
            q, k, v = self.qkv[i](self.norms[2 * i](x)).chunk(3, -1)
            x = x + self.out[i]((q @ k.mT / math.sqrt(WIDTH)).softmax(-1) @ v)
            x = x + self.down[i](F.gelu(self.up[i](self.norms[2 * i + 1](x))))
        return x


class Base(nn.Module):
    """Patches by a convolution; what is in front of the blocks is up to ``embed``."""

    def __init__(self):
        super().__init__()
        self.make_tokens()
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.blocks, self.norm, self.head = Blocks(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def make_tokens(self):
        pass

    def patches(self, x):
        return self.patch(x).flatten(2).transpose(1, 2)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.embed(self.patches(x))))[:, 0])


class Rank3(Base):
    def make_tokens(self):
        self.cls_token = nn.Parameter(0.5 * torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(0.5 * torch.randn(1, PLACES + 1, WIDTH))

    def embed(self, x):
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed


class Rank1(Base):
    """The class token is [C], the positions are an embedding [N + 1, C] read at fixed ids, which are a buffer."""

    def make_tokens(self):
        self.class_embedding = nn.Parameter(0.5 * torch.randn(WIDTH))
        self.position_embedding = nn.Embedding(PLACES + 1, WIDTH)
        self.register_buffer("position_ids", torch.arange(PLACES + 1).unsqueeze(0))

    def embed(self, x):
        token = self.class_embedding + torch.zeros(x.shape[0], 1, WIDTH, device=x.device)
        return torch.cat([token, x], dim=1) + self.position_embedding(self.position_ids)


class Rank2(Base):
    def make_tokens(self):
        self.positions = nn.Parameter(0.5 * torch.randn(PLACES + 1, WIDTH))
        self.token = nn.Parameter(0.5 * torch.randn(1, WIDTH))

    def embed(self, x):
        return torch.cat([self.token.unsqueeze(0).repeat(x.shape[0], 1, 1), x], 1) + self.positions[None]


class Apart(Base):
    """The position of the class token is a parameter of its own."""

    def make_tokens(self):
        self.pos_cls = nn.Parameter(0.5 * torch.randn(1, 1, WIDTH))
        self.pos_patch = nn.Parameter(0.5 * torch.randn(1, PLACES, WIDTH))
        self.cls = nn.Parameter(0.5 * torch.randn(1, 1, WIDTH))

    def embed(self, x):
        token = (self.cls + self.pos_cls).expand(x.shape[0], -1, -1)
        return torch.cat([token, x + self.pos_patch], 1)


class Absorbed(Base):
    """The class token already holds its position, as timm's ``no_embed_class`` does."""

    def make_tokens(self):
        self.cls_token = nn.Parameter(0.5 * torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(0.5 * torch.randn(1, PLACES, WIDTH))

    def embed(self, x):
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x + self.pos_embed], 1)


class Map(Absorbed):
    """Positions are a map [1, C, 4, 4], added before the patches are put in a row."""

    def make_tokens(self):
        self.first = nn.Parameter(0.5 * torch.randn(WIDTH))
        self.grid = nn.Parameter(0.5 * torch.randn(1, WIDTH, 4, 4))

    def patches(self, x):
        return (self.patch(x) + self.grid).flatten(2).transpose(1, 2)

    def embed(self, x):
        return torch.cat([self.first.expand(x.shape[0], 1, -1), x], 1)


def rank3():
    return Rank3()


def rank1():
    return Rank1()


def rank2():
    return Rank2()


def apart():
    return Apart()


def absorbed():
    return Absorbed()


def as_map():
    return Map()


# ------------------------------------------------------------------------------------------------------------- patches


class Unfolded(Rank3):
    """Patches are cut out, (row, column, channel) in a row each, and go through a linear layer."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Linear(4 * 4 * 3, WIDTH)

    def patches(self, x):
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1)
        return self.patch(x.reshape(b, (h // 4) * (w // 4), 4 * 4 * c))


class ByUnfold(Rank3):
    """The same with F.unfold, whose rows are (channel, row, column)."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Linear(3 * 4 * 4, WIDTH)

    def patches(self, x):
        return self.patch(F.unfold(x, 4, stride=4).transpose(1, 2))


def unfolded():
    return Unfolded()


def by_unfold():
    return ByUnfold()


# -------------------------------------------------------------------------------------------------------- fixed tables


def sines():
    angle = torch.arange(PLACES)[:, None] / 10000 ** (torch.arange(0, WIDTH, 2) / WIDTH)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[None]


class StoredSines(Base):
    """The table of sines is in the state_dict."""

    def make_tokens(self):
        self.register_buffer("pe", sines())

    def embed(self, x):
        return x + self.pe[:, : x.shape[1]]


class ParameterSines(Base):
    """It is a parameter that does not learn."""

    def make_tokens(self):
        self.pos_embed = nn.Parameter(sines(), requires_grad=False)

    def embed(self, x):
        return x + self.pos_embed


class ComputedSines(Base):
    """It is computed, and no file holds it."""

    def make_tokens(self):
        self.register_buffer("table", sines(), persistent=False)

    def embed(self, x):
        return x + self.table


def stored_sines():
    return StoredSines()


def parameter_sines():
    return ParameterSines()


def computed_sines():
    return ComputedSines()
