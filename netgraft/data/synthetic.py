"""Makes images where there are no data, by a generator.

Images are ``[count, channels, height, width]``, float32 in [0, 1]. The same arguments give the same images, whatever
the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from netgraft import plugins
from netgraft.data.generators._draw import checked
from netgraft.errors import UsageError

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


def _checked_size(size: Sequence[int]) -> tuple[int, int, int]:
    if len(size) != 3 or min(size) < 1:
        text = " x ".join(map(str, size))
        what = f"Images have channels, a height and a width; this model's input is {text}."
        raise UsageError(what, hint="Give --input-size C,H,W if the model takes images.")
    channels, height, width = size
    return channels, height, width
