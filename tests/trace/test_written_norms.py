"""Batch norms in every spelling are layers with their statistics; caches that a trace has filled are emptied."""

import functools

import pytest
import torch
import torch.nn.functional as F
from support.nets import traced
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from netgraft.trace.written_norms import written_norm


class Written(nn.Module):
    """gamma, beta and the statistics under names of its own; ``act`` may end it."""

    def __init__(self, width, act=None, eps=1e-3, scale=1.0):
        super().__init__()
        self.shape = (1, width, 1, 1)
        self.g, self.o = nn.Parameter(torch.ones(self.shape)), nn.Parameter(torch.zeros(self.shape))
        self.register_buffer("centre", torch.zeros(self.shape))
        self.register_buffer("spread", torch.ones(self.shape))
        self.act, self.eps, self.scale = act, eps, scale

    def forward(self, x):
        y = (x - self.centre) * (self.spread + self.eps).rsqrt() * self.g * self.scale + self.o
        return y if self.act is None else self.act(y)


class Four(nn.Module):
    """Four vectors of one length that are no batch norm."""

    def __init__(self, width):
        super().__init__()
        for name in "abcd":
            self.register_buffer(name, torch.zeros(width))

    def forward(self, x):
        return x * self.a[:, None, None] + self.b[:, None, None] + self.c[:, None, None] - self.d[:, None, None]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("act", [None, torch.relu, F.silu], ids=["alone", "relu", "silu"])
def test_a_norm_of_one_s_own_is_known_by_what_it_computes(device, act):
    with torch.device(device):
        module = Written(6, act)
    found = written_norm(module)
    assert found.roles == {"weight": "g", "bias": "o", "running_mean": "centre", "running_var": "spread"}
    assert found.eps == 1e-3


def test_frozen_norms_of_torchvision():
    assert written_norm(FrozenBatchNorm2d(4)).eps == 1e-5
    assert written_norm(FrozenBatchNorm2d(4, eps=0.0)).eps == 0.0


@pytest.mark.parametrize(
    "module",
    [Four(6), Written(6, scale=1.1), Written(6, torch.tanh), nn.BatchNorm2d(6), nn.Linear(4, 4), nn.RNNCell(1, 4)],
)
def test_what_computes_something_else_is_none(module):
    assert written_norm(module) is None


class Handed(nn.Module):
    """Its own child owns weights, so the norm is a call of a function."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        self.more = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return self.more(F.batch_norm(x, self.mean, self.var, self.weight, self.bias))


NORMS = {
    "frozen": (FrozenBatchNorm2d, {"weight", "bias", "running_mean", "running_var"}),
    "written": (Written, {"weight", "bias", "running_mean", "running_var"}),
    "without an affine part": (
        lambda n: nn.BatchNorm2d(n, affine=False),
        {"running_mean", "running_var", "num_batches_tracked"},
    ),
    "a function": (Handed, {"weight", "bias", "running_mean", "running_var"}),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_a_layer_with_all_its_tensors(name):
    make, roles = NORMS[name]
    graph = traced(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), make(6), nn.Conv2d(6, 2, 1)), (3, 8, 8))
    norms = [layer for layer in graph.layers.values() if layer.kind == "batch_norm"]
    assert [set(layer.tensors) for layer in norms] == [roles]
    assert not graph.loose
    eps = [node.facts.get("eps") for node in graph.nodes if node.layer == norms[0].name and node.op == "layer"]
    assert eps == [1e-3 if name == "written" else None]


@functools.lru_cache
def places(count):
    return torch.arange(count).flip(0)


def remembering(function):
    cached = functools.lru_cache(function)

    @functools.wraps(function)
    def call(*args):
        return cached(*args)

    return call


class Cached(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.embed, self.way = nn.Embedding(8, 4), way

    @staticmethod
    @remembering
    def inside(count):
        return torch.arange(count).flip(0)

    def forward(self, x):
        return x.flatten(1)[:, :8] @ self.embed(places(8) if self.way == "file" else self.inside(8))


@pytest.mark.parametrize("way", ["file", "class"])
def test_a_cache_filled_without_numbers_is_emptied(way):
    traced(lambda: Cached(way), (3, 4, 4))
    net, x = Cached(way), torch.randn(2, 3, 4, 4)
    expected = x.flatten(1)[:, :8] @ net.embed.weight.flip(0)
    torch.testing.assert_close(net(x), expected)
