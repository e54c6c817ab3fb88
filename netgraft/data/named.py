"""Data sets under timm's names: ``torch/cifar10`` of torchvision, ``hfds/org/name`` of Hugging Face datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgraft.data.decode import plain
from netgraft.data.optional import needed
from netgraft.data.pictures import LabelledPictures, Split
from netgraft.errors import UnknownName, UsageError
from netgraft.models.construct import brief

if TYPE_CHECKING:
    from PIL.Image import Image

TORCHVISION = ("stl10", "svhn", "usps")  # which timm does not know
TORCH = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist", *TORCHVISION, "places365", "imagenet")
STREAMS = ("hfids", "tfds", "wds")  # cannot be read in any order
PREFIXES = ("torch", "hfds", *STREAMS)


def open_named(name: str, split: Split, root: Path, *, download: bool) -> LabelledPictures:
    """The images of a split of a data set that lies below ``root``, or is downloaded there.

    Raises UnknownName, and UsageError for data that are not there.
    """
    prefix, _, rest = name.partition("/")
    prefix = prefix.lower()
    if prefix in STREAMS:
        hint = "Take a folder of images, torch/... or hfds/..."
        raise UsageError(f"{prefix}/ is a stream, from which images cannot be drawn.", where=name, hint=hint)
    if prefix == "torch" and rest.lower() not in TORCH:
        raise UnknownName("data set", name, [f"torch/{short}" for short in TORCH])
    if prefix == "hfds":
        needed("datasets", "the package datasets", name, hint="Type pip install datasets")
        if not download:
            hint = "Add --download; what is in the cache already is not fetched again."
            raise UsageError("Whether these data are at hand is only known by asking the hub.", where=name, hint=hint)
    try:
        data = _create(prefix, rest, split, root, download=download)
    except Exception as error:  # whatever torchvision, timm or the network raises
        asked = "could not be downloaded" if download else f"are not below {root}"
        hint = "" if download else f"Add --download, or --data-dir DIR if {name} lies elsewhere."
        raise UsageError(f"The data {name} {asked}.", where=brief(error), hint=hint) from error
    labels = _labels(data)
    classes = tuple(str(c[0] if isinstance(c, tuple) else c) for c in getattr(data, "classes", ()))
    classes = classes or tuple(map(str, range(max(labels) + 1)))

    def read(item: str, _: int) -> Image:
        return plain(data[int(item)][0])

    return LabelledPictures(name, split, classes, labels, tuple(map(str, range(len(labels)))), read)


def _create(prefix: str, rest: str, split: Split, root: Path, *, download: bool) -> Any:
    if prefix == "torch" and rest.lower() in TORCHVISION:
        cls = getattr(needed("torchvision.datasets", "torchvision", rest), rest.upper())
        which = {"train": split == "train"} if rest.lower() == "usps" else {"split": split}
        return cls(str(root), **which, download=download)
    from timm.data import create_dataset

    if prefix == "torch":
        split_name = "train" if split == "train" else "validation"
        return create_dataset(f"torch/{rest}", root=str(root), split=split_name, download=download)
    errors = []
    for split_name in ("train",) if split == "train" else ("test", "validation"):
        try:
            return create_dataset(f"hfds/{rest}", root=str(root), split=split_name, input_img_mode="")  # as it is
        except ValueError as error:  # no split of that name
            errors.append(error)
    raise errors[0]


def _labels(data: Any) -> tuple[int, ...]:
    for attribute in ("targets", "labels"):
        if (found := getattr(data, attribute, None)) is not None:
            return tuple(int(label) for label in found)
    return tuple(int(data[i][1]) for i in range(len(data)))
