"""Weights of kernels that tell two domains apart best: the quadratic programme of MK-MMD.

For kernels k_1 ... k_U the linear-time statistic of MMD^2 is a mean of h_u over pairs of images. A test with the kernel
sum_u beta_u k_u is strongest where MMD^2 is largest over its standard deviation (Gretton et al. 2012, "Optimal kernel
choice for large-scale two-sample tests"), which is

    min beta^T (Q + epsilon I) beta    such that    d^T beta = 1, beta >= 0,

d the means of h, and Q the second moments of differences of h between neighbouring pairs (DAN).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from netgraft.errors import UsageError
from netgraft.finetune.toolbox import mmd

EPSILON = 1e-3


class KernelStatistics(NamedTuple):
    """Of each kernel of one layer, in float64."""

    mean: Tensor  # d, [U]
    spread: Tensor  # Q, [U, U]


@torch.no_grad()
def statistics(source: Tensor, target: Tensor, factors: Sequence[float] = mmd.FACTORS) -> KernelStatistics:
    """d and Q of two samples ``[n, width]``. Raises UsageError for fewer than four images of each."""
    if min(len(source), len(target)) < 4:
        what = "Weights of kernels need four images of each domain in a batch."
        raise UsageError(what, hint="Add --batch-size 32, or --set kernels=equal.")
    h = mmd.linear_terms(source, target, [mmd.gaussians([factor]) for factor in factors]).double()
    count = h.shape[1] // 2 * 2
    away = h[:, 0:count:2] - h[:, 1:count:2]
    return KernelStatistics(h.mean(1), away @ away.T / away.shape[1])


@torch.no_grad()
def best_weights(found: KernelStatistics, epsilon: float = EPSILON) -> Tensor:
    """The programme's solution times a factor that makes the weights' mean 1, ``[U]``; all 1 where no d_u is above 0.

    Without the sign of beta the solution on a set of kernels is (Q + epsilon I)^-1 d up to a factor: the best of the
    sets whose solution has no negative weight is that of the programme. There are 2^U - 1 sets, all solved at once.
    """
    d, kernels = found.mean, len(found.mean)
    matrix = found.spread + epsilon * torch.eye(kernels, dtype=d.dtype, device=d.device)
    sets = torch.tensor(list(itertools.product((0, 1), repeat=kernels))[1:], dtype=d.dtype, device=d.device)
    inside = sets[:, :, None] * sets[:, None, :]
    systems = inside * matrix + torch.diag_embed(1 - sets)
    gamma = torch.linalg.solve(systems, sets * d)
    value = torch.where((gamma >= 0).all(1), gamma @ d, torch.zeros_like(gamma[:, 0]))
    best = gamma[value.argmax()]
    return torch.where(value.max() > 0, best / best.mean().clamp(min=torch.finfo(d.dtype).tiny), torch.ones_like(d))


class KernelWeights(nn.Module):
    """The weights of each layer's kernels, ``each`` [layers, U], from the statistics of an epoch's batches.

    They are 1 in the first epoch. The sums are buffers: an interrupted epoch goes on with them.
    """

    each: Tensor
    means: Tensor
    spreads: Tensor
    batches: Tensor

    def __init__(self, layers: int, kernels: int = len(mmd.FACTORS)) -> None:
        super().__init__()
        self.register_buffer("each", torch.ones(layers, kernels))
        self.register_buffer("means", torch.zeros(layers, kernels, dtype=torch.float64))
        self.register_buffer("spreads", torch.zeros(layers, kernels, kernels, dtype=torch.float64))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def add(self, found: Sequence[KernelStatistics]) -> None:
        """Those of a batch, layer by layer."""
        self.means += torch.stack([one.mean for one in found])
        self.spreads += torch.stack([one.spread for one in found])
        self.batches += 1

    def solve(self, epsilon: float = EPSILON) -> None:
        """New weights, by the means over all batches since the last time."""
        for layer, (mean, spread) in enumerate(zip(self.means, self.spreads, strict=True)):
            self.each[layer] = best_weights(KernelStatistics(mean / self.batches, spread / self.batches), epsilon)
        for sums in (self.means, self.spreads, self.batches):
            sums.zero_()
