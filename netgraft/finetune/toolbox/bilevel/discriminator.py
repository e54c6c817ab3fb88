"""Discriminators of features, and what they and their generator descend. 1 is the source ("real"), 0 the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from netgraft.finetune.protocol import FeaturePair
from netgraft.finetune.toolbox.adapters import width
from netgraft.finetune.toolbox.bilevel.matching import pooled

Gan = Literal["nonsat", "minimax", "lsgan", "hinge", "grl"]

WIDTH = 256
"""The most hidden channels of a discriminator of maps and tokens."""
VECTOR_WIDTH = 1024
"""The hidden features of a discriminator of vectors, as in TLlib's."""


class PairDiscriminator(nn.Module):
    """The logit that features [B, *shape] are the source's, [B].

    Of maps: 1x1 and 3x3 (stride 2) convolutions, the mean over places, a linear layer; of vectors and tokens three
    linear layers, with the mean over tokens before the last. Leaky ReLUs, spectral norms, and no batch norm, through
    which it would tell batches instead of features. The paper's text names no architecture: this is ours.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        inputs = width(tuple(shape))
        first: nn.Module
        second: nn.Module
        if len(shape) == 3:
            hidden = min(WIDTH, inputs)
            first, second = nn.Conv2d(inputs, hidden, 1), nn.Conv2d(hidden, hidden, 3, stride=2, padding=1)
        else:
            hidden = VECTOR_WIDTH if len(shape) == 1 else min(WIDTH, inputs)
            first, second = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        layers = [spectral_norm(layer) for layer in (first, second, nn.Linear(hidden, 1))]
        self.first, self.second, self.last = layers

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x), 0.2)
        x = F.leaky_relu(self.second(x), 0.2)
        out: Tensor = self.last(pooled(x)).squeeze(1)
        return out


class Discriminators(nn.Module):
    """One for each pair."""

    def __init__(self, pairs: Sequence[FeaturePair]) -> None:
        super().__init__()
        self.each = nn.ModuleList(PairDiscriminator(pair.source_shape) for pair in pairs)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits, [pairs, B]."""
        return torch.stack([one(x) for one, x in zip(self.each, features, strict=True)])

    def frozen(self, features: Sequence[Tensor]) -> Tensor:
        """The same without a step of the spectral norms' power iterations: nothing here changes."""
        was = self.training
        self.eval()
        try:
            found: Tensor = self(features)
        finally:
            self.train(was)
        return found


def discriminator_loss(real: Tensor, fake: Tensor, gan: Gan) -> Tensor:
    """What a discriminator descends, from logits [pairs, B]: the sum over pairs of means over samples.

    nonsat, minimax, grl: -log D(real) - log(1 - D(fake)), so that it ascends L2T-GAN's Eq. 1 (Goodfellow et al.).
    lsgan: ((real - 1)^2 + fake^2) / 2 (Mao et al.). hinge: max(0, 1 - real) + max(0, 1 + fake) (Lim and Ye).
    """
    if gan == "lsgan":
        loss = 0.5 * (real - 1).square() + 0.5 * fake.square()
    elif gan == "hinge":
        loss = F.relu(1 - real) + F.relu(1 + fake)
    else:
        loss = F.softplus(-real) + F.softplus(fake)
    return loss.mean(1).sum()


def generator_loss(fake: Tensor, gan: Gan) -> Tensor:
    """What the target and its adapters descend, from the logits of their features [pairs, B].

    nonsat: -log D(fake). minimax, grl: log(1 - D(fake)). lsgan: (fake - 1)^2 / 2. hinge: -fake.
    """
    if gan == "lsgan":
        loss = 0.5 * (fake - 1).square()
    elif gan == "hinge":
        loss = -fake
    elif gan == "nonsat":
        loss = F.softplus(-fake)
    else:
        loss = -F.softplus(fake)
    return loss.mean(1).sum()
