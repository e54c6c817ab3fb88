"""Linear maps from a layer's input to what it should give: ridge regression on sampled positions, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

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
    bias: Tensor  # [out]: mean of the wanted values less that of W x
    r2: float  # explained share of the wanted values' variance


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


class Normal:
    """The normal equations of a regression: sums over positions, added up in double precision."""

    def __init__(self, features: int, outputs: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.count = 0
        self.xx, self.xy = zeros(features, features), zeros(features, outputs)
        self.x, self.y, self.yy = zeros(features), zeros(outputs), zeros(outputs)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Positions: [rows, features] and [rows, outputs]."""
        for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            self.xx += (a.T @ a).double()
            self.xy += (a.T @ b).double()
            self.x += a.sum(0).double()
            self.y += b.sum(0).double()
            self.yy += b.double().square().sum(0)
            self.count += len(a)

    def solve(self, *, intercept: bool, ridge: float = RIDGE) -> Fit:
        """argmin ||x W' + b - y||^2 + rho ||W||^2 with rho = ``ridge`` times the mean diagonal element; b free or 0."""
        n = max(self.count, 1)
        mean_x, mean_y = self.x / n, self.y / n
        if intercept:
            gram, cross = self.xx / n - torch.outer(mean_x, mean_x), self.xy / n - torch.outer(mean_x, mean_y)
        else:
            gram, cross = self.xx / n, self.xy / n
        weight = solve(gram, cross, ridge).T  # [out, features]
        bias = mean_y - weight @ mean_x if intercept else torch.zeros_like(mean_y)
        total = (self.yy / n - mean_y.square()).clamp(min=0)
        explained = 2 * (weight * cross.T).sum(1) - ((weight @ gram) * weight).sum(1)
        if not intercept:
            total = self.yy / n
        whole = float(total.sum())
        r2 = float(explained.sum()) / whole if whole > 0 else 0.0
        return Fit(weight.float(), bias.float(), r2)


def solve(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """(G + rho I)^-1 C by Cholesky; G + rho I is well conditioned, for rho is a share of G's mean eigenvalue."""
    penalty = ridge * float(gram.diagonal().mean())
    if not penalty > 0:  # all inputs are constant
        return torch.zeros_like(cross)
    regular = gram.clone()
    regular.diagonal().add_(penalty)
    return torch.cholesky_solve(cross, torch.linalg.cholesky(regular))


def fit(x: Tensor, y: Tensor, *, intercept: bool) -> Fit:
    """The ridge regression of ``y`` [rows, out] on ``x`` [rows, features].

    With more than MOST_FEATURES features as many rows are used, and the equations are solved in the rows (dual form).
    """
    if x.shape[1] > MOST_FEATURES:
        return _fit_dual(*(part[:: -(-len(x) // MOST_FEATURES)] for part in (x, y)), intercept=intercept)
    normal = Normal(x.shape[1], y.shape[1], x.device)
    normal.add(x, y)
    return normal.solve(intercept=intercept)


def _fit_dual(x: Tensor, y: Tensor, *, intercept: bool, ridge: float = RIDGE) -> Fit:
    """W = Y' (X X' + rho I)^-1 X, the same as with the normal matrix."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    a, b = (x - mean_x, y - mean_y) if intercept else (x, y)
    gram = (a @ a.T).double()
    scale = float(gram.diagonal().sum()) / x.shape[1]  # the mean diagonal element of the normal matrix X' X
    regular = gram + ridge * max(scale, 1e-12) * torch.eye(len(x), dtype=gram.dtype, device=x.device)
    dual = torch.cholesky_solve(b.double(), torch.linalg.cholesky(regular)).float()
    weight = dual.T @ a
    bias = mean_y - weight @ mean_x if intercept else torch.zeros_like(mean_y)
    total = float(b.double().square().sum())
    r2 = 1 - float((x @ weight.T + bias - y).double().square().sum()) / total if total > 0 else 0.0
    return Fit(weight, bias, r2)


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
    gain = (wanted.std(0) / given.std(0).clamp(min=1e-12)).clamp(1.0, most)
    bias = solution.bias + given.mean(0) * (1 - gain)
    return Fit(solution.weight * gain[:, None], bias, solution.r2)


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
