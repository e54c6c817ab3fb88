"""Two factors of a matrix, and sinusoidal positions: what operators that make attention have in common."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from netgraft.errors import PlanError
from netgraft.operators._checks import axis


def factors(
    matrix: Tensor,  # [n, m]
    rank: int,
) -> tuple[Tensor, Tensor]:
    """[n, r] and [m, r]: the best L R^T of this rank, with the roots of the singular values in both (Eckart-Young).

    Signs are set so that the largest entry of each left singular vector is positive: the two halves may be computed
    apart.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    left, values, right = left[:, :rank], values[:rank], right[:rank].T
    largest = left.abs().argmax(0, keepdim=True)
    signs = left.gather(0, largest).sign()
    return left * signs * values.sqrt(), right * signs * values.sqrt()


@lru_cache(maxsize=8)
def sinusoids(side: int, width: int, temperature: float) -> Tensor:
    """[side^2, width] in float64: positions on a square grid in reading order as sines and cosines of x, then of y.

    The frequencies are temperature^(-i / (q - 1)), i = 0 to q - 1, q = width / 4 (Beyer et al., arXiv:2205.01580).
    For a width that 4 does not divide, q is rounded up and the last channels are left out.
    """
    count = -(-width // 4)
    frequencies = temperature ** -(torch.arange(count, dtype=torch.float64) / max(count - 1, 1))
    line = torch.arange(side, dtype=torch.float64)
    y, x = (grid.flatten()[:, None] * frequencies for grid in torch.meshgrid(line, line, indexing="ij"))
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1)[:, :width]


def set_rows(
    operator: str,
    weight: Tensor,
    dim: int,
    rows: list[int],
    values: Tensor,  # [rows, product of the other axes]
) -> Tensor:
    """A copy of ``weight`` with these entries along ``dim`` set. Raises PlanError where they do not fit."""
    dim, shape = axis(operator, weight, dim), tuple(weight.shape)
    if max(rows, default=0) >= shape[dim]:
        raise PlanError(f"{operator}: axis {dim} of {shape} has no entry {max(rows)}.")
    result = weight.movedim(dim, 0).clone()
    result[rows] = values.to(weight.device, weight.dtype).reshape(len(rows), *result.shape[1:])
    return result.movedim(0, dim)


def other_side(operator: str, weight: Tensor, dim: int) -> int:
    """The product of all axes but ``dim``. Raises PlanError for an empty tensor, or one without the axis."""
    dim = axis(operator, weight, dim)
    if not weight.numel():
        raise PlanError(f"{operator}: a tensor of shape {tuple(weight.shape)} is empty.")
    return weight.numel() // weight.shape[dim]


def check_rank(operator: str, weight: Tensor, rows: list[int], width: int) -> None:
    """Raise PlanError for more rows than each has numbers: a product of such factors has no higher rank."""
    if len(rows) > width:
        shape = tuple(weight.shape)
        raise PlanError(f"{operator}: {len(rows)} rows are more than the {width} numbers of each in {shape}.")
