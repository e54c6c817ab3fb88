"""New branches that can do nothing: set as told, the network computes what it did without them."""

import pytest
import torch
import torch.nn.functional as F
from support.nets import traced, weights
from torch import nn

from netgraft.architecture.neutral import neutral_ends


class Net(nn.Module):
    """Two convolutions, and perhaps something new between them."""

    def __init__(self, new=None):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3)
        self.new = new or nn.Identity()

    def forward(self, x):
        return self.two(self.new(F.relu(self.one(x)))).mean((2, 3))


class Residual(nn.Module):
    def __init__(self, scale=False):
        super().__init__()
        self.conv, self.norm, self.end = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)
        self.gamma = nn.Parameter(torch.rand(6, 1, 1)) if scale else None

    def forward(self, x):
        y = self.end(F.silu(self.norm(self.conv(x))))
        return x + (y if self.gamma is None else self.gamma * y)


class Squeeze(nn.Module):
    def __init__(self, gate=torch.sigmoid):
        super().__init__()
        self.down, self.up, self.gate = nn.Linear(6, 2), nn.Linear(2, 6), gate

    def forward(self, x):
        return x * self.gate(self.up(F.relu(self.down(x.mean((2, 3))))))[:, :, None, None]


class Bottleneck(nn.Module):
    """An adapter whose branch ends in a norm and a ReLU."""

    def __init__(self):
        super().__init__()
        self.down, self.up, self.norm = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x):
        return F.relu(self.norm(self.up(F.relu(self.down(x))))) + x


NEW = {
    "residual block": (Residual, {"new.end"}, 0),
    "layer scale": (lambda: Residual(scale=True), {"new.gamma"}, 0),
    "squeeze and excitation": (Squeeze, {"new.up"}, 0.01),
    "hard gate": (lambda: Squeeze(F.hardsigmoid), {"new.up"}, 0),
    "adapter": (Bottleneck, {"new.norm"}, 0),
}


@pytest.mark.parametrize("name", NEW)
def test_the_network_goes_on_as_before(name):
    build, ends, tolerance = NEW[name]
    old, new = Net(), Net(build())
    state = weights(lambda: Net(build()))
    old.load_state_dict({key: value for key, value in state.items() if not key.startswith("new.")})
    graph = traced(lambda: Net(build()), (3, 8, 8))
    found = list(neutral_ends(graph, {"one", "two"}))
    assert {end.layer for end in found} == ends
    for end in found:
        for role, slot in graph.layers[end.layer].tensors.items():
            if role in ("weight", "value", "bias"):
                state[slot.key] = torch.full_like(state[slot.key], end.bias if role == "bias" else end.weight)
    new.load_state_dict(state)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        before, after = old.eval()(x), new.eval()(x)
    assert (after - before).norm() <= tolerance * before.norm() + 1e-6


class Decoder(nn.Module):
    """Sums of new layers alone, as in a feature pyramid."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        return self.a(x) + self.b(x)


class Mixed(nn.Module):
    """A gate of which nobody knows how to open it."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 6)

    def forward(self, x):
        return x * torch.cos(self.up(x.mean((2, 3))))[:, :, None, None]


@pytest.mark.parametrize("build", [Decoder, Mixed, lambda: nn.Conv2d(6, 6, 1)])
def test_what_must_not_or_cannot_be_nothing(build):
    graph = traced(lambda: Net(build()), (3, 8, 8))
    assert list(neutral_ends(graph, {"one", "two"})) == []
