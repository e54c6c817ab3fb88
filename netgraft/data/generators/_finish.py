"""What all generators share: colours, and the last touches to an image (polarity, contrast, shading, noise)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from netgraft.data.generators._draw import normal, uniform
from netgraft.data.generators._fields import coarse_field

# Principal axes (columns) of the RGB values of ImageNet's pixels, and the variances along them, as published with
# fb.resnet.torch for the colour jitter of Krizhevsky et al. 2012: light-dark, red-blue, green-magenta.
_AXES = ((0.5675, 0.7192, 0.4009), (0.5808, -0.0045, -0.8140), (0.5836, -0.6948, 0.4203))
_VARIANCES = (0.2175, 0.0188, 0.0045)


def correlate(fields: Tensor) -> Tensor:
    """Independent fields ``[count, C, H, W]`` to channels: RGB with the covariance of photographs, others as they are.

    The variance of RGB channels stays about that of the fields.
    """
    if fields.shape[1] != 3:
        return fields
    axes = torch.tensor(_AXES, device=fields.device)
    scale = torch.tensor(_VARIANCES, device=fields.device).mul(3 / sum(_VARIANCES)).sqrt()
    return torch.einsum("rk,nkhw->nrhw", axes * scale, fields)


def colours(count: int, each: int, channels: int, levels: tuple[float, float], generator: Generator) -> Tensor:
    """Random colours ``[count, each, channels]`` in [0, 1], ``each`` of them for every image.

    Grey: a level between ``levels``. RGB: such a level plus a chroma, images differing in saturation. Other counts of
    channels: independent levels.
    """
    if channels != 3:
        return uniform(*levels, (count, each, channels), generator)
    level = uniform(*levels, (count, each, 1), generator)
    chroma = normal((count, each, 2), generator) * uniform(0.05, 0.3, (count, 1, 1), generator)
    axes = torch.tensor(_AXES, device=generator.device)[:, 1:]
    return (level + chroma @ axes.T).clamp(0, 1)


def check_finish(contrast: float, shading: float, noise: float) -> None:
    """ValueError for options that ``finish`` cannot take."""
    if not 0 <= contrast <= 1:
        raise ValueError(f"contrast must be between 0 and 1: {contrast}")
    if not (0 <= shading <= 1 and 0 <= noise <= 1):
        raise ValueError(f"shading and noise must be between 0 and 1: {shading}, {noise}")


def finish(
    images: Tensor,  # [count, C, H, W], values in [0, 1]
    contrast: float,
    shading: float,
    noise: float,
    generator: Generator,
) -> Tensor:
    """The images with random polarity and contrast, a smooth background added, and a little noise; in [0, 1].

    Half of them become their negatives. Their values are squeezed to an interval in [0, 1] of random length, at least
    ``contrast``, at a random place. Then come a smooth field of random amplitude up to ``shading`` times that length,
    and white noise of random standard deviation, mostly small, up to ``noise``.
    """
    count, channels, height, width = images.shape
    one = (count, 1, 1, 1)
    negative = uniform(0, 1, one, generator) < 0.5
    span = uniform(contrast, 1, one, generator)
    low = uniform(0, 1, one, generator) * (1 - span)
    images = low + span * torch.where(negative, 1 - images, images)
    amplitude = uniform(0, shading, one, generator) * span
    images += amplitude * correlate(coarse_field(count, channels, (height, width), generator))
    images += noise * uniform(0, 1, one, generator).square() * normal(tuple(images.shape), generator)
    return images.clamp_(0, 1)
