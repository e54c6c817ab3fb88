"""Interpolation along one axis as a small matrix [target][source] of plain floats, and its use on a tensor.

The matrices equal those of ``torch.nn.functional.interpolate(..., align_corners=False)`` to rounding. They are built
and applied with elementwise arithmetic only, so that every machine gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor

import torch
from torch import Tensor

Matrix = list[list[float]]


def linear(source: int, target: int, antialias: bool = False) -> Matrix:
    """Linear interpolation, or with ``antialias`` the triangle widened by the reduction."""
    build = _antialiased if antialias else _clamped
    return build(source, target, 1, lambda x: max(1 - abs(x), 0.0))


def cubic(source: int, target: int, antialias: bool = False) -> Matrix:
    """Keys' cubic convolution: a = -3/4 as in PyTorch, with ``antialias`` a = -1/2 as in PyTorch and Pillow."""
    if antialias:
        return _antialiased(source, target, 2, lambda x: _keys(x, -0.5))
    return _clamped(source, target, 2, lambda x: _keys(x, -0.75))


def dual(matrix: Matrix) -> Matrix:
    """(B^T)^+ of a matrix B [target][source] of full rank, as [target][source].

    B (B^T B)^-1 where the target is at least as long as the source, else (B B^T)^-1 B.
    """
    columns = [list(column) for column in zip(*matrix, strict=True)]
    if len(matrix) >= len(columns):
        solved = _solve(_gram(columns), columns)  # (B^T B)^-1 B^T
        return [list(row) for row in zip(*solved, strict=True)]
    return _solve(_gram(matrix), matrix)


def resample(weight: Tensor, first: int, matrices: Sequence[Matrix | None]) -> Tensor:
    """Multiply axis ``first + i`` of [..., *grid, ...] by ``matrices[i]``; None leaves it. A new tensor."""
    axes = len(matrices)
    order = [*range(first, first + axes), *range(first), *range(first + axes, weight.ndim)]
    result = weight.permute(order).contiguous()  # [*grid, ...]: fast to index
    for dim, matrix in enumerate(matrices):
        if matrix is not None:
            result = torch.stack([_mix(result, dim, row) for row in matrix], dim)
    back = sorted(range(len(order)), key=order.__getitem__)
    return result.permute(back).contiguous()


def _mix(weight: Tensor, dim: int, shares: list[float]) -> Tensor:
    total = torch.zeros_like(weight.select(dim, 0))
    for entry, share in enumerate(shares):
        if share:
            total += weight.select(dim, entry) * share
    return total


def _keys(x: float, a: float) -> float:
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _clamped(source: int, target: int, radius: int, kernel: Callable[[float], float]) -> Matrix:
    matrix = [[0.0] * source for _ in range(target)]
    for i, row in enumerate(matrix):
        x = (i + 0.5) * source / target - 0.5
        for tap in range(floor(x) - radius + 1, floor(x) + radius + 1):
            row[min(max(tap, 0), source - 1)] += kernel(x - tap)
    return matrix


def _antialiased(source: int, target: int, radius: int, kernel: Callable[[float], float]) -> Matrix:
    step = source / target
    stretch = max(step, 1.0)
    matrix = []
    for i in range(target):
        centre = step * (i + 0.5)
        low = max(int(centre - radius * stretch + 0.5), 0)
        high = min(int(centre + radius * stretch + 0.5), source)
        row = [kernel((tap - centre + 0.5) / stretch) if low <= tap < high else 0.0 for tap in range(source)]
        total = sum(row)
        matrix.append([share / total for share in row])
    return matrix


def _gram(rows: Matrix) -> Matrix:
    return [[sum(a * b for a, b in zip(one, other, strict=True)) for other in rows] for one in rows]


def _solve(left: Matrix, right: Matrix) -> Matrix:
    """left^-1 right for a symmetric positive definite ``left``: Gauss-Jordan without pivoting."""
    rows = [[*a, *b] for a, b in zip(left, right, strict=True)]
    for i, pivot in enumerate(rows):
        scale = pivot[i]
        pivot[:] = [value / scale for value in pivot]
        for j, row in enumerate(rows):
            if j != i and (factor := row[i]):
                row[:] = [value - factor * other for value, other in zip(row, pivot, strict=True)]
    return [row[len(left) :] for row in rows]
