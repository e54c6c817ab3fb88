"""Many images out of few pictures: random crops, turned, sheared, mirrored and recoloured, half of them with CutMix.

The recipe is that of Asano and Saeed, "Extrapolating from a single image to a thousand classes using distillation"
(arXiv:2112.00725), whose student learns ImageNet's classes from a teacher's answers to crops of one photograph. Two
things differ. Only half of the crops are taken from a random square half as wide as the picture, as all are there:
pictures of a folder are of something, and that is to be seen whole too. And crops are enlarged further before they are
turned (``_ROOM``), so that no corner is black.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from netgraft.data.decode import as_array
from netgraft.data.mixing import cutmix
from netgraft.models.running import one_thread

if TYPE_CHECKING:
    from PIL.Image import Image

_SMALLEST = 1 / 500  # area of a crop, as a share of what it is taken from
_DEGREES = 30.0  # most that a crop is turned, and sheared
_ROOM = math.sqrt(2 * (1 + math.tan(math.radians(_DEGREES)) ** 2))  # sides that a turned, sheared square stays within
_BATCH = 64  # images that are mixed at a time


def crops(picture: Image, count: int, size: tuple[int, int, int]) -> Iterator[Tensor]:
    """``count`` random crops of a plain picture, ``[*size]`` float32 in [0, 1]; torch's global state is the chance."""
    recipe = _recipe(picture, size[1], size[2])
    picture = picture.convert("RGB")  # grey ones as well: colours are changed by the same numbers then
    for _ in range(count):
        yield torch.from_numpy(as_array(recipe(picture), size)).float().div_(255)


def cut_into_one_another(images: Tensor, first: int, seed: int) -> None:
    """Put a rectangle of any image into about half of those from ``first`` on, in place."""
    generator = torch.Generator().manual_seed(seed)
    chosen = first + torch.nonzero(torch.rand(len(images) - first, generator=generator) < 0.5).flatten()
    with one_thread():
        for places in chosen.split(_BATCH):
            partners = torch.randint(len(images), (len(places),), generator=generator)
            images[places] = cutmix(images[places], images[partners], generator)


def _recipe(picture: Image, height: int, width: int) -> Any:
    from torchvision.transforms import InterpolationMode, v2

    half = max(min(picture.size) // 2, 1)
    room = math.ceil(_ROOM * max(height, width)) + 2  # a pixel on either side for the interpolation
    return v2.Compose(
        [
            v2.RandomApply([v2.RandomCrop(half)], 0.5),
            v2.RandomResizedCrop(room, scale=(_SMALLEST, 1), interpolation=InterpolationMode.BICUBIC),
            v2.RandomAffine(_DEGREES, shear=_DEGREES, interpolation=InterpolationMode.BILINEAR),
            v2.CenterCrop((height, width)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.5),
        ]
    )
