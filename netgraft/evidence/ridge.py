"""Ridge regression in closed form, with the penalty that predicts left-out examples best.

One eigendecomposition of the smaller Gram matrix serves every penalty: with X = U S V', the fit is mean(Y) +
U diag(s^2 / (s^2 + lambda)) U' (Y - mean(Y)), and the residual of an example left out is that of the fit over 1 - h_i,
h_i = 1/n + sum_j U_ij^2 s_j^2 / (s_j^2 + lambda) (Golub, Heath and Wahba 1979). The intercept carries no penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GRID = tuple(10 ** (exponent / 4) for exponent in range(-20, 21))
"""Penalties that are tried, as multiples of the mean eigenvalue of the Gram matrix."""
CONSTANT = 1e-6
"""A feature whose standard deviation is a smaller share of its largest value is a constant, up to rounding."""


@dataclass(frozen=True)
class Ridge:
    """A fitted linear map of standardised features."""

    centre: Tensor  # [p] float64
    scale: Tensor  # [p]; infinite for constant features, which count nothing
    weight: Tensor  # [p, k], on standardised features
    intercept: Tensor  # [k]
    penalty: float
    errors: tuple[float, ...]  # mean squared left-out error of every penalty that was tried

    def __call__(self, features: Tensor) -> Tensor:  # [n, p] -> [n, k]
        return (features.double() - self.centre) / self.scale @ self.weight + self.intercept


def fit_ridge(
    features: Tensor,  # [n, p]
    outputs: Tensor,  # [n, k]
    penalties: Sequence[float] | None = None,
    *,
    each: bool = True,
) -> Ridge:
    """The ridge regression of ``outputs`` on standardised ``features``, in float64.

    With ``each`` every feature is divided by its own standard deviation, else all by the same number, so that a feature
    that hardly varied among few examples cannot speak up later. The penalty is the one of ``penalties`` (those of GRID
    without any) with the least squared leave-one-out error, which is exact for features standardised once; the larger
    one of two that are equal.
    """
    x, y = features.double(), outputs.double()
    n, p = x.shape
    centre, scale = x.mean(0), x.std(0, correction=0)
    varies = scale > CONSTANT * x.abs().amax(0)
    if not each:
        scale = scale[varies].square().mean().sqrt().expand(p)
    scale = torch.where(varies, scale, torch.inf)
    x = (x - centre) / scale
    intercept = y.mean(0)
    y = y - intercept
    if n <= p:
        eigenvalues, vectors = torch.linalg.eigh(x @ x.T)
        eigenvalues, left = _positive(eigenvalues, vectors)  # left: U [n, r]
        right = x.T @ left / eigenvalues.sqrt()  # V [p, r]
    else:
        eigenvalues, vectors = torch.linalg.eigh(x.T @ x)
        eigenvalues, right = _positive(eigenvalues, vectors)
        left = x @ right / eigenvalues.sqrt()
    rotated = left.T @ y  # [r, k]
    if penalties is None:
        mean = float(eigenvalues.mean()) if len(eigenvalues) else 1.0
        penalties = [multiple * mean for multiple in GRID]
    errors = [_left_out(left, eigenvalues, rotated, y, penalty) for penalty in penalties]
    _, penalty = min(zip(errors, penalties, strict=True), key=lambda pair: (pair[0], -pair[1]))
    weight = right @ ((eigenvalues.sqrt() / (eigenvalues + penalty))[:, None] * rotated)
    return Ridge(centre, scale, weight, intercept, float(penalty), tuple(errors))


def _positive(eigenvalues: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenpairs that are more than rounding."""
    most = float(eigenvalues[-1]) if len(eigenvalues) else 0.0
    keep = eigenvalues > max(most, 0.0) * len(eigenvalues) * torch.finfo(torch.float64).eps
    return eigenvalues[keep], vectors[:, keep]


def _left_out(left: Tensor, eigenvalues: Tensor, rotated: Tensor, y: Tensor, penalty: float) -> float:
    """Mean over examples and outputs of the squared error at an example that the fit has not seen."""
    shrunk = eigenvalues / (eigenvalues + penalty)
    leverage = 1 / len(y) + left.square() @ shrunk
    residual = y - left @ (shrunk[:, None] * rotated)
    return float((residual / (1 - leverage).clamp(min=1e-12)[:, None]).square().mean())
