"""The 1,797 handwritten digits that scikit-learn ships: as they are, and under a fixed hard distortion.

Real data (8x8 grey, ten classes, the test part of the UCI optical recognition set) that need no download.
``netgraft:digits`` is easy: from scratch a small network reaches 95 % with ten images per class.
``netgraft:digits-hard`` is the benchmark's: every digit is turned, sheared, scaled, moved, lightened or darkened, made
negative or not, and made noisy, once and for all, at 16x16.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from netgraft.data.optional import needed
from netgraft.data.pictures import LabelledPictures, Split, part

if TYPE_CHECKING:
    from PIL.Image import Image

NAMES = ("digits", "digits-hard")
TEST_SHARE = 0.5
SIDE = 16  # of a hard digit
SEED = 0


def open_digits(name: str, *, hard: bool, split: Split) -> LabelledPictures:
    """Half of the digits of each class: 898 to train with, 899 for tests, or nearly so; always the same ones."""
    images, labels = _hard() if hard else _plain()
    items = tuple(map(str, range(len(labels))))

    def read(item: str, _: int) -> Image:
        picture: Image = needed("PIL.Image", "Pillow", "Reading images").fromarray(images[int(item)])
        return picture

    everything = LabelledPictures(name, split, tuple("0123456789"), tuple(labels.tolist()), items, read)
    return part(everything, TEST_SHARE)


@functools.cache
def _plain() -> tuple[np.ndarray, np.ndarray]:  # uint8 [1797, 8, 8], int64 [1797]
    datasets = needed("sklearn.datasets", "scikit-learn", "netgraft:digits")
    digits = datasets.load_digits()
    return (digits.images * (255 / 16)).round().astype(np.uint8), digits.target.astype(np.int64)


@functools.cache
def _hard() -> tuple[np.ndarray, np.ndarray]:  # uint8 [1797, 16, 16], int64 [1797]
    images, labels = _plain()
    distorted = distort(torch.from_numpy(images)[:, None].float() / 255, np.random.default_rng(SEED))
    return (distorted[:, 0] * 255).round().to(torch.uint8).numpy(), labels


def distort(
    images: Tensor,  # [n, 1, h, w], 0 to 1, light on dark
    rng: np.random.Generator,
) -> Tensor:  # [n, 1, 16, 16], 0 to 1
    """Random affine map, contrast, polarity and noise for each image."""
    n = len(images)

    def spread(low: float, high: float) -> Tensor:  # [n]
        return torch.from_numpy(rng.uniform(low, high, n).astype(np.float32))

    angle, shear, zoom = spread(-30, 30) * (math.pi / 180), spread(-0.25, 0.25), spread(0.7, 1.1)
    stretch = torch.exp(spread(-0.2, 0.2))
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(n, 2, 2)
    skew = torch.stack([stretch, shear, torch.zeros(n), 1 / stretch], dim=1).view(n, 2, 2)
    shift = torch.stack([spread(-0.2, 0.2), spread(-0.2, 0.2)], dim=1)[:, :, None]
    maps = torch.cat([turn @ skew / zoom[:, None, None], shift], dim=2)
    grid = F.affine_grid(maps, [n, 1, 2 * SIDE, 2 * SIDE], align_corners=False)
    images = F.avg_pool2d(F.grid_sample(images, grid, align_corners=False), 2)
    paper, contrast = spread(0, 0.2)[:, None, None, None], spread(0.35, 0.7)[:, None, None, None]
    images = paper + contrast * images
    negative = torch.from_numpy(rng.random(n) < 0.5)[:, None, None, None]
    images = torch.where(negative, 1 - images, images)
    noise = torch.from_numpy(rng.standard_normal(images.shape).astype(np.float32))
    return (images + 0.08 * noise).clamp(0, 1)
