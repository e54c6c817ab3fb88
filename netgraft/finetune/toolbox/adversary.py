"""Adversaries of features: gradient reversal and its schedule, discriminators of domains, multilinear maps."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


@torch.no_grad()
def recognised(source: Tensor, target: Tensor) -> Tensor:  # [n], [m]
    """The share of images whose domain the logits tell, each domain counting one half."""
    return ((source > 0).float().mean() + (target <= 0).float().mean()) / 2


class Multilinear(nn.Module):
    """Features and class probabilities as one vector: f (x) g, or (R_f f) * (R_g g) / sqrt(d) where that is too long.

    The random matrices have independent standard normal entries, so that inner products of images keep those of f (x) g
    in expectation (CDAN). They are buffers: saved, resumed, and the same on all processes.
    """

    def __init__(self, features: int, classes: int, dimensions: int, longest: int = 4096) -> None:
        """``dimensions`` is d; up to ``longest`` elements f (x) g is taken as it is."""
        super().__init__()
        self.randomised = features * classes > longest
        self.width = dimensions if self.randomised else features * classes
        self.features: Tensor
        self.classes: Tensor
        if self.randomised:
            self.register_buffer("features", torch.randn(features, dimensions))
            self.register_buffer("classes", torch.randn(classes, dimensions))

    def forward(self, f: Tensor, g: Tensor) -> Tensor:  # [B, features], [B, classes] -> [B, width]
        if not self.randomised:
            return (f[:, :, None] * g[:, None, :]).flatten(1)
        return (f @ self.features) * (g @ self.classes) / math.sqrt(self.width)
