"""Random fields: Gaussian noise of a given spectrum, with unit variance, and not periodic."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from netgraft.data.generators._draw import normal


def smooth_field(
    count: int,
    shape: tuple[int, int],
    length: Tensor,  # [count], pixels
    generator: Generator,
) -> Tensor:
    """Fields ``[count, 1, *shape]`` of covariance exp(-d^2 / 4 length^2); each has mean 0 and variance 1."""
    sigma = length.reshape(-1, 1, 1, 1)
    field = _filtered(count, 1, shape, lambda squared: torch.exp(-2 * math.pi**2 * sigma**2 * squared), generator)
    return standardise(field)


def power_law_field(count: int, channels: int, shape: tuple[int, int], exponent: float, generator: Generator) -> Tensor:
    """Independent fields ``[count, channels, *shape]`` whose amplitude falls as frequency ** -exponent."""

    def amplitude(squared: Tensor) -> Tensor:
        lowest = squared[squared > 0].min()
        return torch.where(squared > 0, squared.clamp_min(lowest) ** (-exponent / 2), 0)

    return _filtered(count, channels, shape, amplitude, generator)


def coarse_field(count: int, channels: int, shape: tuple[int, int], generator: Generator) -> Tensor:
    """Very smooth independent fields ``[count, channels, *shape]``: bicubic through 4 x 4 normal numbers."""
    return F.interpolate(normal((count, channels, 4, 4), generator), size=shape, mode="bicubic", align_corners=True)


def standardise(field: Tensor) -> Tensor:
    """The field with mean 0 and variance 1 in each image, channels together."""
    field = field - field.mean((1, 2, 3), keepdim=True)
    return field / field.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6)


def _filtered(
    count: int,
    channels: int,
    shape: tuple[int, int],
    amplitude: Callable[[Tensor], Tensor],  # squared frequency, cycles per pixel, [rows, columns] -> factor
    generator: Generator,
) -> Tensor:
    """White noise filtered on a grid a quarter larger than the image, whose opposite edges therefore differ."""
    rows, columns = (2 * math.ceil(side * 5 / 8) for side in shape)
    device = generator.device
    squared = torch.fft.fftfreq(rows, device=device)[:, None] ** 2 + torch.fft.rfftfreq(columns, device=device) ** 2
    spectrum = torch.fft.rfft2(normal((count, channels, rows, columns), generator))
    field: Tensor = torch.fft.irfft2(spectrum * amplitude(squared), s=(rows, columns))
    return field[..., : shape[0], : shape[1]]
