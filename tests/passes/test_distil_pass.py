"""The source's answers taught to the target: more agreement, and nothing of the head left behind."""

import pytest
import torch
import torch.nn.functional as F
from support.nets import Straight
from support.staged import check_pass, grafted, taught
from support.stages import network, stage
from torch import nn

from netgraft import plugins
from netgraft.errors import NonFiniteWeights, UsageError
from netgraft.passes._learner import Learner
from netgraft.passes.distil import Distil

SIZE = (3, 16, 16)
FAST = {"steps": 60, "images": 256, "batch": 32, "lr": 5e-3}
FROM_SCRATCH = {"recipe": "distil", "start": "scratch"}


def source(classes=5):
    """With answers that differ from image to image."""
    net = taught(lambda: Straight(((8, 3), (12, 3)), classes), SIZE)
    net.module.head.weight.mul_(20)
    work = stage(net, net)
    given = net.module(work.shown(work.images(256, 5), net))
    net.module.head.bias.sub_(given.mean(0))
    return net


def wider(classes=7):
    return lambda: Straight(((12, 5), (16, 3)), classes)


def test_it_agrees_with_the_source_more_often():
    work = grafted(source(), wider(), **FROM_SCRATCH)
    report, start, changed = check_pass(Distil(**FAST), work)
    assert report["agreement"]["after"] > max(0.6, report["agreement"]["before"] + 0.1)
    assert report["loss"]["last"] < 0.5 * report["loss"]["first"]
    assert (report["images"], report["steps"], report["head"]) == (256, 60, "temporary")
    assert report["agreement"]["images"] == 256
    assert changed == {key for key in start if not key.startswith("head.")}


def test_the_own_head_comes_back_bit_for_bit():
    work = grafted(source(), wider())
    head = work.target.module.head
    before = head.weight.clone(), head.bias.clone()
    Distil(**FAST | {"steps": 5})(work)
    assert work.target.module.head is head
    assert torch.equal(head.weight, before[0])
    assert torch.equal(head.bias, before[1])


def test_it_comes_back_after_a_failure_too():
    work = grafted(source(), wider())
    head = work.target.module.head
    with pytest.raises(NonFiniteWeights, match="diverged"):
        Distil(**FAST | {"lr": 1e30, "steps": 5})(work)
    assert work.target.module.head is head


def test_a_kept_head_answers_as_the_source():
    work = grafted(source(), wider(5))
    report, _, changed = check_pass(Distil(**FAST, head="keep"), work)
    assert report["head"] == "keep"
    assert {"head.weight", "head.bias"} <= changed
    images = work.images(200, 77)
    ours, theirs = (net.module(work.shown(images, net)).argmax(1) for net in (work.target, work.source))
    assert float((ours == theirs).double().mean()) > 0.6
    assert report["agreement"]["after"] > report["agreement"]["before"]


def test_a_kept_head_needs_the_source_s_classes():
    with pytest.raises(UsageError, match="7 outputs, and the source 5 classes"):
        Distil(**FAST, head="keep")(grafted(source(), wider()))


def test_the_temporary_head_starts_from_the_source_s_classifier():
    work = grafted(source(), wider())
    learner = Learner(work, 5, "temporary")
    with learner.prepared() as net:
        assert net.head is not learner.module
        assert net.head.weight.shape == (5, 16)
        assert torch.equal(net.head.weight[:, :12], work.source.module.head.weight)
        assert torch.equal(net.head.bias, work.source.module.head.bias)
        assert net.head.weight[:, 12:].abs().max() <= 0.1 / 16**0.5
        assert net.head.weight[:, 12:].any()


class Embedding(nn.Module):
    """No scores per class: a map."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 1)

    def forward(self, x):
        return self.last(F.relu(self.norm(self.conv(x))))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.one, self.two = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.one(x) * self.two(x)


def test_a_source_without_a_classifier_is_refused():
    with pytest.raises(UsageError, match="a score per class") as error:
        Distil(**FAST)(grafted(network(Embedding, SIZE), wider()))
    assert "12" in str(error.value.where)


@pytest.mark.parametrize("build", [TwoHeads, lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))])
def test_a_target_without_a_single_linear_head_is_refused(build):
    with pytest.raises(UsageError, match="no single linear head"):
        Distil(**FAST)(grafted(source(), build))


class Convolutional(nn.Module):
    """A 1x1 convolution as its head."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3), keepdim=True)).flatten(1)


def test_a_head_that_is_a_convolution():
    report, _, changed = check_pass(Distil(**FAST), grafted(source(), Convolutional, **FROM_SCRATCH))
    assert report["agreement"]["after"] > report["agreement"]["before"]
    assert not any(key.startswith("head") for key in changed)


class Pooled(nn.Module):
    """A norm on vectors, which cannot see one image alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.norm, self.head = (
            nn.Conv2d(3, 8, 3),
            nn.Linear(8, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, 4),
        )

    def forward(self, x):
        return self.head(F.relu(self.norm(self.fc(F.relu(self.conv(x)).mean((2, 3))))))


def test_no_batch_is_of_one_image():
    report = Distil(steps=2, images=65, batch=64)(grafted(source(), Pooled))
    assert report["images"] == 65
    assert grafted(source(), Pooled).target.module.norm.num_batches_tracked == 0


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_few_steps(steps):
    report = Distil(**FAST | {"steps": steps})(grafted(source(), wider()))
    assert report["steps"] == steps


def test_the_loss_is_hinton_s():
    given, wanted = torch.randn(6, 4), torch.randn(6, 4)
    p, q = (each.div(3).exp() / each.div(3).exp().sum(1, keepdim=True) for each in (wanted, given))
    by_hand = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(Distil(temperature=3)._loss(given, wanted), by_hand)


def test_options():
    assert plugins.create("passes", "distil", {"steps": "5", "head": "keep"}) == Distil(steps=5, head="keep")
    for bad in ({"steps": 0}, {"lr": 0}, {"batch": 1}, {"temperature": -1}, {"images": 0}):
        with pytest.raises(UsageError):
            plugins.create("passes", "distil", bad)


class Follower(nn.Module):
    """The source's convolutions, and behind them a new one with a norm."""

    def __init__(self, width=12):
        super().__init__()
        self.old = Straight(((8, 3), (12, 3)), 5)
        self.new, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 7)

    def forward(self, x):
        for conv, norm in zip(self.old.convs, self.old.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.head(F.relu(self.norm(self.new(x))).mean((2, 3)))


@pytest.mark.parametrize("also", [(), ("old.convs.1",)])
def test_what_was_copied_can_be_spared(also):
    work = grafted(source(), Follower, recipe="almost-equal")
    each = Distil(**FAST, spare="copied", also=also)
    copied = work.plan.copied
    assert {"old.convs.0.weight", "old.norms.1.running_mean"} <= copied
    start = {key: tensor.clone() for key, tensor in work.target.module.state_dict().items()}
    report = each(work)
    changed = {key for key, tensor in work.target.module.state_dict().items() if not torch.equal(tensor, start[key])}
    named = set(each.touches(work.source.graph, work.target.graph, work.plan.pairing))
    left = each.spared(work.target.graph, copied)
    assert changed == named - left
    new = {f"new.{name}" for name in ("weight", "bias")}
    new |= {f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert changed == new | {f"{name}.{part}" for name in also for part in ("weight", "bias")}
    assert report["loss"]["last"] < report["loss"]["first"]


def test_smaller_images_for_all_but_the_last_steps():
    size = (3, 64, 64)
    work = grafted(taught(lambda: Straight(((8, 3), (12, 3)), 5), size), wider(), size=size)
    seen, asked = [], []
    work.target.module.register_forward_pre_hook(
        lambda net, given: seen.append(given[0].shape[-1]) if net.norms[0].training else None
    )
    work.source.module.register_forward_pre_hook(lambda _m, given: asked.append(tuple(given[0].shape[2:])))
    report = Distil(steps=30, images=100, batch=20, side=40)(work)
    assert seen[:30] == [40] * 27 + [64] * 3
    assert set(asked) == {(40, 40), (64, 64)}
    assert (report["side"], report["images"]) == (40, 100 + 20)
    assert report["agreement"]["images"] == 20


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Linear(4 * 31 * 31, 5)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().flatten(1))


def test_a_network_of_one_size_is_not_shown_another():
    size = (3, 64, 64)
    work = grafted(taught(lambda: Straight(((8, 3), (12, 3)), 5), size), Flat, size=size)
    with pytest.raises(UsageError, match="does not take images of 3x40x40"):
        Distil(steps=3, images=64, side=40)(work)
