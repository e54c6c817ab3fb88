"""From a file to pixels, for everybody who looks at pictures: transfer's passes, score and fine-tuning.

A picture is turned upright by its EXIF tag, laid over white where it is transparent, and brought to 8 bits: grey of 16
bits on the straight line from 0 to 0 and 65535 to 255 (value / 257, rounded; the "sample depth rescaling" of the PNG
specification), so that white stays white and 8 bits that were widened come back exactly. Of colours with 16 bits Pillow
itself keeps the upper 8. Then it is made grey or RGB, scaled until it covers the size that is asked for, bicubic with
antialiasing, and cropped around its centre. Pillow is imported late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from netgraft.data.optional import needed
from netgraft.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")


def reader(folder: Path) -> Callable[[str, int], Image]:
    """What reads the pictures in a folder by their names below it: ``read(name, least)`` is as ``read_picture``."""
    return lambda name, least: read_picture(folder / name, least)


def read_picture(file: Path, least: int = 0) -> Image:
    """The picture in a file, as ``plain`` makes it. Raises UsageError naming a file that cannot be read.

    ``least`` is how many pixels along each side are enough: a JPEG is then decoded no finer than needed. 0: all.
    """
    module = _pillow("PIL.Image")
    try:
        with module.open(file) as picture:
            if least:
                picture.draft(None, (least, least))
            return plain(picture)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and its own
        hint = "Remove the file, or write it again."
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"The image cannot be read: {reason}", where=str(file), hint=hint) from error


def plain(picture: Image) -> Image:
    """The picture upright, in 8 bits and without transparency: mode "L" where it is grey, else "RGB"."""
    upright: Image = _pillow("PIL.ImageOps").exif_transpose(picture)
    if upright.mode.startswith("I"):  # 16 bits, which Pillow would clip, or cut to the upper 8
        upright = _of_8_bits(upright)
    grey = upright.mode in ("1", "L", "LA", "La", "F")
    if upright.has_transparency_data:
        module = _pillow("PIL.Image")
        upright = upright.convert("RGBA")
        upright = module.alpha_composite(module.new("RGBA", upright.size, "white"), upright)
    return upright.convert("L" if grey else "RGB")


def as_array(picture: Image, size: Sequence[int]) -> np.ndarray:  # uint8 [C, H, W]
    """A plain picture in grey (C = 1) or RGB (C = 3), scaled until it just covers H x W, and the middle of it."""
    channels, height, width = size
    resampling = _pillow("PIL.Image").Resampling.BICUBIC
    picture = picture.convert("L" if channels == 1 else "RGB")
    array = np.array(_pillow("PIL.ImageOps").fit(picture, (width, height), method=resampling))
    return array[None] if channels == 1 else array.transpose(2, 0, 1).copy()


def _of_8_bits(picture: Image) -> Image:
    values = np.asarray(picture).clip(0, 65535)
    clear = picture.info.get("transparency")  # the grey value that is transparent
    narrow = (values / 257).round().astype(np.uint8)
    if isinstance(clear, int):
        narrow[values == clear] = 255
    image: Image = _pillow("PIL.Image").fromarray(narrow)
    return image


def _pillow(module: str) -> Any:
    return needed(module, "Pillow", "Reading images")
