"""What a regression needs to know of its rows, added up batch by batch: memory does not grow with the rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from netgraft.architecture.cost import MOST_FEATURES
from netgraft.passes.refitting.regression import RIDGE, Fit, dual

CHUNK = 4096
"""Rows whose products are added up in single precision."""


class Rows(Protocol):
    """Rows x [features], read by a layer, and y [outputs], wanted of it; with an ``intercept`` a constant is free."""

    intercept: bool

    @property
    def mean_x(self) -> Tensor: ...

    @property
    def mean_y(self) -> Tensor: ...

    @property
    def variance_y(self) -> Tensor:
        """[outputs]"""

    def variance_given(self, weight: Tensor) -> Tensor:
        """[outputs] of what ``weight`` [outputs, features] makes of x."""

    def products(self, weight: Tensor) -> tuple[float, float]:
        """The sums of (W x)^2 and of (W x) y, of all outputs together: about the mean with an intercept."""

    def solved(self, centre: Tensor | None, ridge: float) -> Tensor:
        """W of ``ridge_regression``."""

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows x [n, features] and y [n, outputs]."""


def gathered(pieces: Iterable[tuple[Tensor, Tensor]], *, intercept: bool) -> Rows:
    """(x, y) by batch as a regression needs them: as sums, or where x is too wide for these as few rows."""
    found: SecondMoments | FewRows | None = None
    for x, y in pieces:
        if found is None:
            found = (SecondMoments if x.shape[1] <= MOST_FEATURES else FewRows)(intercept)
        found.add(x, y)
    if found is None:
        raise ValueError("a regression needs rows")
    return found


def errors_of(
    fits: Sequence[Fit], pieces: Iterable[tuple[Tensor, Tensor]], *, intercept: bool
) -> tuple[list[float], float]:
    """The sums of squares that each map leaves of y, and that of y, about its mean with an intercept.

    Of rows that need not be those that the maps were fitted on.
    """
    left, count = [0.0] * len(fits), 0
    square, total = 0.0, torch.zeros(())
    for x, y in pieces:
        for i, fit in enumerate(fits):
            left[i] += fit.left(x, y)
        y = y.double()
        count, square, total = count + len(y), square + float(y.square().sum()), total.to(y) + y.sum(0)
    about = float(total.square().sum()) / count if intercept else 0.0
    return left, max(square - about, 0.0)


def ridge_regression(rows: Rows, *, centre: Tensor | None = None, ridge: float = RIDGE) -> Fit:
    """argmin ||x W' + b - y||^2 + rho ||W - centre||^2.

    rho is ``ridge`` times the mean diagonal element of the normal matrix. b is free with an intercept, else 0; without
    a ``centre`` [out, features] that is zero. What the rows do not tell stays as the centre has it.
    """
    return with_constant(rows, rows.solved(centre, ridge))


def with_constant(rows: Rows, weight: Tensor) -> Fit:
    """``weight`` with the constant that is best for it."""
    bias = rows.mean_y - weight @ rows.mean_x if rows.intercept else rows.mean_y.new_zeros(len(weight))
    return Fit(weight, bias, rows.intercept)


def best_number(pieces: Sequence[tuple[Rows, Tensor]]) -> float:
    """The number, not negative, by which all these weights together explain most of what is wanted."""
    terms = [rows.products(weight) for rows, weight in pieces]
    size, product = (sum(each) for each in zip(*terms, strict=True))
    return max(product / size, 0.0) if size > 0 else 0.0


def with_spread(solution: Fit, rows: Rows, most: float = 4.0) -> Fit:
    """The same map, each output scaled up to the standard deviation that is wanted, at most ``most`` times.

    A regression that explains the share r of a variance gives r of it. A norm would make up for that; without one,
    activations would fade from layer to layer.
    """
    given = rows.variance_given(solution.weight).clamp(min=0).sqrt().clamp(min=1e-12)
    gain = (rows.variance_y.clamp(min=0).sqrt() / given).clamp(1.0, most).to(solution.weight)
    mean = solution.weight @ rows.mean_x + solution.bias
    bias = solution.bias + (mean - solution.bias) * (1 - gain)
    return Fit(solution.weight * gain[:, None], bias, solution.intercept)


@dataclass
class SecondMoments:
    """Sums of x x', x y' and y^2 in double precision.

    They are about the means of the first batch, for what is left of two large numbers is noise: where activations vary
    little about a large mean, the normal matrix would not be positive definite. Without an intercept about zero.
    """

    intercept: bool
    count: int = 0
    _shift: tuple[Tensor, Tensor] = field(init=False)
    _sums: tuple[Tensor, Tensor] = field(init=False)
    _gram: Tensor = field(init=False)
    _cross: Tensor = field(init=False)
    _square: Tensor = field(init=False)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows x [n, features] and y [n, outputs]."""
        if not self.count:
            means = x.mean(0), y.mean(0)
            self._shift = means if self.intercept else (torch.zeros_like(means[0]), torch.zeros_like(means[1]))
            zeros = partial(x.new_zeros, dtype=torch.float64)
            wide, out = x.shape[1], y.shape[1]
            self._sums, self._square = (zeros(wide), zeros(out)), zeros(out)
            self._gram, self._cross = zeros(wide, wide), zeros(wide, out)
        self.count += len(x)
        for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            a, b = a - self._shift[0], b - self._shift[1]
            self._gram += a.T @ a
            self._cross += a.T @ b
            self._square += b.double().square().sum(0)
            for total, each in zip(self._sums, (a, b), strict=True):
                total += each.double().sum(0)

    @property
    def mean_x(self) -> Tensor:
        return self._mean(0)

    @property
    def mean_y(self) -> Tensor:
        return self._mean(1)

    def _mean(self, side: int) -> Tensor:
        return (self._shift[side] + self._sums[side] / self.count).float()

    @property
    def variance_y(self) -> Tensor:
        return (self._square - self._sums[1].square() / self.count) / self.count

    def variance_given(self, weight: Tensor) -> Tensor:
        weight = weight.double()
        about = self._gram - torch.outer(self._sums[0], self._sums[0]) / self.count
        return ((weight @ about) * weight).sum(1) / self.count

    def products(self, weight: Tensor) -> tuple[float, float]:
        weight, (gram, cross) = weight.double(), self._about_means()
        return float(((weight @ gram) * weight).sum()), float((weight.T * cross).sum())

    def solved(self, centre: Tensor | None, ridge: float) -> Tensor:
        """By the normal equations. What is wanted less what the centre gives is small where the centre is good."""
        gram, cross = self._about_means()
        if centre is not None:
            cross = cross - gram @ centre.double().T
        mean = float(gram.diagonal().mean())
        if not mean > 0:  # all inputs are constant
            return torch.zeros_like(cross.T, dtype=torch.float32) if centre is None else centre
        gram.diagonal().add_(ridge * mean)
        change = torch.cholesky_solve(cross, torch.linalg.cholesky(gram)).T.float()
        return change if centre is None else centre + change

    def _about_means(self) -> tuple[Tensor, Tensor]:
        """The sums of x x' and x y' about the means, or about zero without an intercept; the former a new tensor."""
        if not self.intercept:
            return self._gram.clone(), self._cross
        x, y = self._sums
        return self._gram - torch.outer(x, x) / self.count, self._cross - torch.outer(x, y) / self.count


class FewRows:
    """Rows as they are, as many at most as a normal matrix would be wide."""

    def __init__(self, intercept: bool) -> None:
        self.intercept = intercept
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._whole: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows x [n, features] and y [n, outputs]."""
        self._parts.append((x, y))
        self._whole = None

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        if self._whole is None:
            x, y = (torch.cat(each) for each in zip(*self._parts, strict=True))
            step = -(-len(x) // MOST_FEATURES)
            self._whole = x[::step], y[::step]
            self._parts = [self._whole]
        return self._whole

    @property
    def mean_x(self) -> Tensor:
        return self.rows[0].mean(0)

    @property
    def mean_y(self) -> Tensor:
        return self.rows[1].mean(0)

    @property
    def variance_y(self) -> Tensor:
        return self.rows[1].var(0, correction=0)

    def variance_given(self, weight: Tensor) -> Tensor:
        return (self.rows[0] @ weight.T).var(0, correction=0)

    def products(self, weight: Tensor) -> tuple[float, float]:
        x, y = self.rows
        given = (x @ weight.T).double()
        if self.intercept:
            given, y = given - given.mean(0), y - y.mean(0)
        return float(given.square().sum()), float((given * y).sum())

    def solved(self, centre: Tensor | None, ridge: float) -> Tensor:
        x, y = self.rows
        means = (self.mean_x, self.mean_y) if self.intercept else (x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1]))
        return dual(x, y, *means, centre, ridge)
