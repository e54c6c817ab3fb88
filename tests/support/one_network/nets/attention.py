"""One small vision transformer, with queries, keys and values held and computed in many ways.

Sixteen tokens of a 16x16 image and a class token, width 24, three heads, two blocks.
"""

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, HIDDEN = 24, 3, 40


def heads_of(x):  # [B, N, C] -> [B, H, N, C/H]
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)


def joined(x):  # and back
    return x.transpose(1, 2).flatten(2)


# ---------------------------------------------------------------------------------------------------------- attentions


class Fused(nn.Module):
    """One linear layer; its rows are all queries, all keys, all values."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        return self.proj(joined(F.scaled_dot_product_attention(q, k, v)))


class Chunked(Fused):
    """The same rows, cut by ``chunk``, with the textbook's formula."""

    def forward(self, x):
        q, k, v = (heads_of(part) for part in self.qkv(x).chunk(3, dim=-1))
        weights = torch.softmax(q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5, dim=-1)
        return self.proj(joined(weights @ v))


class Three(nn.Module):
    """Three linear layers, registered value first."""

    def __init__(self):
        super().__init__()
        self.value, self.key, self.query = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = heads_of(self.query(x)), heads_of(self.key(x)), heads_of(self.value(x))
        weights = ((q * (WIDTH // HEADS) ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
        return self.out(joined(weights @ v))


class Interleaved(nn.Module):
    """One linear layer whose rows are head by head (query, key, value), as in GPT-NeoX."""

    def __init__(self):
        super().__init__()
        self.mixed, self.dense = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.mixed(x).view(b, n, HEADS, 3 * c // HEADS).transpose(1, 2).chunk(3, dim=-1)
        return self.dense(joined(F.scaled_dot_product_attention(q, k, v)))


class Multihead(nn.Module):
    """PyTorch's module with its ``in_proj_weight``."""

    def __init__(self):
        super().__init__()
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x):
        return self.mha(x, x, x, need_weights=False)[0]


class KeyValue(nn.Module):
    """Queries apart, keys and values together, as in PVT."""

    def __init__(self):
        super().__init__()
        self.q, self.kv, self.proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, HEADS, c // HEADS).permute(0, 2, 1, 3)
        k, v = self.kv(x).reshape(b, n, 2, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1)).mul((c // HEADS) ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class Conv1D(nn.Module):
    """GPT-2's linear layer, [in, out]."""

    def __init__(self, width_in, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width_in, width) * 0.1), nn.Parameter(torch.zeros(width))
        self.width = width

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.width)


class TransposedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_attn, self.c_proj = Conv1D(WIDTH, 3 * WIDTH), Conv1D(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = (heads_of(part) for part in self.c_attn(x).split(WIDTH, dim=2))
        return self.c_proj(joined((q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v))


class Parameters(nn.Module):
    """The weights lie about as parameters, [head, in, out] each, and are used by ``einsum``."""

    def __init__(self):
        super().__init__()
        size = WIDTH // HEADS
        self.w_q, self.w_k, self.w_v = (nn.Parameter(torch.randn(HEADS, WIDTH, size) * 0.2) for _ in range(3))
        self.b_q, self.b_k, self.b_v = (nn.Parameter(torch.zeros(HEADS, size)) for _ in range(3))
        self.w_o, self.b_o = nn.Parameter(torch.randn(HEADS, size, WIDTH) * 0.2), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x):
        q, k, v = (
            torch.einsum("bnc,hcd->bhnd", x, w) + b[:, None]
            for w, b in ((self.w_q, self.b_q), (self.w_k, self.b_k), (self.w_v, self.b_v))
        )
        weights = torch.einsum("bhnd,bhmd->bhnm", q, k).mul((WIDTH // HEADS) ** -0.5).softmax(-1)
        return torch.einsum("bhnd,hdc->bnc", torch.einsum("bhnm,bhmd->bhnd", weights, v), self.w_o) + self.b_o


# ---------------------------------------------------------------------------------------------------------------- MLPs


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class PointwiseMlp(nn.Module):
    """The same as 1x1 convolutions over the tokens."""

    def __init__(self):
        super().__init__()
        self.expand, self.contract = nn.Conv1d(WIDTH, HIDDEN, 1), nn.Conv1d(HIDDEN, WIDTH, 1)

    def forward(self, x):
        return self.contract(F.gelu(self.expand(x.transpose(1, 2)))).transpose(1, 2)


class TransposedMlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(WIDTH, HIDDEN), Conv1D(HIDDEN, WIDTH)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))


class Gated(nn.Module):
    """SwiGLU with two linear layers."""

    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class GateFirst(nn.Module):
    """The gate is the first half of one layer's rows."""

    def __init__(self):
        super().__init__()
        self.w12, self.w3 = nn.Linear(WIDTH, 2 * HIDDEN, bias=False), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        gate, up = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * up)


class GateLast(nn.Module):
    """The gate is the second half."""

    def __init__(self):
        super().__init__()
        self.both, self.back = nn.Linear(WIDTH, 2 * HIDDEN, bias=False), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        both = self.both(x)
        return self.back(both[..., :HIDDEN] * (both[..., HIDDEN:] * torch.sigmoid(both[..., HIDDEN:])))


# -------------------------------------------------------------------------------------------------------- the network


class Layer(nn.Module):
    def __init__(self, attention, mlp, norm):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = norm(WIDTH), attention(), norm(WIDTH), mlp()

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vision(nn.Module):
    def __init__(self, attention=Fused, mlp=Mlp, norm=nn.LayerNorm):
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.5)
        self.pos_embed = nn.Parameter(torch.randn(1, 17, WIDTH) * 0.5)
        self.blocks = nn.Sequential(*(Layer(attention, mlp, norm) for _ in range(2)))
        self.norm, self.head = norm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def fused():
    return Vision()


def chunked():
    return Vision(Chunked)


def three():
    return Vision(Three)


def interleaved():
    return Vision(Interleaved)


def multihead():
    return Vision(Multihead)


def key_value():
    return Vision(KeyValue)


def transposed():
    return Vision(TransposedAttention, TransposedMlp)


def parameters():
    return Vision(Parameters)


def pointwise_mlp():
    return Vision(Fused, PointwiseMlp)


def gated():
    return Vision(Fused, Gated)


def gate_first():
    return Vision(Fused, GateFirst)


def gate_last():
    return Vision(Fused, GateLast)


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.g * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rms_norm():
    return Vision(norm=lambda width: nn.RMSNorm(width, eps=1e-6))


def rms_norm_written():
    return Vision(norm=RMSNorm)


class WrittenLayerNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        var = (x - mean).pow(2).mean(-1, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * self.gain + self.offset


def layer_norm_written():
    return Vision(norm=WrittenLayerNorm)


class EncoderLayers(nn.Module):
    """PyTorch's own encoder layers, norm first."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.position = nn.Parameter(torch.randn(17, WIDTH) * 0.5)
        self.token = nn.Parameter(torch.randn(WIDTH) * 0.5)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, 0.1, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.classify = nn.Linear(WIDTH, 10)

    def forward(self, x):
        x = self.embed(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.token.view(1, 1, -1).repeat(x.shape[0], 1, 1), x], dim=1) + self.position
        return self.classify(self.encoder(x).select(1, 0))


def encoder_layers():
    return EncoderLayers()
