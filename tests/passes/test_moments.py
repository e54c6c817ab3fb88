"""Moments from weights alone, against moments measured on noise and images."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from support.stages import network, stage
from timm.layers import BatchNormAct2d
from torch import nn

from netgraft import plugins
from netgraft.graft import graft
from netgraft.models.batch_norm import batch_norms, recalibrating
from netgraft.models.embedded.resnet20 import ResNet20
from netgraft.passes import _gaussian
from netgraft.passes._propagate import propagate
from netgraft.passes.moments import MomentPropagation
from netgraft.passes.recalibrate import Recalibrate, statistics_keys
from netgraft.plan import Pairing, Plan
from netgraft.recipes.run import run_recipe

SIZE = (3, 16, 16)


class Chain(nn.Module):
    """Convolutions of one width with norms; ``act`` between them."""

    def __init__(self, width=32, depth=4, act=F.relu):
        super().__init__()
        widths = [3, *[width] * depth]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.head = nn.Linear(width, 10)
        self.act = act

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.act(norm(conv(x)))
        return self.head(x.mean((2, 3)))


class Every(nn.Module):
    """A residual addition, depthwise and grouped convolutions, a gate, shuffled channels, a concatenation, pools."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 16, 3), BatchNormAct2d(16, act_layer=nn.SiLU)
        self.deep, self.norm1 = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16)
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.grouped, self.norm2 = nn.Conv2d(16, 16, 1, groups=4), nn.BatchNorm2d(16)
        self.left, self.norm3 = nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12)
        self.last, self.norm4 = nn.Conv2d(20, 24, 1), nn.BatchNorm2d(24)
        self.fc, self.norm5 = nn.Linear(24, 20), nn.BatchNorm1d(20)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = self.norm0(self.stem(x))
        y = F.relu6(self.norm1(self.deep(x)))
        y = y * torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3), keepdim=True)))))
        x = self.norm2(self.grouped(y)) + x
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        a, b = x.chunk(2, dim=1)
        x = torch.cat([F.gelu(self.norm3(self.left(a))), b * 0.5], dim=1)
        x = F.hardswish(self.norm4(self.last(F.max_pool2d(x, 2)))).mean((2, 3))
        return self.head(self.norm5(self.fc(x)))


class Attentive(nn.Module):
    """A norm, an operation without a rule, a second norm, and a third behind it."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)])
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))

    def forward(self, x):
        x = self.norms[0](self.convs[0](x))
        x = self.norms[1](self.convs[1](x.softmax(1)))
        return self.norms[2](self.convs[2](F.relu(x)))


def noise(count=1024, size=SIZE, seed=0):
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed))


def trained(build, seed=0, size=SIZE):
    """A network with channels of many sizes, and the statistics that it has on noise."""
    net = network(build, size, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for part in net.module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            scale = torch.rand(len(part.weight), generator=generator) * 2 + 0.2
            part.weight *= scale.reshape(-1, *[1] * (part.weight.dim() - 1))
    for norm in batch_norms(net.module).values():
        norm.weight.copy_(1 + 0.3 * torch.randn(len(norm.weight), generator=generator))
        norm.bias.copy_(0.5 * torch.randn(len(norm.bias), generator=generator))
    return measured(net)


def measured(net):
    with recalibrating(net.module):
        for part in noise(size=net.image_size).split(256):
            net.module(part)
    return net


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def fits(net):
    """(correlation of means, of standard deviations, ratio of the latter) per norm: propagated against measured."""
    found = {}
    for name, (mean, variance) in propagate(net).moments.items():
        norm = net.module.get_submodule(name)
        std, true = variance.sqrt(), norm.running_var.sqrt()
        means = correlation(mean, norm.running_mean)
        found[name] = (means, correlation(std, true), float((std / true).mean()))
    return found


@pytest.mark.parametrize("act", [F.relu, F.relu6, F.silu, F.gelu, F.hardswish, torch.tanh])
def test_a_chain(act):
    for means, stds, ratio in fits(trained(lambda: Chain(act=act))).values():
        assert means > 0.98
        assert stds > 0.98
        assert 0.9 < ratio < 1.1


def test_every_kind_of_operation():
    found = fits(trained(Every))
    assert list(found) == [f"norm{i}" for i in range(6)]
    for name, (means, stds, ratio) in found.items():
        assert means > 0.98, name
        assert stds > 0.9, name
        # Of n pooled neighbours sqrt(n) are taken as independent; of noise all 7 x 7 are.
        expected = 7**0.5 if name == "norm5" else 1.0
        assert ratio == pytest.approx(expected, rel=0.3 if name in ("norm4", "norm5") else 0.15), name


def test_the_mean_field_of_one_activation_is_exact():
    """ReLU of correlated normals: E and Cov in closed form (Cho and Saul 2009, arc-cosine kernel of order 1)."""
    rho = torch.tensor([-0.9, -0.3, 0.0, 0.5, 0.99], dtype=torch.float64)
    for r in rho:
        cov = torch.tensor([[1, r], [r, 1]], dtype=torch.float64)
        given = _gaussian.spread(torch.zeros(2, dtype=torch.float64), cov, (1, 2), 1)
        found = _gaussian.elementwise(given, torch.relu)
        angle = torch.arccos(r)
        second = (torch.sin(angle) + (torch.pi - angle) * torch.cos(angle)) / (2 * torch.pi)
        torch.testing.assert_close(found.mean, torch.full((2,), (2 * torch.pi) ** -0.5).double(), rtol=1e-4, atol=0)
        torch.testing.assert_close(found.cov[0, 0], torch.tensor(0.5 - 0.5 / torch.pi).double(), rtol=1e-4, atol=0)
        torch.testing.assert_close(found.cov[0, 1], second - 0.5 / torch.pi, rtol=0, atol=0.01)


def test_copies_stay_copies():
    """The variance of a sum of two copies is four times theirs, behind an activation too."""
    one = torch.ones(2, 2, dtype=torch.float64)
    given = _gaussian.elementwise(_gaussian.spread(torch.tensor([0.3, 0.3]).double(), one, (1, 2), 1), F.silu)
    total = _gaussian.through_linear(given, torch.ones(1, 2), None, (1, 1))
    torch.testing.assert_close(total.variance[0], 4 * given.variance[0])


# ------------------------------------------------------------------------------------------------------------ the pass


def grafted(source, build, recipe, size=SIZE, **options):
    """A stage with ``source`` and the target that a recipe makes of it."""
    target = network(build, size, seed=9)
    pairing, moves, kept = run_recipe(plugins.create("recipes", recipe, options), source.graph, target.graph)
    plan = Plan("source", "target", "", "", recipe, {}, pairing, tuple(moves), tuple(kept))
    target.module.load_state_dict(graft(plan, source.module.state_dict(), target.module.state_dict()))
    return stage(source, target, moves, pairing.pairs)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("recipe", "before", "after"),
    [("grow", 32, 16), ("grow", 32, 12), ("hmt", 32, 16), ("hmt", 16, 32), ("hmt", 16, 24)],
)
def test_outputs_are_near_those_after_recalibration(recipe, before, after, seed):
    """OPERATORS D8: as large as with statistics from data, and far nearer to them than with copied ones."""
    work = grafted(trained(lambda: Chain(before), seed), lambda: Chain(after), recipe)
    images = noise(256, seed=7)
    copied = work.target.module(images)
    report = MomentPropagation()(work)
    assert (report["norms"], report["compared"], report["left"], report["stops"]) == (4, 4, {}, [])
    data_free = work.target.module(images)
    true = measured(work.target).module(images)
    assert float(data_free.std(0).mean() / true.std(0).mean()) == pytest.approx(1, abs=0.15)
    assert (data_free - true).norm() < (copied - true).norm() / 4


def test_exact_growth_stays_exact():
    source = trained(lambda: Chain(16))
    work = grafted(source, lambda: Chain(32), "grow")
    MomentPropagation()(work)
    images = noise(8)
    torch.testing.assert_close(work.target.module(images), source.module(images), rtol=1e-3, atol=1e-4)


def test_the_same_network_keeps_its_statistics():
    source = trained(lambda: Chain(16))
    work = grafted(source, lambda: Chain(16), "hmt")
    report = MomentPropagation()(work)
    assert report["mean_change"] < 1e-5
    assert report["std_change"] < 1e-5


def test_rescaled_kernels_get_rescaled_statistics():
    """What the source's norms know beyond the propagated moments is kept: the outputs are the same again."""
    source = trained(lambda: Chain(16))
    work = grafted(source, lambda: Chain(16), "hmt")
    for conv, factor in zip(work.target.module.convs, (0.1, 3.0, 0.5, 20.0), strict=True):
        conv.weight *= factor
        conv.bias *= factor
    MomentPropagation()(work)
    images = noise(8)
    torch.testing.assert_close(work.target.module(images), source.module(images), rtol=1e-2, atol=1e-3)


def test_without_counterparts_the_propagated_moments_themselves():
    target = trained(lambda: Chain(24))
    truth = {name: norm.running_var.clone() for name, norm in batch_norms(target.module).items()}
    for norm in batch_norms(target.module).values():
        norm.reset_running_stats()
    report = MomentPropagation()(stage(trained(lambda: Chain(16)), target))
    assert (report["norms"], report["compared"]) == (4, 0)
    for name, norm in batch_norms(target.module).items():
        assert correlation(norm.running_var.sqrt(), truth[name].sqrt()) > 0.98


def test_only_running_statistics_change():
    work = grafted(trained(Every), Every, "hmt")
    before = copy.deepcopy(work.target.module.state_dict())
    for norm in batch_norms(work.target.module).values():
        norm.running_var.mul_(2)  # what is wrong in the target does not matter
    MomentPropagation()(work)
    changed = {key for key, tensor in work.target.module.state_dict().items() if not torch.equal(tensor, before[key])}
    claimed = MomentPropagation().touches(work.source.graph, work.target.graph, Pairing(()))
    assert changed <= set(claimed)
    assert set(statistics_keys(work.target.graph)) - set(claimed) == {f"norm{i}.num_batches_tracked" for i in range(6)}
    for key, tensor in work.target.module.state_dict().items():
        torch.testing.assert_close(tensor, before[key], rtol=1e-4, atol=1e-5)


def test_what_hangs_on_an_unknown_operation_is_left_alone():
    net = trained(Attentive)
    report = MomentPropagation()(stage(net, copy.deepcopy(net)))
    assert report["norms"] == 2
    assert list(report["left"]) == ["norms.1"]
    assert "softmax" in report["left"]["norms.1"]
    assert [stop.partition(":")[0] for stop in report["stops"]] == ["source", "target"]


class Rowdy(nn.Module):
    """An operation whose arguments mean nothing to a distribution, between two norms."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv, self.last = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm(x)
        return self.last(self.conv(torch.where(x > x.mean(), x, x.cumsum(2))))


def test_no_operation_ends_the_walk():
    net = network(Rowdy, SIZE)
    seen = propagate(net)
    assert list(seen.moments) == ["norm"]
    assert list(seen.lost) == ["last"]


def test_a_network_without_batch_norms_is_left_alone():
    build = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4 * 196, 2))  # noqa: E731
    net = network(build, SIZE)
    report = MomentPropagation()(stage(net, net))
    assert (report["norms"], report["left"]) == (0, {})


def test_gates_are_said_to_be_approximated():
    net = trained(Every)
    assert MomentPropagation()(stage(net, copy.deepcopy(net)))["approximated"] == [
        "2 gates, taken as independent of what they scale"
    ]


def test_a_residual_network_of_half_the_width():
    """A real source on its own kind of images: nearer to the truth than the statistics that were copied."""
    from netgraft.models.model import load_model, read_weights

    model = load_model("netgraft:resnet20-glyphs", role="source")
    source = network(model.build, (1, 16, 16), read_weights(model).tensors)

    def narrow():
        net = ResNet20()
        for name, part in list(net.named_modules()):
            half = _halved(part)
            if half is not None:
                net.set_submodule(name, half)
        return net

    work = grafted(source, narrow, "grow", (1, 16, 16))
    images = work.shown(work.images(256, 11), work.target)
    copied = work.target.module(images).std(0).mean()
    data_free = copy.deepcopy(work)
    MomentPropagation()(data_free)
    Recalibrate()(work)
    true = work.target.module(images).std(0).mean()
    found = data_free.target.module(images).std(0).mean()
    assert (found / true).log().abs() < 0.6 * (copied / true).log().abs()


def _halved(part):
    if isinstance(part, nn.Conv2d):
        inputs = part.in_channels if part.in_channels == 1 else part.in_channels // 2
        return nn.Conv2d(inputs, part.out_channels // 2, part.kernel_size, part.stride, part.padding, bias=False)
    if isinstance(part, nn.BatchNorm2d):
        return nn.BatchNorm2d(part.num_features // 2)
    return nn.Linear(part.in_features // 2, part.out_features) if isinstance(part, nn.Linear) else None
