"""Linear maps from a layer's input to what it should give: ridge regression on sampled positions, in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from netgraft.architecture.graph import Layer

RIDGE = 0.1
"""The penalty, as a multiple of the mean diagonal element of the normal matrix (OPERATORS part 3)."""
CHUNK = 4096
MOST_FEATURES = 4608
"""Longest side of a normal matrix that is solved as a whole; a longer one is solved channel block by channel block."""


@dataclass(frozen=True)
class Fit:
    """W and b of the map."""

    weight: Tensor  # [out, features]
    bias: Tensor  # [out]: mean of the wanted values less that of W x; zero where there is no constant
    intercept: bool = True  # whether there is a constant

    def errors(
        self,
        x: Tensor,  # [rows, features]
        y: Tensor,  # [rows, out]
    ) -> tuple[float, float]:
        """The sum of squares that the map leaves of ``y``, and that of ``y``: about its mean if there is a constant."""
        left = (x @ self.weight.T + self.bias - y).double().square().sum()
        whole = ((y - y.mean(0)) if self.intercept else y).double().square().sum()
        return float(left), float(whole)

    def r2(self, x: Tensor, y: Tensor) -> float:
        """The share of ``y`` that the map explains, of all outputs together; negative where a constant is better."""
        return share(*self.errors(x, y))


def share(left: float, whole: float) -> float:
    """R^2 from two sums of squares; 0 where there is nothing to explain, or where it cannot be told."""
    return 1 - left / whole if whole > 0 and left < math.inf else 0.0


def patches(
    value: Tensor,  # [B, C, H, W], or channels last for a linear layer
    layer: Layer,
    rows: Tensor,  # positions of the layer's output
    channels: slice = slice(None),
) -> Tensor:  # [len(rows), channels * taps] float32, in the order of the weight's axes
    """What the layer reads to compute its output at ``rows``."""
    if not layer.is_conv:
        return value.reshape(-1, value.shape[-1])[rows][:, channels].float()
    height, width = layer.out_shape[2:]
    image, y, x = rows // (height * width), rows // width % height, rows % width
    top, left = _padding(layer)
    value = value[:, channels]
    (kernel_y, kernel_x), (stride_y, stride_x), (step_y, step_x) = layer.shape[2:], layer.stride, layer.dilation
    last_y, last_x = (height - 1) * stride_y + (kernel_y - 1) * step_y, (width - 1) * stride_x + (kernel_x - 1) * step_x
    bottom, right = max(last_y + 1 - top - value.shape[2], 0), max(last_x + 1 - left - value.shape[3], 0)
    padded = F.pad(value, (left, right, top, bottom)).permute(0, 2, 3, 1)
    ys = y[:, None] * stride_y + torch.arange(kernel_y, device=rows.device) * step_y  # [R, k]
    xs = x[:, None] * stride_x + torch.arange(kernel_x, device=rows.device) * step_x
    found = padded[image[:, None, None], ys[:, :, None], xs[:, None, :]]  # [R, k, k, C]
    return found.permute(0, 3, 1, 2).reshape(len(rows), -1).float()


def _padding(layer: Layer) -> tuple[int, int]:
    padding = layer.padding or (0, 0)
    return padding[0], padding[-1]


def fit(x: Tensor, y: Tensor, *, intercept: bool, centre: Tensor | None = None, ridge: float = RIDGE) -> Fit:
    """argmin ||x W' + b - y||^2 + rho ||W - centre||^2 for ``x`` [rows, features] and ``y`` [rows, out].

    rho is ``ridge`` times the mean diagonal element of the normal matrix; b is free with ``intercept``, else 0; without
    a ``centre`` [out, features] that is zero. What the rows do not tell stays as the centre has it. With more than
    MOST_FEATURES features as many rows are used, and the equations are solved in the rows (dual form).
    """
    dual = x.shape[1] > MOST_FEATURES
    if dual:
        x, y = (part[:: -(-len(x) // MOST_FEATURES)] for part in (x, y))
    mean_x, mean_y = (part.mean(0) if intercept else part.new_zeros(part.shape[1]) for part in (x, y))
    weight = (_dual if dual else _primal)(x, y, mean_x, mean_y, centre, ridge)
    return Fit(weight, mean_y - weight @ mean_x, intercept)


def best_number(
    pieces: Iterable[tuple[Tensor, Tensor, Tensor]],  # x [rows, features], y [rows, out], weight [out, features]
    *,
    intercept: bool,
) -> float:
    """The number, not negative, by which all these weights together explain most of what is wanted."""
    size = product = 0.0
    for x, y, weight in pieces:
        given = (x @ weight.T).double()
        if intercept:
            given, y = given - given.mean(0), y - y.mean(0)
        size, product = size + float(given.square().sum()), product + float((given * y).sum())
    return max(product / size, 0.0) if size > 0 else 0.0


def as_fit(x: Tensor, y: Tensor, weight: Tensor, *, intercept: bool) -> Fit:
    """``weight`` with the constant that is best for it."""
    bias = y.mean(0) - weight @ x.mean(0) if intercept else y.new_zeros(y.shape[1])
    return Fit(weight, bias, intercept)


def _primal(
    x: Tensor, y: Tensor, mean_x: Tensor, mean_y: Tensor, centre: Tensor | None, ridge: float
) -> Tensor:  # [out, features]
    """By the normal equations. What is wanted less what the centre gives is small where the centre is good.

    The means are taken away first, for what is left of two large numbers is noise: where activations vary little about
    a large mean, the matrix would not be positive definite.
    """
    gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    cross = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=x.device)
    for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        a, b = a - mean_x, b - mean_y
        gram += (a.T @ a).double()
        cross += (a.T @ (b if centre is None else b - a @ centre.T)).double()
    penalty = ridge * float(gram.diagonal().mean())
    if not penalty > 0:  # all inputs are constant
        return torch.zeros_like(cross.T, dtype=x.dtype) if centre is None else centre
    gram.diagonal().add_(penalty)
    change = torch.cholesky_solve(cross, torch.linalg.cholesky(gram)).T.to(x.dtype)
    return change if centre is None else centre + change


def _dual(
    x: Tensor, y: Tensor, mean_x: Tensor, mean_y: Tensor, centre: Tensor | None, ridge: float
) -> Tensor:  # [out, features]
    """W = centre + B' (A A' + rho I)^-1 A, the same as with the normal matrix."""
    a, b = x - mean_x, y - mean_y
    if centre is not None:
        b = b - a @ centre.T
    gram = (a @ a.T).double()
    scale = float(gram.diagonal().sum()) / x.shape[1]  # the mean diagonal element of the normal matrix A' A
    gram.diagonal().add_(ridge * max(scale, 1e-12))
    change: Tensor = torch.cholesky_solve(b.double(), torch.linalg.cholesky(gram)).float().T @ a
    return change if centre is None else centre + change


def with_spread(
    solution: Fit,
    x: Tensor,  # [rows, features]
    wanted: Tensor,  # [rows, out]
    most: float = 4.0,
) -> Fit:
    """The same map, each output scaled up to the standard deviation that is wanted, at most ``most`` times.

    A regression that explains the share r of a variance gives r of it. A norm would make up for that; without one,
    activations would fade from layer to layer.
    """
    given = x @ solution.weight.T
    gain = (wanted.std(0, correction=0) / given.std(0, correction=0).clamp(min=1e-12)).clamp(1.0, most)
    bias = solution.bias + given.mean(0) * (1 - gain)
    return replace(solution, weight=solution.weight * gain[:, None], bias=bias)


def rank_one(
    weight: Tensor,  # [out, channels, taps]: a dense kernel
) -> Tensor:  # [channels, taps]
    """For each input channel the filter that, times one number per output, is nearest to its part of a dense kernel.

    The first right singular vector, its sign such that its sum is not negative.
    """
    _, _, right = torch.linalg.svd(weight.transpose(0, 1), full_matrices=False)
    filters: Tensor = right[:, 0]
    return filters * torch.where(filters.sum(1, keepdim=True) < 0, -1.0, 1.0)


def best_filters(
    x: Tensor,  # [rows, channels * taps]
    y: Tensor,  # [rows, out]
    channels: int,
    ridge: float = RIDGE,
) -> Tensor:  # [channels, taps]
    """For each channel by itself the filter whose response explains most of ``y``: for inputs too wide for one solve.

    With G the covariance of the channel's taps and C their covariance with y, the v that maximises
    |C' v|^2 / (v' (G + rho) v).
    """
    x, y = x - x.mean(0), y - y.mean(0)
    taps = x.shape[1] // channels
    by_channel = x.reshape(len(x), channels, taps).permute(1, 2, 0)  # [C, taps, rows]
    gram = (by_channel @ by_channel.transpose(1, 2) / len(x)).double()
    penalty = ridge * gram.diagonal(dim1=1, dim2=2).mean(1)
    gram = gram + (penalty + 1e-12)[:, None, None] * torch.eye(taps, dtype=gram.dtype, device=x.device)
    cross = (x.T @ y / len(x)).double().reshape(channels, taps, -1)
    root = torch.linalg.cholesky(gram)  # G = L L'
    whitened = torch.linalg.solve_triangular(root, cross, upper=False)  # L^-1 C
    _, vectors = torch.linalg.eigh(whitened @ whitened.transpose(1, 2))
    filters: Tensor = torch.linalg.solve_triangular(root.transpose(1, 2), vectors[:, :, -1:], upper=True).squeeze(2)
    filters = filters / filters.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return (filters * torch.where(filters.sum(1, keepdim=True) < 0, -1.0, 1.0)).float()
