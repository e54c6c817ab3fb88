"""A folder of images: one folder per class, below ``train`` and ``val`` or ``test`` where these exist."""

from __future__ import annotations

import os
from pathlib import Path

from netgraft.data.decode import SUFFIXES, reader
from netgraft.data.pictures import LabelledPictures, Split, part
from netgraft.errors import UsageError

TRAIN = ("train", "training")
TEST = ("val", "valid", "validation", "test")  # in this order: a test folder often has no labels
QUERY, GALLERY = "query", "gallery"
TEST_SHARE = 0.25
ANNOTATIONS = "val_annotations.txt"  # of Tiny ImageNet: the class of every file in val/images


def open_folder(name: str, path: Path, split: Split) -> LabelledPictures:
    """The images of a split; without ``train`` and ``val`` a quarter of each class, always the same, is for tests.

    Class names are the training folders', sorted. Raises UsageError for folders that are not so, or empty.
    """
    path = _below(path)
    training = first_folder(path, TRAIN)
    classes = _classes(training or path)
    testing = first_folder(path, TEST) if training else None
    if testing is None and training is not None and has_search(path):
        if split == "test":
            what = "The images for tests are queries and a gallery, whose classes are not those of the training."
            raise UsageError(what, where=str(path), hint="netgraft finetune --data reads them.")
        return gather(name, training, classes, split)
    if testing is None:
        return part(gather(name, training or path, classes, split), TEST_SHARE)
    if split == "train":
        return gather(name, training or path, classes, split)
    if (testing / ANNOTATIONS).is_file():
        return _annotated(name, testing, classes, split)
    if unknown := sorted(set(_classes(testing, 1)) - set(classes)):
        where = f"{testing / unknown[0]}"
        raise UsageError(f"The class {unknown[0]!r} has no folder to train with.", where=where)
    return gather(name, testing, tuple(c for c in classes if (testing / c).is_dir()), split, classes)


def has_search(path: Path) -> bool:
    """Whether a folder has images to search for, and images to search among (``search``)."""
    return all((path / each).is_dir() for each in (QUERY, GALLERY))


def _below(path: Path) -> Path:
    """The folder ``images`` where that is all there is: a domain of Office-31 is ``amazon/images/bike/1.jpg``."""
    folders = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if [p.name for p in folders] == ["images"] and any(p.is_dir() for p in folders[0].iterdir()):
        return folders[0]
    return path


def first_folder(path: Path, names: tuple[str, ...]) -> Path | None:
    """The first of these folders that there is."""
    return next((path / name for name in names if (path / name).is_dir()), None)


def _classes(path: Path, least: int = 2) -> tuple[str, ...]:
    found = tuple(sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if len(found) < least:
        loose = any(p.suffix.lower() in SUFFIXES for p in path.iterdir())
        what = "The images lie in no class folders." if loose and not found else "The data have too few classes."
        hint = "Each class is a folder of images: DIR/cat/1.png, DIR/dog/1.png."
        raise UsageError(what, where=f"{path}: {len(found)} folders", hint=hint)
    return found


def gather(
    name: str, path: Path, present: tuple[str, ...], split: Split, classes: tuple[str, ...] | None = None
) -> LabelledPictures:
    """The images in the class folders ``present``; ``classes`` are all classes."""
    classes = classes or present
    items, labels = [], []
    for label in (classes.index(c) for c in present):
        files = sorted(_images(path / classes[label]))
        if not files:
            hint = f"Put images into it ({', '.join(SUFFIXES)}), or remove it."
            raise UsageError("A class folder has no images.", where=str(path / classes[label]), hint=hint)
        items += [file.relative_to(path).as_posix() for file in files]
        labels += [label] * len(files)
    return LabelledPictures(name, split, classes, tuple(labels), tuple(items), reader(path))


def _images(folder: Path) -> list[Path]:
    walked = os.walk(folder, followlinks=True)
    return [Path(p, f) for p, _, files in walked for f in files if f.lower().endswith(SUFFIXES) and f[0] != "."]


def _annotated(name: str, path: Path, classes: tuple[str, ...], split: Split) -> LabelledPictures:
    items, labels = [], []
    for number, line in enumerate((path / ANNOTATIONS).read_text(encoding="utf-8").splitlines(), 1):
        file, _, rest = line.partition("\t")
        label = rest.partition("\t")[0]
        if label not in classes:
            raise UsageError(f"Unknown class {label!r}.", where=f"{path / ANNOTATIONS}:{number}")
        items.append(f"images/{file}")
        labels.append(classes.index(label))
    return LabelledPictures(name, split, classes, tuple(labels), tuple(items), reader(path))
