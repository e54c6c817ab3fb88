"""Streams under LayerNorm of another scale, gammas of another size, and the same function."""

import copy
from math import sqrt
from statistics import median

import pytest
import torch
from support.staged import check_pass
from support.stages import network, stage
from support.transformer_nets import (
    SIZE,
    Encoder,
    Own,
    bare,
    buffered,
    convnext,
    interleaved,
    post_norm,
    prepared,
    rms,
    swin,
    vit,
    vit_registers,
)
from torch import nn

from netgraft.architecture.scaling import find_regions, find_trades
from netgraft.passes.rescale import Rescale
from netgraft.plan import Kept, Move, Pairing, Plan

BUILDS = [vit, vit_registers, Own, rms, interleaved, Encoder, bare, buffered, prepared, post_norm, swin, convnext]


def moved(build, *without):
    """A stage in which every tensor of the target came from the source, but for some. Nothing has its usual value."""
    net = network(build, SIZE)
    torch.manual_seed(3)
    for name, tensor in net.module.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() and "table" not in name:
            tensor.add_(torch.randn_like(tensor) * 0.1)
    work = stage(net, network(build, SIZE, net.module.state_dict()))
    entries = work.target.module.state_dict()
    moves = [Move(k, k, tuple(t.shape), tuple(t.shape), (), "") for k, t in entries.items() if k not in without]
    keeps = [Kept(k, tuple(entries[k].shape), "") for k in without]
    work.plan = Plan("s", "t", "", "", "r", {}, Pairing(()), tuple(moves), tuple(keeps))
    return work


def answers(module):
    """In double precision and without the norms' eps, which do not scale."""
    module = copy.deepcopy(module).double()
    for part in module.modules():
        if hasattr(part, "eps"):
            part.eps = 0.0
    return module(torch.rand(4, *SIZE, generator=torch.Generator().manual_seed(1)).double())


def multiples(module, layers):
    """Norms of kernels, as multiples of those that He et al. draw."""
    weights = [module.get_parameter(layer.tensors["weight"].key) for layer in layers]
    return [float(w.norm()) / sqrt(2 / w[0].numel() * w.numel()) for w in weights]


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("options", [{}, {"gain": None, "stream": 0.5, "gamma": 2.0}])
def test_the_same_function(build, options):
    work = moved(build)
    wanted = answers(work.source.module)
    each = Rescale(**options)
    report, _, changed = check_pass(each, work)
    torch.testing.assert_close(answers(work.target.module), wanted, rtol=1e-4, atol=1e-5)
    assert (report["layers"] > 0) == bool(changed)
    graph, module = work.target.graph, work.target.module
    for region in find_regions(graph):
        if region.stream:
            assert median(multiples(module, region.writers)) == pytest.approx(each.stream, rel=0.05)
    for trade in find_trades(graph):
        gamma = module.get_parameter(trade.norm.tensors["weight"].key)
        assert float(gamma.square().mean().sqrt()) == pytest.approx(each.gamma, rel=1e-5)


@pytest.mark.parametrize("build", [vit_registers, swin])
def test_twice_is_once(build):
    work = moved(build)
    Rescale()(work)
    once = copy.deepcopy(work.target.module.state_dict())
    assert Rescale()(work)["median"] == pytest.approx(1.0, abs=0.02)
    trades = find_trades(work.target.graph)
    gammas = [trade.norm.tensors["weight"].key for trade in trades]
    assert gammas
    for key in gammas:
        torch.testing.assert_close(work.target.module.state_dict()[key], once[key])


@pytest.mark.parametrize("build", BUILDS)
def test_each_region_and_each_trade_is_one_by_itself(build):
    """Scaled one at a time, by another number each."""
    net = network(build, SIZE)
    wanted = answers(net.module)
    regions, trades = find_regions(net.graph), find_trades(net.graph)
    for region in regions:
        changed = copy.deepcopy(net.module)
        for slot in (*region.parameters, *(s for layer in region.writers for s in layer.tensors.values())):
            changed.get_parameter(slot.key).mul_(3.0)
        torch.testing.assert_close(answers(changed), wanted, rtol=1e-5, atol=1e-6)
    for trade in trades:
        changed = copy.deepcopy(net.module)
        for slot in trade.norm.tensors.values():
            changed.get_parameter(slot.key).mul_(3.0)
        for layer in trade.readers:
            changed.get_parameter(layer.tensors["weight"].key).div_(3.0)
        torch.testing.assert_close(answers(changed), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "streams", "trades"),
    [
        *((vit, 1, 4), (vit_registers, 1, 4), (Own, 1, 4), (Encoder, 1, 4), (swin, 2, 9)),
        *((bare, 0, 4), (post_norm, 0, 0), (rms, 0, 0), (buffered, 0, 4)),
    ],
)
def test_what_is_found(build, streams, trades):
    """None where the head reads the stream, norms stand behind additions or are put together, constants are added."""
    graph = network(build, SIZE).graph
    assert sum(region.stream for region in find_regions(graph)) == streams
    assert len(find_trades(graph)) == trades


def test_all_of_a_stream_is_scaled_and_nothing_of_it_where_nothing_was_transferred():
    every = {f"{layer}.{role}" for layer in ("patches", "blocks.0.down") for role in ("weight", "bias")}
    work = moved(Own)
    before = copy.deepcopy(work.target.module.state_dict())
    Rescale(gamma=None)(work)
    after = work.target.module.state_dict()
    factors = {float((after[key] / before[key]).mean()) for key in (*every, "token", "places")}
    assert max(factors) == pytest.approx(min(factors), rel=1e-4)
    assert max(factors) > 2
    writers = [layer for region in find_regions(work.target.graph) for layer in region.writers]
    fresh = moved(Own, *(layer.tensors["weight"].key for layer in writers))
    before = copy.deepcopy(fresh.target.module.state_dict())
    Rescale(gamma=None)(fresh)
    assert all(torch.equal(before[key], tensor) for key, tensor in fresh.target.module.state_dict().items())


def test_a_factor_is_not_moved_into_a_layer_that_holds_nothing():
    work = moved(Own, "blocks.0.up.weight")
    before = copy.deepcopy(work.target.module.state_dict())
    Rescale(stream=None)(work)
    after = work.target.module.state_dict()
    assert torch.equal(after["blocks.0.norm2.weight"], before["blocks.0.norm2.weight"])
    assert not torch.equal(after["blocks.0.norm1.weight"], before["blocks.0.norm1.weight"])


class Tied(nn.Module):
    """A kernel that adds to the stream and is used elsewhere too."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.a, self.b, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 5)
        self.b.weight = self.a.weight

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head((self.norm(x + self.a(x)) + self.b(x)).mean(1))


def test_tied_weights_are_left_alone():
    graph = network(Tied, SIZE).graph
    assert find_regions(graph) == find_trades(graph) == []
