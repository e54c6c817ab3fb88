"""CutMix and mixup: images between two others. Whoever answers for them must be asked about them anew."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from netgraft.models.running import one_thread

Mixing = Literal["none", "cutmix", "mixup", "both"]

_BATCH = 64  # images that are mixed at a time


def mix_latter_half(images: Tensor, mixing: Mixing, seed: int) -> None:
    """Mix every image of the latter half with a random one of the former, in place; the former half stays as it is.

    "both": alternately by cutmix and by mixup.
    """
    half = len(images) // 2
    if mixing == "none" or not half:
        return
    generator = torch.Generator().manual_seed(seed)
    kinds = {"cutmix": (cutmix,), "mixup": (mixup,), "both": (cutmix, mixup)}[mixing]
    with one_thread():
        for places in torch.arange(half, len(images)).split(_BATCH):
            partners = torch.randint(half, (len(places),), generator=generator)
            for k, kind in enumerate(kinds):
                some, others = places[k :: len(kinds)], partners[k :: len(kinds)]
                images[some] = kind(images[some], images[others], generator)


def cutmix(
    images: Tensor,  # [N, C, H, W]
    others: Tensor,  # the same
    generator: Generator,
) -> Tensor:
    """Each image with a rectangle of its partner over it, at the same place.

    The rectangle has the image's proportions and covers a share of it that is uniform in [0, 1], around a place that is
    uniform in the image; what sticks out is cut off (Yun et al., arXiv:1905.04899, with Beta(1, 1)).
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
