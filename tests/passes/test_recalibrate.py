"""Statistics from images, against statistics added up by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.nets import Straight
from support.stages import network, stage
from timm.layers import BatchNormAct2d
from torch import nn

from netgraft import plugins
from netgraft.errors import ForwardError, UsageError
from netgraft.models.batch_norm import Statistics, recalibrating
from netgraft.passes.recalibrate import Recalibrate, change, show, statistics_keys
from netgraft.plan import Pairing

SIZE = (3, 8, 8)


class Sleepy(nn.Module):
    """A norm, dropout that must stay asleep, a second norm, and one that no image reaches."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3), norm(6)
        self.drop = nn.Dropout(0.5)
        self.conv2, self.norm2 = nn.Conv2d(6, 4, 3), norm(4)
        self.idle = nn.BatchNorm2d(5)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.drop(F.relu(self.norm1(self.conv1(x))))
        return self.head(F.relu(self.norm2(self.conv2(x))).mean((2, 3)))


class Frozen(nn.Module):
    """A BatchNorm of the user's own that always normalises by its running statistics."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False)


def stirred(build):
    """A network whose statistics are wrong."""
    net = network(build, SIZE)
    for name, buffer in net.module.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.uniform_(0.5, 2)
    return net


def by_hand(module, batches):
    """(mean, variance) of both norms: averages over batches of what they see where the first uses the batch's own."""
    found = {"norm1": [], "norm2": []}
    for images in batches:
        first = module.conv1(images)
        mean, var = first.mean((0, 2, 3)), first.transpose(0, 1).flatten(1).var(1)
        biased = first.transpose(0, 1).flatten(1).var(1, correction=0)
        found["norm1"].append((mean, var))
        x = (first - mean[:, None, None]) / (biased[:, None, None] + 1e-5).sqrt()
        second = module.conv2(F.relu(x * module.norm1.weight[:, None, None] + module.norm1.bias[:, None, None]))
        found["norm2"].append((second.mean((0, 2, 3)), second.transpose(0, 1).flatten(1).var(1)))
    return {name: [sum(values) / len(values) for values in zip(*each, strict=True)] for name, each in found.items()}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d])
def test_statistics_are_the_means_over_batches(norm):
    net = stirred(lambda: Sleepy(norm))
    before = copy.deepcopy(net.module.state_dict())
    work = stage(net, net)
    report = Recalibrate(images=20, batch=8)(work)
    images = work.shown(work.images(20, seed=3), net)
    expected = by_hand(net.module, images.tensor_split(3))
    for name, (mean, var) in expected.items():
        layer = net.module.get_submodule(name)
        torch.testing.assert_close(layer.running_mean, mean)
        torch.testing.assert_close(layer.running_var, var)
        assert (int(layer.num_batches_tracked), layer.momentum, layer.training) == (3, 0.1, False)
    changed = {key for key, tensor in net.module.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == set(Recalibrate().touches(net.graph, net.graph, Pairing(())))
    assert (report["norms"], report["images"], report["left"]) == (2, 20, [])
    assert not any(part.training for part in net.module.modules())


def test_the_report_says_how_far_statistics_moved():
    before = Statistics(torch.tensor([0.0, 0.0]), torch.tensor([9.0, 16.0]), torch.tensor(0))
    after = Statistics(torch.tensor([3.0, 4.0]), torch.tensor([9.0, 1.0]), torch.tensor(1))
    assert change(before, after) == pytest.approx((1.0, 3 / 5))
    assert change(before, before) == (0.0, 0.0)


def test_twice_is_once():
    net = stirred(Sleepy)
    Recalibrate(images=16)(stage(net, net))
    once = copy.deepcopy(net.module.state_dict())
    report = Recalibrate(images=16)(stage(net, net))
    assert all(torch.equal(tensor, once[key]) for key, tensor in net.module.state_dict().items())
    assert (report["mean_change"], report["std_change"]) == (0.0, 0.0)


def test_modes_come_back_part_by_part():
    module = Sleepy().train()
    module.drop.eval()
    module.norm2.momentum = 0.3
    with recalibrating(module) as norms:
        assert [name for name, part in module.named_modules() if part.training] == list(norms)
        assert not module(torch.randn(4, 3, 8, 8)).requires_grad
    assert [name for name, part in module.named_modules() if not part.training] == ["drop"]
    assert module.norm2.momentum == 0.3
    assert module(torch.randn(4, 3, 8, 8)).requires_grad


def test_a_network_without_batch_norms_is_shown_nothing():
    build = lambda: Straight(norm=lambda width: nn.GroupNorm(1, width))  # noqa: E731
    net = network(build, SIZE)
    net.module.forward = None  # not even called
    assert Recalibrate()(stage(net, net))["norms"] == 0
    assert statistics_keys(net.graph) == ()


def test_a_frozen_norm_is_left_and_named():
    net = stirred(lambda: Sleepy(Frozen))
    before = copy.deepcopy(net.module.state_dict())
    report = Recalibrate(images=8)(stage(net, net))
    assert report["left"] == ["norm1", "norm2"]
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.module.state_dict().items())


def test_a_failing_network_keeps_its_statistics():
    net = stirred(lambda: nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)))
    before = copy.deepcopy(net.module.state_dict())
    with recalibrating(net.module), torch.no_grad():
        net.module(torch.randn(6, 3, 8, 8))  # works: six values per channel
    net.module.load_state_dict(before)
    with pytest.raises(ForwardError, match="failed on images of shape 2x3x9x9"):
        shown(net, torch.randn(2, 3, 9, 9))
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.module.state_dict().items())
    assert not any(part.training for part in net.module.modules())


def shown(net, images):
    with recalibrating(net.module):
        show(net, images[:, :, :8, :8])
        show(net, images)


def test_options():
    assert plugins.create("passes", "recalibrate", {"images": "64"}) == Recalibrate(images=64)
    with pytest.raises(UsageError, match="2 or more"):
        plugins.create("passes", "recalibrate", {"batch": 1})


def test_what_is_settled_stays_and_normalises_as_it_does():
    net, all_of_it = stirred(Sleepy), stirred(Sleepy)
    all_of_it.module.load_state_dict(net.module.state_dict())
    before = copy.deepcopy(net.module.state_dict())
    work = stage(net, net)
    work.settled = frozenset({"norm1"})
    report = Recalibrate(images=16)(work)
    assert report["norms"] == 1
    after = net.module.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if not key.startswith("norm2"))
    Recalibrate(images=16)(stage(all_of_it, all_of_it))
    assert not torch.allclose(after["norm2.running_mean"], all_of_it.module.norm2.running_mean, rtol=0.01)
