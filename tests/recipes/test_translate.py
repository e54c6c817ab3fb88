"""Weights of one network in another implementation of it: both run, and nothing is claimed that was not measured."""

import pytest
import torch
import torch.nn.functional as F
from support.nets import traced, weights
from support.recipe_laws import check_laws
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from netgraft.errors import CheckFailed
from netgraft.graft import graft
from netgraft.recipes.translate import Translate

WIDTH, HEADS = 12, 3


def cut_head_by_head(x):
    """Queries, keys and values of each head lie together."""
    return x.unflatten(-1, (HEADS, 3, WIDTH // HEADS)).unbind(-2)


class Attention(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way = way
        if way == "three":
            self.v, self.k, self.q = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        elif way == "transposed":
            self.weight, self.bias = nn.Parameter(torch.randn(WIDTH, 3 * WIDTH)), nn.Parameter(torch.randn(3 * WIDTH))
        else:
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        if self.way == "interleaved":
            q, k, v = (part.transpose(1, 2) for part in cut_head_by_head(self.qkv(x)))
        else:
            if self.way == "three":
                parts = self.q(x), self.k(x), self.v(x)
            elif self.way == "transposed":
                parts = (x @ self.weight + self.bias).chunk(3, -1)
            else:
                parts = self.qkv(x).chunk(3, -1)
            q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Former(nn.Module):
    def __init__(self, way="fused", tokens=(1, 5, WIDTH)):
        super().__init__()
        self.places = nn.Parameter(torch.randn(tokens))
        self.attention, self.norm, self.head = Attention(way), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x):
        x = x + self.places
        return self.head(self.norm(x + self.attention(x)).mean(1))


def translated(one, other, size):
    """The outputs of both networks, the second with what the recipe makes of the first's weights."""
    graphs = traced(one, size), traced(other, size)
    plan = check_laws(Translate(), *graphs)
    state, own = weights(one, 1), weights(other, 2)
    nets = one(), other()
    nets[0].load_state_dict(state)
    nets[1].load_state_dict(graft(plan, state, own))
    x = torch.randn(2, *size)
    with torch.no_grad():
        return [net.eval()(x) for net in nets], plan


WAYS = ("fused", "three", "interleaved", "transposed")


@pytest.mark.parametrize("one", WAYS)
@pytest.mark.parametrize("other", WAYS)
def test_projections_of_attention(one, other):
    (before, after), plan = translated(lambda: Former(one), lambda: Former(other, (5, WIDTH)), (5, WIDTH))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    assert not plan.kept


class Convolutional(nn.Module):
    def __init__(self, norm=True, wrap=lambda layer: layer, eps=1e-5, act=F.relu, affine=True):
        super().__init__()
        self.act = act
        self.conv = wrap(nn.Conv2d(3, 6, 3, bias=not norm))
        self.norm = nn.BatchNorm2d(6, eps=eps, affine=affine) if norm else nn.Identity()
        self.last = wrap(nn.Conv2d(6, 4, 1))

    def forward(self, x):
        return self.last(self.act(self.norm(self.conv(x)))).mean((2, 3))


NETS = {
    "a norm folded away": (Convolutional, lambda: Convolutional(norm=False)),
    "with an eps of its own": (lambda: Convolutional(eps=1e-2), lambda: Convolutional(norm=False)),
    "a norm where there was none": (lambda: Convolutional(norm=False), Convolutional),
    "a norm of another eps where there was none": (lambda: Convolutional(norm=False), lambda: Convolutional(eps=0.5)),
    "a norm without an affine part": (lambda: Convolutional(affine=False), lambda: Convolutional(norm=False)),
    "weight norm multiplied out": (lambda: Convolutional(wrap=weight_norm), Convolutional),
    "weight norm taken on": (Convolutional, lambda: Convolutional(wrap=weight_norm)),
}


@pytest.mark.parametrize("name", NETS)
def test_norms(name):
    (before, after), plan = translated(*NETS[name], (3, 8, 8))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    assert not [kept for kept in plan.kept if not kept.key.endswith("num_batches_tracked")]


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)
        self.gamma = nn.Parameter(torch.rand(3, 1, 1)) if scale else None

    def forward(self, x):
        y = self.conv(x)
        return self.head((x + (y if self.gamma is None else self.gamma * y)).mean((2, 3)))


@pytest.mark.parametrize("scales", [(True, False), (False, True), (True, True)])
def test_layer_scale(scales):
    (before, after), plan = translated(lambda: Scaled(scales[0]), lambda: Scaled(scales[1]), (3, 8, 8))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    assert not plan.kept


class Patches(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way = way
        self.embed = nn.Conv2d(3, 6, 4, 4) if way == "conv" else nn.Linear(48, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        if self.way == "conv":
            x = self.embed(x).flatten(2).transpose(1, 2)
        elif self.way == "unfold":
            x = self.embed(F.unfold(x, 4, stride=4).transpose(1, 2))
        else:
            x = x.unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 3, 5, 1)
            x = self.embed(x.reshape(len(x), 4, 48))
        return self.head(torch.tanh(x).mean(1))


@pytest.mark.parametrize("one", ["conv", "unfold", "cut"])
@pytest.mark.parametrize("other", ["conv", "unfold", "cut"])
def test_patches(one, other):
    (before, after), _ = translated(lambda: Patches(one), lambda: Patches(other), (3, 8, 8))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


def test_two_networks_are_refused():
    graphs = traced(Convolutional, (3, 8, 8)), traced(lambda: Patches("conv"), (3, 8, 8))
    with pytest.raises(CheckFailed, match="not one network"):
        check_laws(Translate(), *graphs)


def test_a_biased_layer_among_unbiased_ones():
    """Queries and values have biases that are the code's own parameters, keys have none, as in BEiT."""

    class Beit(Former):
        def __init__(self):
            super().__init__()
            self.attention = nn.Module()
            self.attention.qkv, self.attention.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
            self.q_bias, self.v_bias = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))

        def forward(self, x):
            x = x + self.places
            bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
            parts = F.linear(x, self.attention.qkv.weight, bias).chunk(3, -1)
            q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
            y = self.attention.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            return self.head(self.norm(x + y).mean(1))

    class Three(Former):
        def __init__(self):
            super().__init__("three")
            self.attention.k = nn.Linear(WIDTH, WIDTH, bias=False)

    for one, other in ((Beit, Three), (Three, Beit), (Beit, Beit)):
        (before, after), plan = translated(one, other, (5, WIDTH))
        torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
        assert not plan.kept


class Tabled(nn.Module):
    """Positions that are learned, stored, or made anew each time."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        if way == "learned":
            self.place = nn.Parameter(torch.randn(5, WIDTH))
        elif way == "stored":
            self.register_buffer("rows", torch.randn(1, 5, WIDTH))
        else:
            self.register_buffer("made", torch.arange(5.0)[:, None].expand(5, WIDTH).clone(), persistent=False)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x):
        table = {"learned": "place", "stored": "rows", "made": "made"}[self.way]
        return self.head(torch.tanh(x + getattr(self, table))).mean(1)


@pytest.mark.parametrize(("one", "other"), [("learned", "stored"), ("stored", "learned")])
def test_a_table_that_one_learns_and_the_other_stores(one, other):
    (before, after), plan = translated(lambda: Tabled(one), lambda: Tabled(other), (5, WIDTH))
    torch.testing.assert_close(before, after)
    assert not plan.kept


def test_a_table_that_nobody_has_stays_as_it_is_made():
    _, plan = translated(lambda: Tabled("made"), lambda: Tabled("learned"), (5, WIDTH))
    assert [kept.key for kept in plan.kept] == ["place"]


class Turned(nn.Module):
    """Queries and keys are rotated: they are read whole, and in halves."""

    def __init__(self, fused):
        super().__init__()
        if fused:
            self.all = nn.Linear(WIDTH, 3 * WIDTH)
        else:
            self.v, self.q, self.k = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.fused, self.out = fused, nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.all(x).chunk(3, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
        angle = torch.arange(x.shape[1])[:, None] / torch.tensor([1.0, 10.0])
        cos, sin = (f(torch.cat([angle, angle], -1)) for f in (torch.cos, torch.sin))
        q, k = (part * cos + torch.cat([-part[..., 2:], part[..., :2]], -1) * sin for part in (q, k))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("one", "other"), [(True, False), (False, True)])
def test_projections_that_are_read_whole_and_in_halves(one, other):
    (before, after), plan = translated(lambda: Turned(one), lambda: Turned(other), (5, WIDTH))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    assert not plan.kept
