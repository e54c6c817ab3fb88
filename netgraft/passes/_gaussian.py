"""Means and covariances of channels, and what operations make of them (moment propagation, DFQ, arXiv:1906.04721).

Channels are taken as jointly normal, positions as independent and all alike. Covariances are kept, so that copies of a
channel are known to be copies: the variance of their sum is not the sum of their variances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import factorial, sqrt
from typing import Any

import torch
from torch import Tensor

LARGEST = 4096
"""Channels of which a covariance matrix is kept."""
ORDERS = 6
"""Terms of the expansion of a covariance behind an elementwise function; what is left is put into one more."""


class Stop(Exception):
    """What the moments are is not known from here on; the text says why."""


@dataclass(frozen=True)
class Moments:
    """The distribution of a tensor whose entries differ by channel only."""

    mean: Tensor  # [C] float64
    cov: Tensor  # [C, C] float64
    place: Tensor  # of the tensor's shape, int64: the channel that each entry belongs to

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.place.shape)

    @property
    def variance(self) -> Tensor:  # [C]
        return self.cov.diagonal().clamp_min(0)

    @property
    def axis(self) -> int:
        """The one axis along which channels differ. Raises Stop if there are several."""
        for axis in sorted(range(1, self.place.dim()), key=lambda d: self.place.shape[d] == 1):
            if bool((self._line(axis) == self.place).all()):
                return axis
        raise Stop("its channels lie along several axes")

    def _line(self, axis: int) -> Tensor:
        """The entries along one axis, at the start of all others, with the others kept at length 1."""
        line = self.place
        for other in range(self.place.dim()):
            line = line if other == axis else line.narrow(other, 0, 1)
        return line

    def along(self, axis: int) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the entries along an axis. Raises Stop if they differ along others too."""
        line = self._line(axis)
        if not bool((line == self.place).all()):
            raise Stop("its channels lie along several axes")
        index = line.flatten()
        if len(index) > LARGEST:
            raise Stop(f"{len(index)} channels are too many")
        return self.mean[index], self.cov[index][:, index]


def spread(mean: Tensor, cov: Tensor, shape: Sequence[int], axis: int) -> Moments:
    """The moments of a tensor of ``shape`` with these channels along ``axis``."""
    if shape[axis] != len(mean):
        raise Stop(f"{len(mean)} channels do not lie along axis {axis} of {list(shape)}")
    view = [1] * len(shape)
    view[axis] = -1
    return Moments(mean, cov, torch.arange(len(mean), device=mean.device).reshape(view).expand(tuple(shape)))


def standard(shape: Sequence[int], device: torch.device) -> Moments:
    """Independent channels of mean 0 and variance 1: normalised images."""
    channels = shape[1]
    eye = torch.eye(channels, dtype=torch.float64, device=device)
    return spread(eye.new_zeros(channels), eye, shape, 1)


# ------------------------------------------------------------------------------------------------------ linear layers


def through_conv(given: Moments, weight: Tensor, bias: Tensor | None, groups: int, shape: Sequence[int]) -> Moments:
    """E_o = sum of W E, Cov_o = sum over the taps of W Cov W^T; ``weight`` is [out, in / groups, *kernel].

    Zeros around the map are left out of account, and neighbouring positions taken as independent.
    """
    mean, cov = given.along(1)
    taps = weight.double().flatten(2)  # [out, in / groups, taps]
    out, inner, _ = taps.shape
    if groups == len(mean) == out:  # depthwise
        flat = taps[:, 0]
        mean, cov = mean * flat.sum(1), cov * (flat @ flat.T)
    else:
        dense = taps.new_zeros(out, len(mean), taps.shape[2])
        for group in range(groups):
            rows, columns = (slice(group * n, (group + 1) * n) for n in (out // groups, inner))
            dense[rows, columns] = taps[rows]
        mean = dense.sum(2) @ mean
        cov = torch.stack([part @ cov @ part.T for part in dense.unbind(2)]).sum(0)
    return spread(mean if bias is None else mean + bias.double(), cov, shape, 1)


def through_linear(given: Moments, weight: Tensor, bias: Tensor | None, shape: Sequence[int]) -> Moments:
    """The same for a matrix [out, in] on the last axis."""
    mean, cov = given.along(given.place.dim() - 1)
    matrix = weight.double()
    mean, cov = matrix @ mean, matrix @ cov @ matrix.T
    return spread(mean if bias is None else mean + bias.double(), cov, shape, len(shape) - 1)


def affine(given: Moments, scale: Tensor | float, shift: Tensor | float = 0.0) -> Moments:
    """scale x + shift, numbers or one per channel ``[C]`` of ``given.mean``."""
    factor = torch.as_tensor(scale, dtype=torch.float64, device=given.mean.device).expand(len(given.mean))
    return replace(given, mean=given.mean * factor + shift, cov=given.cov * factor[:, None] * factor)


# ---------------------------------------------------------------------------------------------------- everything else


def elementwise(given: Moments, function: Callable[[Tensor], Tensor]) -> Moments:
    """Moments of f(x) for normal x, by the Hermite expansion of f: Cov(f_i, f_j) = sum over k of c_ki c_kj rho_ij^k.

    c_ki = E f(m_i + s_i z) He_k(z) / sqrt(k!), by quadrature on a grid; ``function`` gets [points, C] in float64.
    """
    z, weight, hermite = _grid(given.mean.device)
    std = given.variance.sqrt()
    values = function(given.mean + z[:, None] * std)  # [points, C]
    mean = weight @ values
    centred = values - mean
    variance = weight @ centred.square()
    coefficients = hermite @ (weight[:, None] * centred)  # [ORDERS, C]
    safe = std.clamp_min(1e-30)
    rho = (given.cov / safe[:, None] / safe).clamp(-1, 1)
    rest = (variance - coefficients.square().sum(0)).clamp_min(0).sqrt()
    cov, power = torch.zeros_like(rho), torch.ones_like(rho)
    for row in (*coefficients, rest):
        power = power * rho
        cov += power * row[:, None] * row
    cov.diagonal().copy_(variance)
    return replace(given, mean=mean, cov=cov)


def add(one: Moments, other: Moments, factor: float = 1.0) -> Moments:
    """one + factor other, taken as independent; a tensor and itself are not."""
    if one is other:
        return affine(one, 1.0 + factor)
    (mean, cov), (mean_other, cov_other), shape, axis = _aligned(one, other)
    return spread(mean + factor * mean_other, cov + factor**2 * cov_other, shape, axis)


def multiply(one: Moments, other: Moments) -> Moments:
    """The product of a feature map and a gate, taken as independent of one another.

    Two maps of one shape may well depend on one another, as in x sigmoid(x): Stop.
    """
    if one.shape == other.shape:
        raise Stop("a product of two feature maps")
    (m, cov), (n, cov_other), shape, axis = _aligned(one, other)
    cov = cov * cov_other + cov * n[:, None] * n + cov_other * m[:, None] * m
    return spread(m * n, cov, shape, axis)


def concatenate(parts: Sequence[Moments], dim: int) -> Moments:
    """Side by side along ``dim``, taken as independent."""
    dim %= parts[0].place.dim()
    means, covs = zip(*(part.along(dim) for part in parts), strict=True)
    shape = list(parts[0].shape)
    shape[dim] = sum(len(mean) for mean in means)
    if shape[dim] > LARGEST:
        raise Stop(f"{shape[dim]} channels are too many")
    return spread(torch.cat(means), torch.block_diag(*covs), shape, dim)


def average(given: Moments, count: int, shape: Sequence[int], axis: int) -> Moments:
    """The mean of ``count`` neighbours, of which sqrt(count) are taken as independent."""
    mean, cov = given.along(given.axis)
    return spread(mean, cov / sqrt(count), shape, axis)


def maximum(given: Moments, count: int, shape: Sequence[int]) -> Moments:
    """The largest of ``count`` neighbours, of which sqrt(count) are taken as independent."""
    mean, cov = given.along(1)
    z, weight, _ = _grid(mean.device)
    density = weight * torch.special.ndtr(z) ** (sqrt(count) - 1)
    density = density / density.sum()
    centre = density @ z
    return spread(mean + centre * given.along(1)[1].diagonal().sqrt(), cov * (density @ (z - centre) ** 2), shape, 1)


def moved(given: Moments, function: Callable[[Tensor], Any]) -> Any:
    """What an operation that only moves entries about makes of them; a list of Moments if it has several results."""
    result = function(given.place)
    if isinstance(result, Tensor):
        return replace(given, place=result)
    return [replace(given, place=each) for each in result]


def _aligned(one: Moments, other: Moments) -> tuple[Any, Any, tuple[int, ...], int]:
    shape = tuple(torch.broadcast_shapes(one.shape, other.shape))
    ends = {m.axis - m.place.dim() for m in (one, other)}
    if len(ends) > 1:
        raise Stop("channels meet other channels")
    end = ends.pop()
    if one.shape[end] != other.shape[end]:
        raise Stop("channels meet a map without channels")
    return one.along(one.axis), other.along(other.axis), shape, len(shape) + end


@cache
def _grid(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Points z, their probabilities under N(0, 1), and He_k(z) / sqrt(k!) for k = 1 .. ORDERS."""
    z = torch.linspace(-7, 7, 701, dtype=torch.float64, device=device)
    weight = torch.exp(-z.square() / 2)
    rows = [torch.ones_like(z), z]
    for k in range(1, ORDERS):
        rows.append(z * rows[k] - k * rows[k - 1])
    hermite = torch.stack([row / sqrt(factorial(k)) for k, row in enumerate(rows)][1:])
    return z, weight / weight.sum(), hermite
