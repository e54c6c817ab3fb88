"""Norms that are called as functions: which of two parameters of equal shape is the gain, and which the offset."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netgraft.models.model import Model, parse_reference
from netgraft.trace import trace


class Gated(nn.BatchNorm2d):
    """A norm with squeeze and excitation of its own."""

    def __init__(self, width):
        super().__init__(width)
        self.gate = nn.Conv2d(width, width, 1)

    def forward(self, x):
        x = super().forward(x)
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


class Named(nn.Module):
    """Parameters whose names stand in another order than the function's arguments."""

    def __init__(self, width, function):
        super().__init__()
        self.beta, self.gamma = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.ones(width))
        self.gate, self.function = nn.Conv2d(width, width, 1), function

    def forward(self, x):
        return self.function(x, self.gamma, self.beta) * self.gate(x)


def group_norm(x, gamma, beta):
    return F.group_norm(x, 2, gamma, beta)


def layer_norm(x, gamma, beta):
    return F.layer_norm(x.permute(0, 2, 3, 1), (4,), gamma, beta).permute(0, 3, 1, 2)


def batch_norm(x, gamma, beta):
    return F.batch_norm(x, None, None, gamma, beta, training=True)


@pytest.mark.parametrize(
    ("norm", "gain", "offset"),
    [
        (lambda: Gated(4), "1.weight", "1.bias"),
        (lambda: Named(4, group_norm), "1.gamma", "1.beta"),
        (lambda: Named(4, layer_norm), "1.gamma", "1.beta"),
        (lambda: Named(4, batch_norm), "1.gamma", "1.beta"),
    ],
    ids=["subclass", "group_norm", "layer_norm", "batch_norm"],
)
def test_the_gain_is_the_argument_in_the_weights_place(norm, gain, offset):
    model = Model(
        "net",
        parse_reference("./net.py"),
        "target",
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), norm(), nn.Flatten(), nn.Linear(144, 2)),
        (3, 8, 8),
    )
    layers = trace(model).layers.values()
    (found,) = [layer for layer in layers if gain in {slot.key for slot in layer.tensors.values()}]
    assert {role: slot.key for role, slot in found.tensors.items() if not slot.buffer} == {
        "weight": gain,
        "bias": offset,
    }
