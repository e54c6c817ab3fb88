"""Labelled images for scoring and fine-tuning, by the name that the user typed.

``DIR``, a folder with one folder of images per class, or with ``train`` and ``val`` (or ``test``) that have them;
or a folder of images with ``labels.csv``, where an image may have several classes (``labels_csv``); or the folders of
MNIST-M and Office-31 as they come; ``netgraft:digits`` and ``netgraft:digits-hard``, real handwritten digits that
scikit-learn ships; ``netgraft:digits-m``, the same in front of photographs; ``netgraft:glyphs``, letters drawn from
this computer's fonts; ``torch/cifar10`` and others under timm's names. Nothing is downloaded unless that is asked for.
scikit-learn, Pillow, torchvision and timm are imported where a name needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from netgraft.data import blended, digits, folder, glyphs, labels_csv, listed, named
from netgraft.data.pictures import LabelledPictures, Pixels, Split, few
from netgraft.errors import UnknownName, UsageError
from netgraft.models.normalisation import Normalisation

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "netgraft:"
OWN = (*digits.NAMES, blended.NAME, glyphs.NAME)


class Data(NamedTuple):
    """Images as a network reads them."""

    images: Tensor  # [N, C, H, W] float32, normalised
    labels: Tensor  # [N] int64
    classes: tuple[str, ...]
    record: dict[str, Any]  # which images these are: name, split, seed, sha256 of their names and labels


def load_data(
    name: str,
    *,
    size: Sequence[int],  # (C, H, W)
    mean: Sequence[float],  # one number, or one per channel
    std: Sequence[float],
    split: Split = "train",
    samples_per_class: int | None = None,
    seed: int = 0,
    root: Path | None = None,
    download: bool = False,
) -> Data:
    """All images of a split in memory, scaled and cropped to ``size``, less ``mean``, over ``std``, in a fixed order.

    Of the training images ``samples_per_class`` are drawn with ``seed``; fewer are a part of more. The rest is as
    ``open_data`` has it.
    """
    pictures = open_data(name, split=split, root=root, download=download)
    if samples_per_class is not None:
        pictures = few(pictures, samples_per_class, seed)
    pixels = Pixels(pictures, size, Normalisation(tuple(mean), tuple(std)))
    return Data(pixels.all(), pixels.labels, pictures.classes, pictures.record())


def open_data(
    name: str, *, split: Split = "train", root: Path | None = None, download: bool = False, multilabel: bool = False
) -> LabelledPictures:
    """The images of a split, not yet decoded. What has no split of its own is split once and for all, by a fixed seed.

    ``root`` is where data sets with a name lie, ``data`` by default; only with ``download`` are they fetched. Raises
    UnknownName for a name that does not exist, and UsageError for data that are missing or broken, naming the file, and
    for images with several classes each unless the caller takes them (``multilabel``).
    """
    path = Path(name).expanduser()
    if name.startswith(PREFIX):
        known = [PREFIX + short for short in OWN]
        if name not in known:
            raise UnknownName("data set", name, known)
        if name == PREFIX + glyphs.NAME:
            return glyphs.open_glyphs(name, split)
        if name == PREFIX + blended.NAME:
            return blended.open_blended(name, split)
        return digits.open_digits(name, hard=name.endswith("-hard"), split=split)
    if path.is_dir():
        if listed.is_listed(path):
            return listed.open_listed(name, path, split)
        if labels_csv.has_table(path):
            if not multilabel:
                hint = "Take data with one class for each image: a folder for each class."
                raise UsageError("Images with several classes each cannot be used here.", where=name, hint=hint)
            return labels_csv.open_table(name, path, split)
        return folder.open_folder(name, path, split)
    if path.exists():
        raise UsageError("The data are a file, not a folder.", where=name, hint=f"Type the folder: {path.parent}")
    if name.startswith((".", "/", "~")) or name.endswith("/"):
        beside = sorted(str(p) for p in path.parent.iterdir() if p.is_dir()) if path.parent.is_dir() else []
        hint = f"Beside it: {', '.join(beside[:5])}" if beside else ""
        raise UsageError("There is no such folder of images.", where=name, hint=hint)
    if name.partition("/")[0].lower() in named.PREFIXES and "/" in name:
        return named.open_named(name, split, root or Path("data"), download=download)
    raise UnknownName("data set", name, names(), hint=_nearest(name))


def names() -> list[str]:
    """The names of data sets that are no folders."""
    return [*(PREFIX + short for short in OWN), *(f"torch/{short}" for short in named.TORCH)]


def _nearest(name: str) -> str:
    """Short names may have been meant: ``cifar10`` for ``torch/cifar10``."""
    same = [known for known in names() if known.replace(":", "/").rpartition("/")[2] == name.lower()]
    return f"Did you mean {same[0]}?" if same else ""
