"""Adversaries of features: gradient reversal and its schedule, discriminators of domains, multilinear maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netgraft.errors import UsageError
from netgraft.finetune.protocol import Run


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reverse(x: Tensor, strength: float = 1.0) -> Tensor:
    """``x`` itself, whose gradient is multiplied by ``-strength`` (Ganin & Lempitsky 2015)."""
    reversed_: Tensor = _Reverse.apply(x, strength)
    return reversed_


def ramp(run: Run, steepness: float) -> float:
    """2 / (1 + exp(-steepness * p)) - 1 with p the part of the training that is done: from 0 to about 1.

    A steepness of 0 is a constant 1 (DANN has 10).
    """
    if steepness == 0:
        return 1.0
    return 2 / (1 + math.exp(-steepness * run.step / run.steps)) - 1


class Discriminator(nn.Sequential):
    """Two hidden layers; the logit ``[B]`` that features ``[B, width]`` are the source's.

    Without BatchNorm, whose statistics would tell a batch of one domain from one of the other, and make several
    processes another training than one.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
            nn.Flatten(0),
        )


def domain_loss(
    source: Tensor,  # logits [n]
    target: Tensor,  # logits [m]
    weights: tuple[Tensor, Tensor] | None = None,  # of the images, [n] and [m], of mean 1
) -> Tensor:
    """-(mean log D(source) + mean log(1 - D(target))) / 2, D the sigmoid of the logits: a scalar, log 2 by chance."""
    losses = is_source(source), F.softplus(target)
    if weights is not None:
        losses = losses[0] * weights[0], losses[1] * weights[1]
    return (losses[0].mean() + losses[1].mean()) / 2


def is_source(logits: Tensor) -> Tensor:  # [n] -> [n]
    """-log D: the discriminator's loss on the source, and that of an encoder that passes itself off as the source."""
    return F.softplus(-logits)


def confusion(source: Tensor, target: Tensor) -> Tensor:  # logits [n], [m]
    """-(log D + log(1 - D)) / 2, D the sigmoid of the logits: the mean of both domains' means, at least log 2."""
    each = [(F.softplus(z) + F.softplus(-z)).mean() / 2 for z in (source, target)]
    return (each[0] + each[1]) / 2


@torch.no_grad()
def recognised(source: Tensor, target: Tensor) -> Tensor:  # [n], [m]
    """The share of images whose domain the logits tell, each domain counting one half."""
    return ((source > 0).float().mean() + (target <= 0).float().mean()) / 2


class Multilinear(nn.Module):
    """Several layers as one vector: f_1 (x) ... (x) f_L, or the product of all R_l f_l over sqrt(d) where it is long.

    The random matrices have independent standard normal entries, so that inner products of images keep those of the
    outer product in expectation (RMAN, CDAN). They are buffers: saved, resumed, and the same on all processes.
    """

    def __init__(self, widths: Sequence[int], dimensions: int, longest: int = 4096) -> None:
        """``dimensions`` is d; up to ``longest`` elements the outer product is taken as it is."""
        super().__init__()
        self.widths, whole = tuple(widths), math.prod(widths)
        self.randomised = whole > longest
        self.width = dimensions if self.randomised else whole
        if self.randomised:
            for number, width in enumerate(widths):
                self.register_buffer(f"matrix{number}", torch.randn(width, dimensions))

    def forward(self, *layers: Tensor) -> Tensor:  # each [B, width of the layer] -> [B, width]
        """Raises UsageError where a layer is not as wide as it was said to be."""
        if (found := tuple(x.shape[1] for x in layers)) != self.widths:
            what = "A layer puts out another number of channels than the network's modules say."
            raise UsageError(what, where=f"{found} instead of {self.widths}", hint="Name one of the layers inside it.")
        if not self.randomised:
            joined = layers[0]
            for x in layers[1:]:
                joined = (joined[:, :, None] * x[:, None, :]).flatten(1)
            return joined
        mapped = [x @ self.get_buffer(f"matrix{number}") for number, x in enumerate(layers)]
        return torch.stack(mapped).prod(0) / math.sqrt(self.width)
