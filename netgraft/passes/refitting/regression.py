"""Linear maps from a layer's input to what it should give: ridge regression on sampled positions, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from netgraft.architecture.graph import Layer

RIDGE = 0.1
"""The penalty, as a multiple of the mean diagonal element of the normal matrix (OPERATORS part 3)."""


@dataclass(frozen=True)
class Fit:
    """W and b of the map."""

    weight: Tensor  # [out, features]
    bias: Tensor  # [out]: mean of the wanted values less that of W x; zero where there is no constant
    intercept: bool = True  # whether there is a constant

    def left(
        self,
        x: Tensor,  # [rows, features]
        y: Tensor,  # [rows, out]
    ) -> float:
        """The sum of squares that the map leaves of ``y``."""
        return float((x @ self.weight.T + self.bias - y).double().square().sum())

    def r2(self, x: Tensor, y: Tensor) -> float:
        """The share of ``y`` that the map explains, of all outputs together; negative where a constant is better."""
        whole = ((y - y.mean(0)) if self.intercept else y).double().square().sum()
        return share(self.left(x, y), float(whole))


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


def dual(
    x: Tensor, y: Tensor, mean_x: Tensor, mean_y: Tensor, centre: Tensor | None, ridge: float
) -> Tensor:  # [out, features]
    """W = centre + B' (A A' + rho I)^-1 A, the same as with the normal matrix.

    For ``x`` [rows, features] with more features than rows, and ``y`` [rows, out].
    """
    a, b = x - mean_x, y - mean_y
    if centre is not None:
        b = b - a @ centre.T
    gram = (a @ a.T).double()
    scale = float(gram.diagonal().sum()) / x.shape[1]  # the mean diagonal element of the normal matrix A' A
    gram.diagonal().add_(ridge * max(scale, 1e-12))
    change: Tensor = torch.cholesky_solve(b.double(), torch.linalg.cholesky(gram)).float().T @ a
    return change if centre is None else centre + change


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
