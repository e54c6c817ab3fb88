"""``netgraft:digits-m``, the digits of ``netgraft:digits`` blended into photographs: a shift of domain, at no download.

After MNIST-M's recipe (Ganin & Lempitsky 2015): |patch - digit| in each channel, where ``patch`` is cut at random from
one of the two colour photographs that scikit-learn ships (``load_sample_images``, a quarter of their size). 16x16, RGB,
once and for all. Numbers, labels and split are those of ``netgraft:digits``, which at 16x16 shows the same strokes.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from netgraft.data.digits import open_digits
from netgraft.data.optional import needed
from netgraft.data.pictures import LabelledPictures, Split

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "digits-m"
SIDE = 16
SHRINK = 4  # the photographs are 640x427
SEED = 0


def open_blended(name: str, split: Split) -> LabelledPictures:
    """898 digits to train with and 899 for tests, or nearly so. Raises UsageError without scikit-learn or Pillow."""
    plain = open_digits(name, hard=False, split=split)
    pillow = needed("PIL.Image", "Pillow", "Reading images")

    def read(item: str, _: int) -> Image:
        digit = plain.read(item, 0).resize((SIDE, SIDE), pillow.Resampling.BICUBIC)
        picture: Image = pillow.fromarray(blend(np.asarray(digit), _patch(int(item))))
        return picture

    return LabelledPictures(name, split, plain.classes, plain.labels, plain.items, read)


def blend(digit: np.ndarray, patch: np.ndarray) -> np.ndarray:  # uint8 [h, w], [h, w, 3] -> uint8 [h, w, 3]
    """|patch - digit|: the photograph where there is no ink, its negative where there is."""
    difference: np.ndarray = np.abs(patch.astype(np.int16) - digit.astype(np.int16)[:, :, None])
    return difference.astype(np.uint8)


def _patch(number: int) -> np.ndarray:  # uint8 [16, 16, 3]
    """The patch behind a digit: of either photograph, anywhere in it."""
    rng = np.random.default_rng([SEED, number])
    photograph = _photographs()[rng.integers(2)]
    top, left = (rng.integers(side - SIDE + 1) for side in photograph.shape[:2])
    return photograph[top : top + SIDE, left : left + SIDE]


@functools.cache
def _photographs() -> list[np.ndarray]:  # uint8 [107, 160, 3]
    datasets = needed("sklearn.datasets", "scikit-learn", "netgraft:digits-m")
    pillow: Any = needed("PIL.Image", "Pillow", "Reading images")
    return [np.asarray(pillow.fromarray(image).reduce(SHRINK)) for image in datasets.load_sample_images().images]
