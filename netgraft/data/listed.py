"""Images whose labels stand in a file, as MNIST-M comes: ``mnist_m_train/0.png`` and ``mnist_m_train_labels.txt``.

Each line of the file is a name and the number of a class, ``00000001.png 2``. The folders of both splits and their
files lie beside each other; class names are the numbers.
"""

from __future__ import annotations

from pathlib import Path

from netgraft.data.decode import reader
from netgraft.data.pictures import LabelledPictures, Split
from netgraft.errors import UsageError

SUFFIX = "_labels.txt"


def is_listed(path: Path) -> bool:
    """Whether there is a file of labels for each split."""
    return all(_file(path, split) is not None for split in ("train", "test"))


def open_listed(name: str, path: Path, split: Split) -> LabelledPictures:
    """The images of a split, in the order of the file. Raises UsageError for a line that names no image or class."""
    labels = {part: _read(path, part) for part in ("train", "test")}
    count = max(label for lines in labels.values() for _, label in lines) + 1
    file = _file(path, split)
    assert file is not None, "is_listed"
    folder = file.with_name(file.name.removesuffix(SUFFIX))
    items, numbers = zip(*labels[split], strict=True)
    if missing := next((item for item in items if not (folder / item).is_file()), None):
        raise UsageError("An image of the list is not there.", where=str(folder / missing))
    return LabelledPictures(
        name,
        split,
        tuple(map(str, range(count))),
        numbers,
        items,
        reader(folder),
    )


def _file(path: Path, split: str) -> Path | None:
    return next(iter(sorted(path.glob(f"*{split}{SUFFIX}"))), None)


def _read(path: Path, split: str) -> list[tuple[str, int]]:  # (file, label)
    file = _file(path, split)
    assert file is not None, "is_listed"
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        item, _, label = line.strip().rpartition(" ")
        if not item or not label.isdecimal():
            hint = "Each line is a file and the number of its class: 00000001.png 2"
            raise UsageError("The file of labels cannot be understood.", where=f"{file}:{number}", hint=hint)
        found.append((item.strip(), int(label)))
    if not found:
        raise UsageError("The file of labels is empty.", where=str(file))
    return found
