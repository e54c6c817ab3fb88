"""Kernels of another length, and the same function."""

import copy
from dataclasses import replace
from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from support.nets import Straight
from support.staged import check_pass, grafted, taught
from support.stages import network, stage
from torch import nn
from torch.nn.utils import parametrizations

from netgraft import plugins
from netgraft.errors import UsageError
from netgraft.passes.rescale import Rescale
from netgraft.plan import Kept, Move, Pairing, Plan, Step

SIZE = (3, 16, 16)


class Every(nn.Module):
    """Norms behind a convolution, behind its activation, behind a pool; and convolutions without any."""

    def __init__(self):
        super().__init__()
        self.plain, self.norm1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.late, self.norm2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.curved, self.norm3 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.deep, self.norm4 = nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8)
        self.bare, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.norm1(self.plain(x)))
        x = self.norm2(F.relu(self.late(x)))
        x = self.norm3(F.silu(self.curved(x)))
        x = F.relu(self.norm4(self.deep(x)))
        return self.head(F.relu(self.bare(x)).mean((2, 3)))


class Unaffine(nn.Module):
    """A norm that has statistics and nothing else."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)
        self.last, self.norm2, self.head = nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.Linear(12, 5)

    def forward(self, x):
        return self.head(F.relu(self.norm2(self.last(F.relu(self.norm(self.conv(x)))))).mean((2, 3)))


def he(weight):
    """The length of a kernel drawn as He et al. do."""
    return sqrt(2 / weight[0].numel() * weight.numel())


def moved(work, *without):
    """The stage with a plan in which every tensor came from the source, but for some."""
    entries = work.target.module.state_dict()
    moves = [Move(k, k, tuple(t.shape), tuple(t.shape), (), "") for k, t in entries.items() if k not in without]
    keeps = [Kept(k, tuple(entries[k].shape), "") for k in without]
    work.plan = Plan("s", "t", "", "", "r", {}, Pairing(()), tuple(moves), tuple(keeps))
    return work


def stage_of(build):
    net = taught(build, SIZE)
    return moved(grafted(net, build, head="never"))


@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0])
def test_the_same_function_with_kernels_of_the_wanted_length(gain):
    work = stage_of(Every)
    work.target.module.load_state_dict(work.source.module.state_dict())
    net = work.target.module
    images = torch.rand(8, *SIZE, generator=torch.Generator().manual_seed(1)).double()
    wanted = copy.deepcopy(net).double()(images)
    report, _, changed = check_pass(Rescale(gain), work)
    assert report["layers"] == 3
    assert changed == {
        *(f"{name}.{role}" for name in ("plain", "late") for role in ("weight", "bias")),
        "deep.weight",
        *(f"norm{i}.{role}" for i in (1, 2, 4) for role in ("running_mean", "running_var")),
    }
    for name in ("plain", "late", "deep"):
        weight = net.get_submodule(name).weight
        assert float(weight.norm()) == pytest.approx(gain * he(weight), rel=1e-5)
    torch.testing.assert_close(copy.deepcopy(net).double()(images), wanted, rtol=1e-2, atol=1e-3)
    # what is left is the norms' eps: without it the function is the same to rounding
    exact = []
    for state in (work.source.module, net):
        module = copy.deepcopy(state).double()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eps = 0.0
        exact.append(module(images))
    torch.testing.assert_close(*exact, rtol=1e-5, atol=1e-6)


def test_twice_is_once():
    work = stage_of(Every)
    Rescale()(work)
    once = copy.deepcopy(work.target.module.state_dict())
    assert Rescale()(work)["median"] == 1.0
    for key, tensor in work.target.module.state_dict().items():
        torch.testing.assert_close(tensor, once[key])


def test_kernels_that_hold_nothing_are_left_alone():
    work = moved(stage_of(Every), "plain.weight")
    work.target.module.late.weight.zero_()
    before = copy.deepcopy(work.target.module.state_dict())
    assert Rescale()(work)["layers"] == 1
    assert torch.equal(work.target.module.plain.weight, before["plain.weight"])
    assert torch.equal(work.target.module.norm1.running_var, before["norm1.running_var"])


class Shared(nn.Module):
    """Two convolutions with one weight, each with a norm of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.a, self.norm1 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.b, self.norm2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.b.weight = self.a.weight
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.norm0(self.stem(x)))
        x = F.relu(self.norm2(self.b(F.relu(self.norm1(self.a(x))))))
        return self.head(x.mean((2, 3)))


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


class Prepared(nn.Module):
    """Weights that are not used as they are."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.a, self.norm1 = Standardised(8, 8, 3), nn.BatchNorm2d(8)
        self.b, self.norm2 = parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.norm0(self.stem(x)))
        x = F.relu(self.norm2(self.b(F.relu(self.norm1(self.a(x))))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("build", [Shared, Prepared])
def test_weights_that_are_shared_or_prepared_are_left_alone(build):
    net = taught(build, SIZE)
    work = moved(grafted(net, build, head="never"))
    work.target.module.load_state_dict(net.module.state_dict())
    images = torch.rand(4, *SIZE)
    before = net.module(images)
    report, _, changed = check_pass(Rescale(), work)
    assert report["layers"] == 1
    assert changed == {"stem.weight", "stem.bias", "norm0.running_mean", "norm0.running_var"}
    torch.testing.assert_close(work.target.module(images), before, rtol=1e-3, atol=1e-3)


def test_without_batch_norms_there_is_nothing_to_do():
    build = lambda: Straight(norm=lambda width: nn.GroupNorm(1, width))  # noqa: E731
    net = network(build, SIZE)
    assert Rescale()(moved(grafted(net, build, head="never"))) == {"layers": 0, "median": None}
    assert Rescale().touches(net.graph, net.graph, Pairing(())) == ()


def test_options():
    assert plugins.create("passes", "rescale", {"gain": "1.5"}) == Rescale(1.5)
    with pytest.raises(UsageError, match="positive"):
        plugins.create("passes", "rescale", {"gain": 0})


EVERY_PASS = {
    "refit": {"images": 32, "rows": 500},
    "distil": {"steps": 5, "images": 64, "batch": 32},
    "rescale": {},
    "neighbours": {},
    "recalibrate": {"images": 32},
    "moments": {},
    "repair": {"images": 32},
}


def test_every_pass_of_the_folder_is_listed_here():
    assert set(plugins.listing("passes")) == set(EVERY_PASS)


@pytest.mark.parametrize(("name", "options"), EVERY_PASS.items())
@pytest.mark.parametrize("build", [lambda: Straight(((12, 5), (16, 3)), classes=7), Every, Shared, Unaffine])
def test_laws_of_every_pass(name, options, build):
    each = plugins.create("passes", name, options)
    assert each.fate in ("", "set", "refitted", "distilled", "recalibrated")
    assert all(option.doc for option in plugins.options(type(each)))
    check_pass(each, grafted(taught(Straight, SIZE), build))


def test_what_is_settled_keeps_its_scale():
    net = network(Every, SIZE)
    work = moved(stage(net, net))
    before = copy.deepcopy(net.module.state_dict())
    work.settled = frozenset({"plain", "norm1"})
    Rescale(gain=5.0)(work)
    after = net.module.state_dict()
    changed = {key.partition(".")[0] for key in before if not torch.equal(after[key], before[key])}
    assert changed == {"late", "norm2", "deep", "norm4"}


def test_what_was_copied_can_be_spared():
    work = stage_of(Every)
    grown = [move.key for move in work.plan.moves if move.key.startswith(("plain", "norm1"))]
    steps = (Step("gather", {"dim": 0, "index": [[0, 8]]}),)
    work.plan = replace(
        work.plan, moves=tuple(replace(m, steps=steps) if m.key in grown else m for m in work.plan.moves)
    )
    each = Rescale(2.0, spare="copied")
    start = copy.deepcopy(work.target.module.state_dict())
    report = each(work)
    changed = {key for key, tensor in work.target.module.state_dict().items() if not torch.equal(tensor, start[key])}
    assert report["layers"] == 1
    assert changed == {"plain.weight", "plain.bias", "norm1.running_mean", "norm1.running_var"}
    assert changed.isdisjoint(each.spared(work.target.graph, work.plan.copied))
