"""How sure an accuracy, and a difference of two accuracies on the same images, is."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

LEVEL = 0.95
DRAWS = 4000
_CHUNK = 2**22  # numbers of a chunk of draws


class Interval(NamedTuple):
    """A confidence interval at LEVEL."""

    low: float
    high: float


def wilson(right: float, total: int, level: float = LEVEL) -> Interval:
    """The interval of a share: ``right`` of ``total`` (Wilson 1927), good for small numbers and shares of 0 and 1."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, extra = right / total, z * z / total
    half = z * sqrt(share * (1 - share) / total + extra / (4 * total))
    low, high = (share + extra / 2 - half) / (1 + extra), (share + extra / 2 + half) / (1 + extra)
    return Interval(max(low, 0.0), min(high, 1.0))


def paired_difference(
    right: Tensor,  # [T] bool: which test images are classified rightly
    others: Tensor,  # [S, T] bool: the same for each of S draws of what it is compared with
    *,
    seed: int = 0,
    level: float = LEVEL,
    draws: int = DRAWS,
) -> tuple[float, Interval]:
    """Accuracy less the mean accuracy of ``others``, and its interval.

    Paired bootstrap: test images are drawn anew, the same ones for both sides; so are the S seeds, whose deviations are
    widened by sqrt(S / (S - 1)), as S draws around their own mean vary too little.
    """
    scored, scratch = right.double(), others.double()
    seeds, total = scratch.shape
    generator = torch.Generator().manual_seed(seed)
    found = []
    for start in range(0, draws, chunk := max(1, _CHUNK // total)):
        count = min(chunk, draws - start)
        picks = torch.randint(total, (count, total), generator=generator)
        weights = torch.zeros(count, total, dtype=torch.float64)
        weights.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
        by_seed = weights @ scratch.T / total  # [count, S]
        middle = by_seed.mean(1, keepdim=True)
        if seeds > 1:
            chosen = torch.randint(seeds, (count, seeds), generator=generator)
            deviations = (by_seed - middle) * sqrt(seeds / (seeds - 1))
            middle = middle + deviations.gather(1, chosen).mean(1, keepdim=True)
        found.append(weights @ scored / total - middle[:, 0])
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.cat(found).quantile(edges).tolist()
    return float(scored.mean() - scratch.mean()), Interval(low, high)
