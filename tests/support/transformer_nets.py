"""Transformers as people write them: with class and register tokens, layer scales, split projections, other norms."""

import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.utils import parametrizations

SIZE = (3, 16, 16)


def vit(**options):
    """timm's: 4x4 patches, two blocks of four heads."""
    given = {"num_classes": 5, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2} | options
    return VisionTransformer(img_size=16, patch_size=4, **given)


def vit_registers():
    """Tokens that are put in front of what carries positions; layer scales."""
    return vit(reg_tokens=2, no_embed_class=True, init_values=0.5)


def vit_pooled():
    return vit(class_token=False, global_pool="avg")


class Attention(nn.Module):
    """Queries, keys and values by themselves, and the textbook's formula."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Interleaved(nn.Module):
    """One projection whose rows are head by head (query, key, value), and queries that are scaled beforehand."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Rotated(Attention):
    """Queries and keys that are normalised by themselves."""

    def forward(self, x):
        q, k, v = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(2, 3)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, attention, norm, width, heads):
        super().__init__()
        self.norm1, self.attention, self.norm2 = norm(width), attention(width, heads), norm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Own(nn.Module):
    """A transformer as one writes it at home; without the ``last`` norm the head reads the stream."""

    def __init__(self, attention=Attention, norm=nn.LayerNorm, last=True, width=32, heads=4):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.Sequential(*(Block(attention, norm, width, heads) for _ in range(2)))
        self.last, self.head = norm(width) if last else nn.Identity(), nn.Linear(width, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.last(self.blocks(x))[:, 0])


class Encoder(nn.Module):
    """PyTorch's own layers, the norm before or behind what is added."""

    def __init__(self, norm_first=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
        self.patches, self.places = nn.Linear(48, 32), nn.Parameter(torch.randn(1, 16, 32))
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(32), enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = F.unfold(x, 4, stride=4).transpose(1, 2)
        return self.head(self.blocks(self.patches(x) + self.places).mean(1))


def buffered():
    """Positions that are not trained."""
    net = Own()
    places = net.places.detach()
    del net.places
    net.register_buffer("places", places)
    return net


def prepared():
    """A kernel that is put together from two parameters whenever it is used."""
    net = Own()
    parametrizations.weight_norm(net.blocks[0].down)
    return net


def rms():
    return Own(norm=nn.RMSNorm)


def interleaved():
    return Own(Interleaved)


def rotated():
    return Own(Rotated)


def bare():
    return Own(last=False)


def post_norm():
    return Encoder(norm_first=False)


def swin():
    options = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
    return SwinTransformer(img_size=16, patch_size=2, num_classes=5, **options)


def convnext():
    return ConvNeXt(num_classes=5, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), patch_size=1, ls_init_value=0.5)
