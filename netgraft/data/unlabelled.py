"""Unlabelled images from a folder (``--images DIR``). Pillow is imported late."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from netgraft.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def load_folder(path: str | Path, count: int, size: Sequence[int], seed: int) -> Tensor:
    """``count`` images of a folder and its subfolders, chosen at random: ``[count, *size]``, float32 in [0, 1].

    ``size`` is 1 (grey) or 3 (RGB) channels, height and width. Each image is scaled so that it just covers this height
    and width (bicubic with antialiasing, upright by its EXIF tag, transparency over white) and cropped around its
    centre. Files are taken in a random order that depends on ``seed`` and their names only; with fewer than ``count``
    of them all are taken again, as often as it takes. Raises UsageError for a missing or empty folder, a file that is
    no image (naming it), and other channels.
    """
    channels, height, width = size
    if channels not in (1, 3):
        what = f"Images of a folder are grey or RGB; the model takes {channels} channels."
        raise UsageError(what, where=str(path), hint="Leave the folder out: synthetic images have any number.")
    files = image_files(path)
    random.Random(seed).shuffle(files)
    images = torch.empty((count, channels, height, width))
    for k, file in enumerate(files[:count]):
        images[k] = _read(file, (channels, height, width))
    for k in range(len(files), count):
        images[k] = images[k - len(files)]
    return images


def image_files(path: str | Path) -> list[Path]:
    """The image files in a folder and its subfolders, hidden ones left out, sorted by name; UsageError if none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "This is a file, not a folder of images." if folder.exists() else "There is no such folder of images."
        raise UsageError(what, where=str(path))
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    shown = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    files = [file for name in shown if (file := folder / name).is_file()]
    if not files:
        hint = f"Files ending in {', '.join(SUFFIXES)} count, in subfolders too."
        raise UsageError("There are no images in this folder.", where=str(path), hint=hint)
    return files


def _read(file: Path, size: tuple[int, int, int]) -> Tensor:
    from PIL import Image, ImageOps

    channels, height, width = size
    try:
        with Image.open(file) as image:
            image.draft(None, (max(height, width),) * 2)  # JPEG: decodes no finer than needed
            plain = _flat(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
            fitted = ImageOps.fit(plain, (width, height), method=Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and its own
        reason = f"{type(error).__name__}: {error}"
        hint = "Delete it, or move it out of the folder."
        raise UsageError(f"This image cannot be read: {reason}", where=str(file), hint=hint) from error
    values = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return values.reshape(height, width, channels).permute(2, 0, 1).float().div_(255)


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """The image in 8 bits, grey ("L") or "RGB", without transparency."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits, which ``convert`` would clip
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
