"""Unlabelled images of the user's: a folder, or a single picture (``--images DIR``, ``--images FILE``)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from netgraft.data.crops import crops, cut_into_one_another
from netgraft.data.decode import SUFFIXES, as_array, read_picture
from netgraft.errors import UsageError

Part = Literal["shown", "held out"]
LEAST_HELD_OUT, MOST_HELD_OUT = 64, 640
"""How many images of a folder are held out: a quarter of them, up to the latter; none where that is too few to tell."""
FINER = 8
"""So much finer than an image a picture is read for crops, if it is as large as that: small ones are to be sharp."""


def load_folder(
    path: str | Path, count: int, size: Sequence[int], seed: int, part: Part = "shown", first: int = 0
) -> Tensor:
    """``count`` images of a folder and its subfolders, chosen at random: ``[count, *size]``, float32 in [0, 1].

    ``path`` may also be a single picture. ``size`` is 1 (grey) or 3 (RGB) channels, height and width; decode.py says
    how a file is made to fit. Files are taken in a random order that depends on ``seed`` and their names only, behind
    the ``first`` ones. Where there are too few all are taken once as they are; the rest are random crops of them, as
    many of each (crops.py). The two parts have no file in common. Raises UsageError for a missing or empty folder, a
    file that is no image (naming it), and other channels.
    """
    channels, height, width = size
    if channels not in (1, 3):
        what = f"Images of a folder are grey or RGB; the model takes {channels} channels."
        raise UsageError(what, where=str(path), hint="Leave the folder out: synthetic images have any number.")
    files = _files(path, part)
    random.Random(seed).shuffle(files)
    images = torch.empty((count, channels, height, width))
    side, whole = max(height, width), min(max(len(files) - first, 0), count)
    places: dict[Path, list[int]] = {}  # by file, those of the crops
    for k in range(whole, count):
        places.setdefault(files[(first + k) % len(files)], []).append(k)
    for k, file in enumerate(files[first : first + whole]):
        array = as_array(read_picture(file, side), (channels, height, width))
        images[k] = torch.from_numpy(array).float().div_(255)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + first)
        for file, at in places.items():
            picture = read_picture(file, FINER * side)
            for place, crop in zip(at, crops(picture, len(at), (channels, height, width)), strict=True):
                images[place] = crop
    if whole < count:
        cut_into_one_another(images, whole, seed + first)
    return images


def cropped(path: str | Path, count: int, part: Part = "shown") -> str:
    """What ``load_folder`` does where pictures are fewer than ``count``, in a line; nothing where there are enough."""
    pictures = len(_files(path, part))
    if pictures >= count:
        return ""
    of = "1 picture" if pictures == 1 else f"{pictures:,} pictures"
    return (
        f"{count - pictures:,} of {count:,} images are random crops of {of}: turned, sheared, mirrored, recoloured, "
        "half of them with CutMix"
    )


def _files(path: str | Path, part: Part) -> list[Path]:
    held = held_out_files(path)
    if part == "held out":
        return held
    left = set(held)
    return [file for file in image_files(path) if file not in left]


def held_out_files(path: str | Path) -> list[Path]:
    """The images of a folder that nothing is ever fitted on, chosen by their names alone; a small folder has none.

    Raises as ``image_files``.
    """
    files = image_files(path)
    count = min(len(files) // 4, MOST_HELD_OUT)
    return sorted(random.Random(0).sample(files, count)) if count >= LEAST_HELD_OUT else []


def image_files(path: str | Path) -> list[Path]:
    """The image files in a folder and its subfolders, hidden ones left out, sorted by name; UsageError if none.

    A file is itself all that there is.
    """
    folder = Path(path).expanduser()
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise UsageError("There is no such picture, or folder of images.", where=str(path))
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    shown = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    files = [file for name in shown if (file := folder / name).is_file()]
    if not files:
        hint = f"Files ending in {', '.join(SUFFIXES)} count, in subfolders too."
        raise UsageError("There are no images in this folder.", where=str(path), hint=hint)
    return files
