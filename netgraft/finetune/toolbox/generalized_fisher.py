"""Generalised Fisher information: which weights two tasks may share (CETL, Eqs. 9-11).

Parameters of a network are one vector here, in the order in which they are given. The paper does not say how the
mutual information of Eq. 9 is estimated; this is ours. The gradient of each minibatch is one sample of the random
variable F_k,i = (d L_k / d theta_i)^2, for both tasks on the same images. With log F_1 and log F_2 jointly normal
(a Gaussian copula with lognormal margins) their mutual information is I = -log(1 - r^2) / 2, r the correlation of the
logarithms, and sqrt(1 - exp(-2 I)) = |r| is the usual normalisation to [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netgraft.finetune.protocol import Batch, Penalty, Run

FLOOR = 1e-12
"""Added to the size of a gradient before its logarithm is taken: a weight that a task does not reach has gradient 0."""


class PairedFisher(nn.Module):
    """Means of F_1 and F_2, and moments of their logarithms, over the minibatches of one window.

    Moments are those of log |g|, which correlate as log F = 2 log |g| does; deviations are summed about the running
    mean (Welford), as float32 would lose them in sums of squares.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.count: Tensor
        self.fisher: Tensor
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("fisher", torch.zeros(2, size))
        self.register_buffer("mean", torch.zeros(2, size))
        self.register_buffer("spread", torch.zeros(3, size))  # of task 1, of task 2, of both together

    @torch.no_grad()
    def add(self, first: Tensor, second: Tensor | None = None, *, anew: bool = False) -> None:
        """Take the gradients [size] of both tasks on one minibatch; without ``second`` F_1 alone is kept up.

        ``anew`` forgets what was before.
        """
        if anew:
            for buffer in self.buffers():
                buffer.zero_()
        self.count += 1
        self.fisher[0] += (first.square() - self.fisher[0]) / self.count
        if second is None:
            return
        self.fisher[1] += (second.square() - self.fisher[1]) / self.count
        logs = torch.stack([first, second]).abs_().add_(FLOOR).log_()
        before = logs - self.mean
        self.mean += before / self.count
        after = logs - self.mean
        self.spread[:2] += before * after
        self.spread[2] += before[0] * after[1]

    def relative(self) -> Tensor:
        """RF_i (Eq. 9) in [0, 1], ``[size]``; 0 where a task's gradient did not change."""
        product = self.spread[0].sqrt() * self.spread[1].sqrt()
        found = torch.where(product > 0, self.spread[2].abs() / product, torch.zeros_like(product))
        return found.clamp(max=1.0)


class WeightAllocation(nn.Module):
    """One DWA: the importance of the weights (GFI) and where they stood when it was measured (theta*)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.importance: Tensor
        self.anchor: Tensor
        self.register_buffer("importance", torch.zeros(size))
        self.register_buffer("anchor", torch.zeros(size))

    @torch.no_grad()
    def keep(self, importance: Tensor, parameters: Sequence[Tensor]) -> None:
        self.importance.copy_(importance)
        self.anchor.copy_(flat(parameters))

    @torch.no_grad()
    def penalty(self, parameters: Sequence[Tensor], weight: float) -> Penalty:
        """sum_i weight/2 GFI_i (theta_i - theta*_i)^2 with its gradient (Eq. 11)."""
        away = flat(parameters) - self.anchor
        gradient = weight * self.importance * away
        pieces = gradient.split([p.numel() for p in parameters])
        shaped = [piece.view(p.shape).clone() for piece, p in zip(pieces, parameters, strict=True)]
        return Penalty((gradient @ away) / 2, list(parameters), shaped)


def scaled_fisher(fisher: Tensor, cap: float) -> Tensor:
    """F [size] over its mean, so that its weight means the same for every loss, and at most ``cap`` (0: no bound).

    A few weights have a thousand times the mean. Steps along a penalty of curvature weight * F diverge where that is
    above 2 / lr.
    """
    found = fisher / fisher.mean().clamp(min=torch.finfo(fisher.dtype).tiny)
    return found.clamp(max=cap) if cap else found


def generalized(
    fisher: Tensor,  # F_i of the task that came first
    relative: Tensor,  # RF_i
    *,
    threshold: float,  # u
    probability: float,  # p
    generator: torch.Generator,  # on the CPU, the same on all processes
) -> Tensor:
    """GFI_i (Eq. 10): F_i is kept with probability p where RF_i >= u, with 1 - p elsewhere, and is else 0."""
    drawn = torch.rand(fisher.shape, generator=generator).to(fisher.device)
    kept = drawn < torch.where(relative >= threshold, probability, 1 - probability)
    return torch.where(kept, fisher, torch.zeros_like(fisher))


def random_direction(run: Run, outputs: Sequence[Tensor], batches: Sequence[Batch], name: str) -> Tensor:
    """eps^T outputs, with signs eps, averaged over samples: the mean of its squared gradient is diag(J^T J) / B^2.

    The Fisher information of a normal distribution around the outputs (Hutchinson's estimate, one backward pass).
    """
    found = []
    for output, batch in zip(outputs, batches, strict=True):
        signs = (run.random(batch, name, *output.shape[1:]) < 0.5).to(output.dtype) * 2 - 1
        found.append((signs * output).flatten(1).sum(1).mean())
    return torch.stack(found).mean()


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All elements, as one vector."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
