"""Which layer of a changed network is which of the one it was made from: the change tells the truth."""

import pytest
import torch.nn.functional as F
from support.nets import traced
from torch import nn

from netgraft.architecture.alignment import align
from netgraft.architecture.canonical import canonical


class Block(nn.Module):
    def __init__(self, width, norm=nn.BatchNorm2d, gate=False):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), norm(width)
        self.gate = nn.Conv2d(width, width, 1) if gate else None

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.gate is not None:
            y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        return F.relu(x + y)


class Net(nn.Module):
    """Blocks by name, so that the same block keeps its name wherever it stands."""

    def __init__(self, blocks=("a", "b", "c", "d"), widths=None, stem=3, classes=5, gates=(), norm=nn.BatchNorm2d):
        super().__init__()
        self.stem, self.order = nn.Conv2d(stem, 8, 3, padding=1), blocks
        for name in blocks:
            setattr(self, name, Block((widths or {}).get(name, 8), norm, name in gates))
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        x = self.stem(x)
        for name in self.order:
            x = getattr(self, name)(x)
        return self.head(x.mean((2, 3)))


def aligned(one, other, channels=(3, 3)):
    """By layer of the second network the layer of the first; layers without a counterpart are missing."""
    graphs = [canonical(traced(build, (n, 8, 8))).loosely() for build, n in zip((one, other), channels, strict=True)]
    found = align(*graphs)
    return {graphs[1].parts[b].layer: graphs[0].parts[a].layer for b, a in found.items() if graphs[1].parts[b].layer}


def same(*blocks, more=("stem", "head")):
    parts = [f"{block}.{name}" for block in blocks for name in ("conv1", "norm1", "conv2", "norm2")]
    return {name: name for name in (*more, *parts)}


def test_nothing_changed():
    assert aligned(Net, Net) == same("a", "b", "c", "d")


@pytest.mark.parametrize("place", range(5))
def test_an_inserted_block(place):
    blocks = ["a", "b", "c", "d"]
    blocks.insert(place, "new")
    assert aligned(Net, lambda: Net(blocks)) == same("a", "b", "c", "d")


@pytest.mark.parametrize("gone", ["a", "b", "d"])
def test_a_missing_block(gone):
    left = [name for name in "abcd" if name != gone]
    assert aligned(Net, lambda: Net(left)) == same(*left)


def test_another_head_and_other_input_channels():
    found = aligned(Net, lambda: Net(stem=12, classes=7), (3, 12))
    assert found == same("a", "b", "c", "d")


def test_new_gates_have_no_counterpart():
    assert aligned(Net, lambda: Net(gates="ac")) == same("a", "b", "c", "d")


def test_norms_of_another_kind():
    assert aligned(Net, lambda: Net(norm=lambda n: nn.GroupNorm(2, n))) == same("a", "b", "c", "d")


def test_nothing_in_common():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(64, 4)

        def forward(self, x):
            return self.rnn(x.flatten(2))[0]

    assert aligned(Net, Other) == {}


class Shortcut(nn.Module):
    """A projection on the shortcut that runs before the branch, or after it."""

    def __init__(self, first):
        super().__init__()
        self.first = first
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.skip, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.norm(self.skip(x)) if self.first else None
        return self.conv2(F.relu(self.conv1(x))) + (y if y is not None else self.norm(self.skip(x)))


def test_the_order_of_execution_does_not_matter():
    found = aligned(lambda: Shortcut(True), lambda: Shortcut(False))
    assert found == {name: name for name in ("conv1", "conv2", "skip", "norm")}


def test_other_strides_and_dilations():
    def net(stride, dilation):
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, stride, dilation, dilation), nn.ReLU(), nn.Conv2d(6, 6, 1, stride), nn.Conv2d(6, 4, 1)
        )

    assert aligned(lambda: net(2, 1), lambda: net(1, 2)) == {name: name for name in ("0", "2", "3")}


def test_what_is_left_out_is_one_block_and_not_halves_of_two():
    """No name tells which of five equal blocks is the new one; its four layers belong together."""
    found = aligned(Net, lambda: Net("pqrst"))
    left = {f"{block}.{name}" for block in "pqrst" for name in ("conv1", "norm1", "conv2", "norm2")} - found.keys()
    assert len(left) == 4
    assert len({name[0] for name in left}) == 1
    assert all(source[1:] == target[1:] for target, source in found.items() if "." in target)
