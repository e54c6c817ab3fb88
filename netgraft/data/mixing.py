"""CutMix and mixup: images between two others. Whoever answers for them must be asked about them anew."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def cutmix(
    images: Tensor,  # [N, C, H, W]
    others: Tensor,  # the same
    generator: Generator,
) -> Tensor:
    """Each image with a rectangle of its partner over it, at the same place.

    The rectangle has the image's proportions and covers a share of it that is uniform in [0, 1], around a place that is
    uniform in the image; what sticks out is cut off (Yun et al., arXiv:1905.04899, Eqs. 1 and 2, with Beta(1, 1)).
    """
    side = torch.rand((len(images), 1), generator=generator).sqrt()
    inside = []
    for length in images.shape[2:]:
        centre = torch.rand((len(images), 1), generator=generator) * length
        inside.append((torch.arange(length) + 0.5 - centre).abs() < side * length / 2)  # [N, length]
    return torch.where(inside[0][:, None, :, None] & inside[1][:, None, None, :], others, images)


def mixup(
    images: Tensor,  # [N, C, H, W]
    others: Tensor,  # the same
    generator: Generator,
) -> Tensor:
    """Each image blended with its partner, whose share is uniform in [0, 1] (Zhang et al., arXiv:1710.09412)."""
    return torch.lerp(images, others, torch.rand((len(images), 1, 1, 1), generator=generator, dtype=images.dtype))
