"""Small networks as users write them, each with one thing that couples channels, or gives them a meaning."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

CASES = {}


class Case(NamedTuple):
    """A network, the sizes of its groups, the parameters that stand in none of them, and its input."""

    build: Callable[[], nn.Module]
    sizes: tuple[int, ...]
    fixed: frozenset[str]
    size: tuple[int, ...] | None
    inputs: Callable[[], tuple] | None


def case(*sizes, fixed="", size=(3, 8, 8), inputs=None):
    """Register a network with the sizes of its groups; the bias of its head never stands in one."""

    def register(build):
        CASES[build.__name__] = Case(build, sizes, frozenset(fixed.split()) | {"head.bias"}, size, inputs)
        return build

    return register


class Net(nn.Module):
    """A stem, a middle that subclasses fill, and a head over the pooled channels."""

    width, out = 8, None

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, self.width, 3, padding=1)
        self.head = nn.Linear(self.out or self.width, 5)
        self.make(self.width)

    def make(self, c):
        pass

    def middle(self, x):
        return x

    def forward(self, x):
        return self.head(self.middle(F.silu(self.stem(x))).mean((2, 3)))


class Tokens(nn.Module):
    """A projection of 6 tokens, a middle, and a head over their mean."""

    width = 8

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(5, self.width)
        self.head = nn.Linear(self.width, 5)
        self.make(self.width)

    def make(self, c):
        pass

    def middle(self, x):
        return x

    def forward(self, x):
        return self.head(torch.tanh(self.middle(self.stem(x))).mean(1))


# ------------------------------------------------------------------------------------------------------- convolutions


@case(8)
class Plain(Net):
    pass


@case(8, 12)
class Residual(Net):
    def make(self, c):
        self.a, self.b, self.norm = nn.Conv2d(c, 12, 3, padding=1), nn.Conv2d(12, c, 1), nn.BatchNorm2d(c)

    def middle(self, x):
        return x + self.norm(self.b(self.a(x).relu()))


@case(8, 3, 5)
class Concatenated(Net):
    out = 16

    def make(self, c):
        self.a, self.b = nn.Conv2d(c, 3, 3, padding=1), nn.Conv2d(c, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)

    def middle(self, x):
        return self.norm(torch.cat([self.a(x), x, self.b(x)], 1))


@case(8, 6, 8, 8)
class ChunkAndGate(Net):
    def make(self, c):
        self.up, self.norm, self.down = nn.Conv2d(c, 12, 1), nn.BatchNorm2d(12), nn.Conv2d(6, c, 1)
        self.last = nn.Conv2d(c, c, 1)

    def middle(self, x):
        a, b = self.norm(self.up(x)).chunk(2, 1)
        return self.last(self.down(a * b.sigmoid()))


@case(8, 6, 2)
class Depthwise(Net):
    def make(self, c):
        self.dw, self.pw = nn.Conv2d(c, c, 3, padding=1, groups=c), nn.Conv2d(c, 6, 1)
        self.twice = nn.Conv2d(6, 12, 3, groups=6)

    out = 12

    def middle(self, x):
        return self.twice(self.pw(self.dw(x)).relu())


@case(2, 4, 2, 3, 2)
class Grouped(Net):
    def make(self, c):
        self.a, self.b = nn.Conv2d(c, 12, 3, groups=2), nn.Conv2d(12, c, 3, groups=4)

    def middle(self, x):
        return self.b(self.a(x).relu())


@case(2, 4, 2, 3, 4)
class Shuffled(Net):
    """ShuffleNet: grouped convolutions with a channel shuffle written by reshapes."""

    def make(self, c):
        self.a, self.b = nn.Conv2d(c, 12, 1, groups=2), nn.Conv2d(12, c, 1, groups=2)

    def middle(self, x):
        x = self.a(x).relu()
        n, c, h, w = x.shape
        return self.b(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


@case(8, 4)
class SqueezeExcite(Net):
    def make(self, c):
        self.reduce, self.expand = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1)

    def middle(self, x):
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


@case(8, 7)
class Flattened(Net):
    out = 7

    def make(self, c):
        self.hidden = nn.Linear(c * 64, 7)

    def forward(self, x):
        return self.head(self.hidden(self.stem(x).flatten(1)).relu())


@case(2, 4, 3, 3)
class UpAndDown(Net):
    """Pixel shuffle, its inverse, a transposed convolution, a skip over a resize."""

    def make(self, c):
        self.up, self.down = nn.Conv2d(c, 12, 1), nn.Conv2d(12, c, 1)
        self.transposed = nn.ConvTranspose2d(c, 6, 2, 2, groups=2)
        self.last = nn.Conv2d(6, c, 2, 2)

    def middle(self, x):
        y = F.pixel_unshuffle(F.pixel_shuffle(self.up(x), 2), 2)
        y = x + self.down(y)
        y = self.last(self.transposed(y))
        return y + F.interpolate(F.max_pool2d(x, 2), scale_factor=2)


@case(12, 3, 4)
class Norms(Net):
    """Group norm may only exchange whole groups, and channels inside them; instance norm and PReLU any."""

    width = 12

    def make(self, c):
        self.gn, self.inorm, self.act = nn.GroupNorm(3, c), nn.InstanceNorm2d(c, affine=True), nn.PReLU(c)
        self.next = nn.Conv2d(c, c, 1)

    def middle(self, x):
        return self.act(self.gn(self.next(self.inorm(x))))


@case(4, 3)
class GroupStatistics(Net):
    """EvoNorm-like: statistics of groups of channels in a module of its own."""

    width = 12

    class Norm(nn.Module):
        def __init__(self, c, groups):
            super().__init__()
            self.weight, self.bias, self.groups = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c)), groups

        def forward(self, x):
            n, c, h, w = x.shape
            spread = x.reshape(n, self.groups, c // self.groups, h, w).var((2, 3, 4), keepdim=True).add(1e-5).sqrt()
            spread = spread.expand(n, self.groups, c // self.groups, h, w).reshape(n, c, h, w)
            return x * x.sigmoid() / spread * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    def make(self, c):
        self.norm = self.Norm(c, 4)

    def middle(self, x):
        return self.norm(x)


@case(8)
class NormOverChannelsFirst(Net):
    """LayerNorm2d where width, height and number of channels are the same."""

    class Norm(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))

        def forward(self, x):
            x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias)
            return x.permute(0, 3, 1, 2)

    def make(self, c):
        self.norm = self.Norm(c)

    def middle(self, x):
        return self.norm(x)


@case(8)
class NormByHand(Net):
    """The same by mean and variance over axis 1."""

    class Norm(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))

        def forward(self, x):
            mean = x.mean(1, keepdim=True)
            x = (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
            return self.weight[:, None, None] * x + self.bias[:, None, None]

    def make(self, c):
        self.norm = self.Norm(c)

    def middle(self, x):
        return self.norm(x)


@case(8, 6, 8)
class StandardisedWeights(Net):
    """Weight standardisation, weight norm, spectral norm on a square matrix."""

    class Conv(nn.Conv2d):
        def forward(self, x):
            w = self.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
            return F.conv2d(x, w, self.bias, padding=1)

    def make(self, c):
        self.std, self.wn = self.Conv(c, 6, 3), parametrizations.weight_norm(nn.Conv2d(6, c, 1))

    def middle(self, x):
        return self.wn(self.std(x))


@case(fixed="stem.weight stem.bias sn.bias sn.parametrizations.weight.original head.weight")
class SpectralNorm(Net):
    def make(self, c):
        self.sn = parametrizations.spectral_norm(nn.Linear(c, c))

    def middle(self, x):
        return self.sn(x.mean((2, 3)))[:, :, None, None]


@case(fixed="stem.weight stem.bias conv.weight conv.bias head.weight")
class Masked(Net):
    """A convolution whose weight is multiplied with a mask that stands in the state_dict."""

    class Conv(nn.Conv2d):
        def __init__(self, c):
            super().__init__(c, c, 3, padding=1)
            self.register_buffer("mask", (torch.rand(self.weight.shape) > 0.3).float())

        def forward(self, x):
            return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)

    def make(self, c):
        self.conv = self.Conv(c)

    def middle(self, x):
        return x + self.conv(x)


@case(fixed="stem.weight stem.bias conv.weight conv.bias head.weight")
class MaskedByNumber(Net):
    """The same with a mask that no checkpoint holds."""

    class Conv(nn.Conv2d):
        def __init__(self, c):
            super().__init__(c, c, 3, padding=1)
            self.register_buffer("mask", torch.arange(c).view(-1, 1, 1, 1) % 3 + 0.5, persistent=False)

        def forward(self, x):
            return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)

    def make(self, c):
        self.conv = self.Conv(c)

    def middle(self, x):
        return x + self.conv(x)


@case(8)
class Blur(Net):
    """A constant kernel, the same for every channel."""

    def make(self, _):
        self.register_buffer("kernel", torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None], persistent=False)

    def middle(self, x):
        return F.conv2d(x, self.kernel.expand(x.shape[1], 1, 3, 3), stride=2, groups=x.shape[1])


@case(fixed="stem.weight stem.bias head.weight")
class ChannelsWithPlaces(Net):
    def make(self, c):
        self.register_buffer("ramp", torch.linspace(0, 1, c)[:, None, None], persistent=False)

    def middle(self, x):
        return x * self.ramp


@case(fixed="stem.weight stem.bias head.weight")
class Summed(Net):
    def middle(self, x):
        return x.cumsum(1) + x.flip(1)


@case(8)
class LargerOfTwo(Net):
    def make(self, c):
        self.other = nn.Conv2d(3, c, 3, padding=1)

    def forward(self, x):
        a, b = self.stem(x), self.other(x)
        a = torch.where(a > 0.1, torch.max(a, b), torch.minimum(a, b))
        return self.head(a.mean((2, 3)))


@case(fixed="stem.weight stem.bias a.weight a.bias b.weight b.bias head.weight")
class WrittenInPlace(Net):
    """A map put together by assignments."""

    out = 14

    def make(self, c):
        self.a, self.b = nn.Conv2d(c, 6, 1), nn.Conv2d(c, c, 1)

    def middle(self, x):
        y = x.new_zeros(x.shape[0], 14, 8, 8)
        y[:, :6] = self.a(x)
        y[:, 6:] = self.b(x)
        z = torch.zeros_like(x) + x
        z[:, 2:5] += self.b(x)[:, :3]
        return y + torch.cat([z, z[:, :6]], 1)


@case(fixed="stem.weight stem.bias mix.weight head.weight")
class ResidualInsideALayer(Net):
    """A module of one matrix whose forward pass does more than multiply."""

    class Mix(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(c, c))

        def forward(self, x):
            return x + F.linear(x, self.weight).relu()

    def make(self, c):
        self.mix = self.Mix(c)

    def middle(self, x):
        return self.mix(x.mean((2, 3)))[:, :, None, None]


@case(8, fixed="mix.weight")
class Pointwise(Net):
    """A convolution over stacked branches; each channel is a position that sees no other."""

    def make(self, c):
        self.a, self.mix = nn.Conv2d(c, c, 1), nn.Conv1d(3, 1, 1)

    def middle(self, x):
        y = self.a(x)
        stacked = torch.stack([x.mean((2, 3)), y.mean((2, 3)), y.amax((2, 3))], 1)
        return self.mix(stacked).squeeze(1)[:, :, None, None]


# ------------------------------------------------------------------------------------------------------------- tokens


@case(8, 2, 4, size=(6, 5))
class Attention(Tokens):
    """Query, key and value in one matrix; two heads."""

    def make(self, c):
        self.norm, self.qkv, self.proj = nn.LayerNorm(c), nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.place, self.first = nn.Parameter(torch.zeros(1, 7, c)), nn.Parameter(torch.zeros(1, 1, c))

    def middle(self, x):
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.place
        q, k, v = self.qkv(self.norm(x)).reshape(len(x), 7, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q @ k.transpose(-2, -1)) * 0.5).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(len(x), 7, 8))


@case(8, 2, 4, 8, size=(6, 5))
class SeparateBiases(Tokens):
    """BEiT: a bias of queries and one of values, zeros for the keys in between."""

    def make(self, c):
        self.qkv, self.proj = nn.Linear(c, 3 * c, bias=False), nn.Linear(c, c)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(c)), nn.Parameter(torch.zeros(c))
        self.register_buffer("k_bias", torch.zeros(c), persistent=False)

    def middle(self, x):
        qkv = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, self.k_bias, self.v_bias]))
        q, k, v = qkv.view(len(x), 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), 6, 8))


@case(8, 2, 2, 4, 4, 10, size=(6, 5))
class GroupedQueries(Tokens):
    """Four heads of queries for two of keys and values, spread by repeat_interleave; SwiGLU; RMSNorm."""

    def make(self, c):
        self.q, self.kv, self.o = nn.Linear(c, 16), nn.Linear(c, 16), nn.Linear(16, c)
        self.gate, self.up, self.down = nn.Linear(c, 10), nn.Linear(c, 10), nn.Linear(10, c)
        self.norm = nn.RMSNorm(c)

    def middle(self, x):
        q = self.q(x).view(len(x), 6, 4, 4).transpose(1, 2)
        k, v = (t.reshape(len(x), 6, 2, 4).transpose(1, 2) for t in self.kv(self.norm(x)).chunk(2, -1))
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(len(x), 6, 16))
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


@case(8, 2, 4, size=(6, 5))
class Rotary(Tokens):
    """Channels of queries and keys have places, heads and values do not."""

    def make(self, c):
        self.q, self.k, self.v = (nn.Linear(c, c, bias=False) for _ in range(3))
        self.register_buffer("angle", torch.outer(torch.arange(6), 10.0 ** -torch.arange(2)), persistent=False)

    def turn(self, x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.angle.cos() - b * self.angle.sin(), a * self.angle.sin() + b * self.angle.cos()], -1)

    def middle(self, x):
        q, k, v = (f(x).view(len(x), 6, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        return y.transpose(1, 2).reshape(len(x), 6, 8)


@case(8, 2, 4, 2, 4, 12, size=(6, 5))
class TorchAttention(Tokens):
    def make(self, c):
        self.attention = nn.MultiheadAttention(c, 2, batch_first=True)
        self.block = nn.TransformerEncoderLayer(c, 2, 12, batch_first=True)

    def middle(self, x):
        return self.block(x + self.attention(x, x, x)[0])


@case(8, 5, 5, 5, 5, 6, 8, size=(6, 5))
class Recurrent(Tokens):
    def make(self, c):
        self.lstm = nn.LSTM(c, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.gru, self.back = nn.GRU(10, 6, batch_first=True), nn.Linear(6, c)

    def middle(self, x):
        return self.back(self.gru(self.lstm(x)[0])[0])


@case(8, fixed="lstm.weight_hh_l0 lstm.bias_ih_l0 lstm.bias_hh_l0 head.weight", size=(6, 5))
class LastState(Tokens):
    """What is read of an LSTM is its last hidden state: nothing about it is known."""

    def make(self, c):
        self.lstm = nn.LSTM(c, c, batch_first=True)

    def middle(self, x):
        return self.lstm(x)[1][0].transpose(0, 1)


class SquareConv1D(nn.Module):
    def __init__(self, inp, out):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inp, out) / 3), nn.Parameter(torch.zeros(out))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(x.shape)


@case(8, 8, 8, 8, 8, 8, 8, size=(8, 5))
class SquareMatrices(Tokens):
    """Everything has length eight: which side is multiplied shows in the code alone."""

    def make(self, c):
        self.gpt, self.gpt2 = SquareConv1D(c, c), SquareConv1D(c, c)
        self.left, self.right, self.ein = (nn.Parameter(torch.randn(c, c) / 3) for _ in range(3))
        self.transposed = nn.Parameter(torch.randn(c, c) / 3)

    def middle(self, x):
        x = self.gpt2(torch.tanh(self.gpt(x)))
        x = torch.tanh(self.left @ x)
        x = torch.tanh(x @ self.right)
        x = torch.tanh(x @ self.transposed.t())
        return torch.einsum("bnc,dc->bnd", x, self.ein)


@case(8, 9, 8, fixed="back.bias", size=(6, 5))
class Mixer(Tokens):
    """A layer over the tokens, whose places have a meaning."""

    def make(self, c):
        self.tokens, self.back, self.mlp = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(c, c)
        self.scale = nn.Parameter(torch.ones(c))

    def middle(self, x):
        x = x + self.scale * self.back(self.tokens(x.transpose(1, 2)).relu()).transpose(1, 2)
        return self.mlp(x)


@case(8, 12, 7, size=None, inputs=lambda: (torch.arange(12).view(2, 6) % 11,))
class Language(nn.Module):
    """Embeddings of words and places, a tied output."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.up, self.down, self.norm = nn.Linear(8, 12), nn.Linear(12, 8), nn.LayerNorm(8)
        self.mid = nn.Linear(8, 7)
        self.back = nn.Linear(7, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(6))
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.out(self.back(self.mid(x).relu()))


@case(8, 6, 8, fixed="router.bias", size=(6, 5))
class Experts(Tokens):
    """A router that picks by topk, and experts in one tensor."""

    def make(self, c):
        self.router, self.up = nn.Linear(c, 3), nn.Parameter(torch.randn(3, c, 6) / 3)
        self.down = nn.Parameter(torch.randn(3, 6, c) / 3)

    def middle(self, x):
        weight = self.router(x).softmax(-1)
        kept = weight * (weight >= weight.topk(2, -1).values[..., -1:])
        hidden = torch.einsum("bnc,ech->bneh", x, self.up).relu()
        return torch.einsum("bneh,ehc,bne->bnc", hidden, self.down, kept)


@case(fixed="stem.weight stem.bias head.weight", size=(6, 5))
class Sorted(Tokens):
    def middle(self, x):
        return x.sort(-1).values + x.roll(1, -1) + x.std(-1, keepdim=True)


@case(8, size=(6, 5))
class SharedTwice(Tokens):
    """A layer that runs twice makes its input and its output one group."""

    def make(self, c):
        self.layer, self.hyper = nn.Linear(c, c), nn.Linear(c, c)

    def middle(self, x):
        y = self.layer(torch.tanh(self.layer(x)))
        return y + F.linear(x, self.layer.weight * 0.5) + self.hyper(x) * self.layer.bias
