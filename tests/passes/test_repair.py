"""Layers without norms that put out what their sources do."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from support.staged import check_pass, grafted, taught
from support.stages import network
from torch import nn

from netgraft.passes.repair import Repair
from netgraft.recipes.graft import Graft

SIZE = (3, 16, 16)


class Normed(nn.Module):
    """Three convolutions with batch norms whose affine parameters differ by channel."""

    def __init__(self):
        super().__init__()
        widths = [3, 12, 16, 20]
        pairs = list(pairwise(widths))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in pairs)
        self.head = nn.Linear(20, 5)
        for norm in self.norms:
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.uniform_(norm.bias, -1.0, 1.0)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.head(x.mean((2, 3)))


class Bare(nn.Module):
    """The same without norms."""

    def __init__(self, widths=(12, 16, 20), bias=True):
        super().__init__()
        pairs = pairwise((3, *widths))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=bias) for a, b in pairs)
        self.head = nn.Linear(widths[-1], 5)

    def forward(self, x):
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.head(x.mean((2, 3)))


def narrow():
    return Bare((6, 10, 12))


def wide():
    return Bare((16, 24, 24))


def without_bias():
    return Bare((6, 10, 12), bias=False)


def settled(source, build):
    work = grafted(taught(source, SIZE), build, head="never")
    report, *_ = check_pass(Repair(), work)
    return work, report


def seen(work, network):
    """Mean and standard deviation of what each convolution puts out on the pass's images, each [channels]."""
    found, x = [], work.shown(work.images(Repair().images, seed=4), network)
    for conv in network.module.convs:
        x = conv(x)
        flat = x.transpose(0, 1).flatten(1).double()
        found.append((flat.mean(1), flat.std(1)))
        x = F.relu(x)
    return found


def sources_of(work, number):
    """The source channel of each of a layer's channels, -1 for new ones, as the plan has it."""
    move = next(move for move in work.plan.moves if move.key == f"convs.{number}.weight")
    runs = move.steps[-1].options["rows"]
    return torch.tensor([start + i if start >= 0 else -1 for start, count in runs for i in range(count)])


def test_channels_get_the_moments_behind_the_sources_norm():
    work, report = settled(Normed, narrow)
    assert report["layers"] == 3
    for number, (mean, std) in enumerate(seen(work, work.target)):
        norm, read = work.source.module.norms[number], sources_of(work, number)
        torch.testing.assert_close(mean, norm.bias[read].double(), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(std, norm.weight[read].abs().double(), atol=1e-3, rtol=1e-3)


def test_new_channels_get_the_mean_of_the_others():
    work, _ = settled(Normed, wide)
    for number, (mean, std) in enumerate(seen(work, work.target)):
        read = sources_of(work, number)
        fresh, norm = read < 0, work.source.module.norms[number]
        assert fresh.any()
        for of, values in ((mean, norm.bias), (std, norm.weight.abs())):
            wanted = values[read[~fresh]].double().mean().expand(int(fresh.sum()))
            torch.testing.assert_close(of[fresh], wanted, atol=1e-3, rtol=1e-3)


def test_a_source_without_norms_is_measured():
    work, _ = settled(Bare, narrow)
    there, here = seen(work, work.source), seen(work, work.target)
    for number, ((mean, std), (mean_s, std_s)) in enumerate(zip(here, there, strict=True)):
        read = sources_of(work, number)
        torch.testing.assert_close(mean, mean_s[read], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(std, std_s[read], atol=1e-4, rtol=1e-3)


def test_without_biases_only_the_scale_is_set():
    work, _ = settled(Normed, without_bias)
    for number, (_, std) in enumerate(seen(work, work.target)):
        wanted = work.source.module.norms[number].weight[sources_of(work, number)].abs().double()
        torch.testing.assert_close(std, wanted, atol=1e-3, rtol=1e-3)


def test_a_channel_that_says_nothing_keeps_its_scale():
    work = grafted(taught(Normed, SIZE), narrow, head="never")
    work.target.module.convs[0].weight[2] = 0
    Repair()(work)
    assert all(t.isfinite().all() for t in work.target.module.state_dict().values())
    assert not work.target.module.convs[0].weight[2].any()


class Sound(nn.Module):
    """A network that is shown no images."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(2, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).mean(2))


@pytest.mark.parametrize(("build", "size"), [(Normed, SIZE), (Sound, (2, 40))], ids=["norms", "sound"])
def test_targets_that_it_leaves_alone(build, size):
    net = network(build, size)
    pairing = Graft().pair(net.graph, net.graph)
    assert pairing.pairs
    assert Repair().touches(net.graph, net.graph, pairing) == ()


def test_what_it_refuses():
    with pytest.raises(ValueError, match="variance"):
        Repair(images=1)
