"""Unlabelled images from a folder (``--images DIR``)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from netgraft.data.decode import SUFFIXES, as_array, read_picture
from netgraft.errors import UsageError

Part = Literal["shown", "held out"]
LEAST_HELD_OUT, MOST_HELD_OUT = 64, 640
"""How many images of a folder are held out: a quarter of them, up to the latter; none where that is too few to tell."""


def load_folder(
    path: str | Path, count: int, size: Sequence[int], seed: int, part: Part = "shown", first: int = 0
) -> Tensor:
    """``count`` images of a folder and its subfolders, chosen at random: ``[count, *size]``, float32 in [0, 1].

    ``size`` is 1 (grey) or 3 (RGB) channels, height and width; decode.py says how a file is made to fit. Files are
    taken in a random order that depends on ``seed`` and their names only; with fewer than ``count`` of them all are
    taken again, as often as it takes; ``first`` leaves out so many of them. The two parts have no file in common.
    Raises UsageError for a missing or empty folder, a file that is no image (naming it), and other channels.
    """
    channels, height, width = size
    if channels not in (1, 3):
        what = f"Images of a folder are grey or RGB; the model takes {channels} channels."
        raise UsageError(what, where=str(path), hint="Leave the folder out: synthetic images have any number.")
    held = set(held_out_files(path))
    files = sorted(held) if part == "held out" else [file for file in image_files(path) if file not in held]
    random.Random(seed).shuffle(files)
    files = files[first % len(files) :] + files[: first % len(files)]
    images = torch.empty((count, channels, height, width))
    for k, file in enumerate(files[:count]):
        array = as_array(read_picture(file, max(height, width)), (channels, height, width))
        images[k] = torch.from_numpy(array).float().div_(255)
    for k in range(len(files), count):
        images[k] = images[k - len(files)]
    return images


def held_out_files(path: str | Path) -> list[Path]:
    """The images of a folder that nothing is ever fitted on, chosen by their names alone; a small folder has none.

    Raises as ``image_files``.
    """
    files = image_files(path)
    count = min(len(files) // 4, MOST_HELD_OUT)
    return sorted(random.Random(0).sample(files, count)) if count >= LEAST_HELD_OUT else []


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
