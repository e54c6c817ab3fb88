"""How much more often an image appears in the target domain than in the source's, by a logistic classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from netgraft.errors import UsageError

MOST_STEPS = 100
"""Of Newton's method, which needs about ten."""


def density_ratio(
    source: Tensor,  # [n_s, d] features
    target: Tensor,  # [n_t, d]
    *,
    penalty: float = 1.0,
    most: float = 10.0,
) -> Tensor:
    """w(x) = p(t|x) / p(s|x) * n_s / n_t of the source's images, at most ``most``, then of mean 1:
    ``[n_s]`` float64 on the CPU.

    p is the logistic regression of ``fit_logistic`` on features of mean 0 and variance 1 over both domains.
    """
    both = torch.cat([source, target]).cpu().double()  # some devices have no float64
    deviation = both.std(0, correction=0)
    both = (both - both.mean(0)) / torch.where(deviation > 1e-12, deviation, 1.0)
    is_target = torch.arange(len(both), device=both.device) >= len(source)
    weight, bias = fit_logistic(both, is_target, penalty)
    ratio = torch.exp(both[: len(source)] @ weight + bias) * len(source) / len(target)
    ratio = ratio.clamp(max=most)
    return ratio / ratio.mean()


def fit_logistic(
    x: Tensor,  # [n, d] float64
    positive: Tensor,  # [n] bool
    penalty: float,
) -> tuple[Tensor, Tensor]:
    """Weights ``[d]`` and bias of p(positive | x), which minimise sum -log p + penalty / 2 |weights|^2 (Newton).

    Raises UsageError if ``penalty`` is not above 0: classes that can be told apart would have no minimum.
    """
    if penalty <= 0:
        raise UsageError("The penalty of the logistic classifier is above 0.", where=str(penalty))
    x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    ridge = x.new_full((x.shape[1],), penalty)
    ridge[-1] = 0
    sign = torch.where(positive, 1.0, -1.0).to(x)

    def objective(theta: Tensor) -> Tensor:
        return F.softplus(-sign * (x @ theta)).sum() + (ridge * theta * theta).sum() / 2

    theta = x.new_zeros(x.shape[1])
    for _ in range(MOST_STEPS):
        p = torch.sigmoid(x @ theta)
        gradient = x.T @ (p - positive.to(x)) + ridge * theta
        if gradient.norm() <= 1e-10 * len(x):
            break
        hessian = (x.T * (p * (1 - p))) @ x + torch.diag(ridge)
        step, length = torch.linalg.solve(hessian, gradient), 1.0
        before, descent = objective(theta), gradient @ step
        while length > 1e-6 and objective(theta - length * step) > before - 1e-4 * length * descent:
            length /= 2  # a whole step from far away may go too far
        theta = theta - length * step
    return theta[:-1], theta[-1]
