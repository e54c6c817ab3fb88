"""Images for when there are no data: made by a generator, or read from a folder of unlabelled ones.

Images are ``[count, channels, height, width]``, float32 in [0, 1], until ``normalise`` makes them what a source
expects.
The same arguments give the same images, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from netgraft import plugins
from netgraft.data.generators._draw import checked
from netgraft.data.unlabelled import load_folder
from netgraft.errors import UsageError
from netgraft.models.normalisation import Preprocessing, preprocessing_of

__all__ = [
    "GENERATORS",
    "Preprocessing",
    "join_folder",
    "load_folder",
    "make_images",
    "normalise",
    "preprocessing_of",
]

GENERATORS = "data.generators"
"""The folder of the generators, for ``netgraft.plugins``."""

_NO_OPTIONS: Mapping[str, object] = {}


def make_images(
    name_or_path: str,
    count: int,
    size: Sequence[int],
    seed: int,
    options: Mapping[str, object] = _NO_OPTIONS,
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """``count`` images of a generator ("mix", "strokes", "./own_generator.py") of ``size`` (channels, height, width).

    float32 in [0, 1] on ``device``; another kind of device gives other images. Raises UnknownName and UsageError, the
    latter also for a user's generator whose images have the wrong shape or values.
    """
    shape = _checked_size(size)
    generator = plugins.create(GENERATORS, name_or_path, options)
    images = generator(count, shape, torch.Generator(device).manual_seed(seed))
    return checked(images, (count, *shape), name_or_path)


def join_folder(
    folder: str | Path,
    share: float,
    name_or_path: str,
    count: int,
    size: Sequence[int],
    seed: int,
    options: Mapping[str, object] = _NO_OPTIONS,
) -> Tensor:
    """``count`` images, a ``share`` of them (0 to 1, rounded) from a folder, the rest made by a generator; shuffled.

    Raises what ``load_folder`` and ``make_images`` raise.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"The folder's share of the images must be between 0 and 1: {share}.")
    shape = _checked_size(size)
    found = round(share * count)
    images = torch.empty((count, *shape))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if found:
        images[order[:found]] = load_folder(folder, found, shape, seed)
    if found < count:
        images[order[found:]] = make_images(name_or_path, count - found, shape, seed, options)
    return images


def normalise(
    images: Tensor,  # [count, C, H, W]
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """(images - mean) / std, channel by channel; one number serves all channels. A new tensor of the same shape."""
    channels = images.shape[1]
    if not {len(mean), len(std)} <= {1, channels}:
        what = (
            f"The mean has {len(mean)} numbers, the standard deviation {len(std)}; the images have {channels} channels."
        )
        raise UsageError(what, hint=f"Give 1 or {channels} of each.")
    centre, scale = (images.new_tensor(list(each)).reshape(1, -1, 1, 1) for each in (mean, std))
    return (images - centre).div_(scale)


def _checked_size(size: Sequence[int]) -> tuple[int, int, int]:
    if len(size) != 3 or min(size) < 1:
        text = " x ".join(map(str, size))
        what = f"Images have channels, a height and a width; this model's input is {text}."
        raise UsageError(what, hint="Give --input-size C,H,W if the model takes images.")
    channels, height, width = size
    return channels, height, width
