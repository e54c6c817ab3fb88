"""What ``Group.mixed`` promises: copies of channels change nothing, or nothing in whole multiples, or something.

A network is built narrow and wide. The wide one gets the narrow one's channels twice, and what reads them is shared
among the copies; whether it then computes the same must be what the groups said.
"""

import pytest
import torch
import torch.nn.functional as F
from support.permuting import Model, Subject
from torch import nn

from netgraft.channels.groups.axes import positions

IMAGE, TOKENS = (3, 8, 8), (6, 5)
EXACT, OTHER = {}, {}


def exact(*how, size=IMAGE):
    """A network of which widening in whole multiples is exact; how its channels are mixed."""
    return lambda build: EXACT.setdefault(build.__name__, (build, set(how), size)) and build


def inexact(how, size=IMAGE):
    """A network whose copies must be noticed, and how its channels are mixed."""
    return lambda build: OTHER.setdefault(build.__name__, (build, {how}, size)) and build


class Net(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, c, 3, padding=1), nn.Linear(c, 5)
        self.c = c
        self.make(c)

    def make(self, c):
        pass

    def forward(self, x):
        return self.head(self.middle(F.silu(self.stem(x))).mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.stem, self.head = nn.Linear(5, c), nn.Linear(c, 5)
        self.c = c
        self.make(c)

    def make(self, c):
        pass

    def forward(self, x):
        return self.head(torch.tanh(self.middle(self.stem(x))).mean(1))


@exact()
class Everything(Net):
    """Residual, depthwise, squeeze and excitation, grouped, concatenation, gate, transposed, flattened."""

    def make(self, c):
        self.norm, self.dw, self.act = nn.BatchNorm2d(c), nn.Conv2d(c, c, 3, padding=1, groups=c), nn.PReLU(c)
        self.squeeze, self.excite = nn.Conv2d(c, c // 2, 1), nn.Conv2d(c // 2, c, 1)
        self.grouped = nn.Conv2d(c, 6, 3, padding=1, groups=2)
        self.gate, self.up = nn.Conv2d(c + 6, 2 * c, 1), nn.ConvTranspose2d(c, c, 2, 2)
        self.flat = nn.Linear(c * 64, c)

    def middle(self, x):
        x = x + self.act(self.dw(self.norm(x)))
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        a, b = self.gate(torch.cat([x, self.grouped(x)], 1)).chunk(2, 1)
        x = F.avg_pool2d(self.up(a * b.sigmoid()), 2)
        return self.flat(x.flatten(1))[:, :, None, None]


@exact("mean")
class SpatialAttention(Net):
    """CBAM: mean and largest over the channels."""

    def make(self, _):
        self.look = nn.Conv2d(2, 1, 3, padding=1)

    def middle(self, x):
        return x * self.look(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


@exact("mean")
class GroupNorms(Net):
    """As many groups in both."""

    def make(self, c):
        self.norm = nn.GroupNorm(2, c)

    def middle(self, x):
        return self.norm(x)


@exact("mean", size=TOKENS)
class LayerNorms(Tokens):
    def make(self, c):
        self.norm, self.rms, self.mlp = nn.LayerNorm(c), nn.RMSNorm(c), nn.Linear(c, c)

    def middle(self, x):
        return self.rms(x + self.mlp(self.norm(x)))


@exact("mean", size=TOKENS)
class SpreadOfAll(Tokens):
    def middle(self, x):
        return x / (1 + x.var(-1, correction=0, keepdim=True))


@exact(size=TOKENS)
class MoreHeads(Tokens):
    def make(self, c):
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)

    def middle(self, x):
        q, k, v = self.qkv(x).view(len(x), 6, 3, self.c // 4, 4).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), 6, self.c))


@exact(size=TOKENS)
class LongerValues(Tokens):
    def make(self, c):
        self.qk, self.v = nn.Linear(c, 8), nn.Linear(c, c)

    def middle(self, x):
        q, k = self.qk(x).chunk(2, -1)
        return (q @ k.transpose(1, 2)).softmax(-1) @ self.v(x)


@exact(size=TOKENS)
class Repeated(Tokens):
    """A layer that runs twice: copies read one another by half."""

    def make(self, c):
        self.mlp = nn.Linear(c, c)

    def middle(self, x):
        return self.mlp(torch.tanh(self.mlp(x)))


@exact(size=TOKENS)
class ProductsByHand(Tokens):
    """The weight left and right, [in, out] and [out, in], and in an einsum."""

    def make(self, c):
        self.right, self.left = nn.Parameter(torch.randn(c, c) / 3), nn.Parameter(torch.randn(9, 6) / 3)
        self.other, self.experts = nn.Parameter(torch.randn(c, c) / 3), nn.Parameter(torch.randn(3, c, 7) / 3)
        self.back = nn.Linear(7, c)

    def middle(self, x):
        x = torch.tanh(x @ self.right) @ self.other.t()
        x = torch.tanh(self.left @ x)
        return self.back(torch.einsum("bnc,ech->bneh", x, self.experts).amax(2))


@exact(size=TOKENS)
class Cells(Tokens):
    def make(self, c):
        self.lstm, self.gru = nn.LSTM(c, c, batch_first=True), nn.GRU(c, c, 2, batch_first=True, bidirectional=True)
        self.back = nn.Linear(2 * c, c)

    def middle(self, x):
        return self.back(self.gru(self.lstm(x)[0])[0])


@inexact("tied weight", size=TOKENS)
class Tied(Tokens):
    """A table that is added and multiplied with, like words and their output layer: copies here, shares there."""

    def make(self, c):
        self.table = nn.Parameter(torch.randn(6, c) / 3)

    def middle(self, x):
        x = x + self.table
        return x * (x @ self.table.t()).sigmoid().mean(-1, keepdim=True)


@inexact("variance", size=TOKENS)
class SpreadOfSample(Tokens):
    def middle(self, x):
        return x / (1 + x.std(-1, keepdim=True))


@inexact("sum", size=TOKENS)
class Sums(Tokens):
    def middle(self, x):
        return x * x.sum(-1, keepdim=True)


@inexact("sum", size=TOKENS)
class UnitVectors(Tokens):
    def middle(self, x):
        return F.normalize(x, dim=-1)


@inexact("softmax", size=TOKENS)
class SoftChannels(Tokens):
    def middle(self, x):
        return x.softmax(-1)


@inexact("product", size=TOKENS)
class LongerKeys(Tokens):
    def make(self, c):
        self.q, self.k = nn.Linear(c, c), nn.Linear(c, c)

    def middle(self, x):
        return (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ x


@inexact("weight norm")
class StandardisedWeights(Net):
    class Conv(nn.Conv2d):
        def forward(self, x):
            w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, w / w.std((1, 2, 3), keepdim=True), self.bias, padding=1)

    def make(self, c):
        self.conv = self.Conv(c, c, 3)

    def middle(self, x):
        return self.conv(x)


def subject(build, width, size):
    return Subject(Model(lambda: build(width), size))


def widened(narrow, wide):
    """The wide network's weights: the narrow one's channels again and again, shared by what reads them."""
    before = {id(var): narrow.groups.variables[name].size for name, var in wide.groups.variables.items()}
    state = dict(wide.state)
    for key, sides in wide.groups.axes.items():
        tensor = narrow.state[key]
        for d, axis in enumerate(sides):
            index = torch.tensor(
                positions(
                    axis,
                    lambda var: [c % before[id(var)] for c in range(var.size)],
                    lambda var: before.get(id(var), var.size),
                )
            )
            copies = torch.bincount(index, minlength=tensor.shape[d])
            tensor = tensor.index_select(d, index)
            if (key, d) in wide.groups.reads:
                tensor = tensor / copies[index].view([-1 if i == d else 1 for i in range(tensor.dim())])
        state[key] = tensor
    return state


def error(narrow, wide):
    wide.inputs = narrow.inputs
    answer = wide.answer(widened(narrow, wide))
    return ((answer - narrow.reference).norm() / narrow.reference.norm()).item()


def mixed(narrow, wide):
    """How the channels of the groups are mixed that are not of the same size in both."""
    pairs = list(zip(narrow.groups.groups, wide.groups.groups, strict=True))
    assert all(a.name == b.name and len(a.mixed) == len(b.mixed) for a, b in pairs)
    assert any(a.size < b.size for a, b in pairs)
    return {how for a, b in pairs if a.size < b.size for how, _ in b.mixed}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("times", [2, 3])
def test_copies_change_nothing(name, times):
    build, how, size = EXACT[name]
    narrow, wide = subject(build, 8, size), subject(build, 8 * times, size)
    assert mixed(narrow, wide) == how
    assert error(narrow, wide) < 1e-12


@pytest.mark.parametrize("name", [name for name, (_, how, _) in EXACT.items() if not how and name != "MoreHeads"])
def test_nor_where_some_channels_are_copied_once_more(name):
    build, _, size = EXACT[name]
    narrow = subject(build, 8, size)
    assert error(narrow, subject(build, 12, size)) < 1e-12


@pytest.mark.parametrize("name", [name for name, (_, how, _) in EXACT.items() if how and name != "GroupNorms"])
def test_but_a_mean_does(name):
    build, _, size = EXACT[name]
    narrow = subject(build, 8, size)
    assert error(narrow, subject(build, 12, size)) > 1e-6


@pytest.mark.parametrize("name", OTHER)
def test_copies_change_something(name):
    build, how, size = OTHER[name]
    narrow, wide = subject(build, 8, size), subject(build, 16, size)
    assert how <= mixed(narrow, wide)
    assert error(narrow, wide) > 1e-3
