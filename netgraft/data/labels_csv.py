"""Images with several classes each, or none: a folder of images beside ``labels.csv``.

The table's first line names its columns, and the first column is that of the files, relative to the table. Either
there is one other column, with the names of an image's classes and ``;`` between them::

    file,labels
    images/1.jpg,cat;dog
    images/2.jpg,

or there is a column for each class, with 1 where the image has it and 0 where it has not::

    file,cat,dog
    images/1.jpg,1,1
    images/2.jpg,0,0

``DIR/train/labels.csv`` and ``DIR/val/labels.csv`` (or ``test``) are a split; of a single ``DIR/labels.csv`` a quarter
of the images, always the same ones, is for tests.
"""

from __future__ import annotations

import csv
from pathlib import Path

from netgraft.data.decode import reader
from netgraft.data.folder import TEST, TEST_SHARE, TRAIN, first_folder
from netgraft.data.pictures import LabelledPictures, Split, part
from netgraft.errors import UsageError

FILE = "labels.csv"
BETWEEN = ";"
COLUMNS = "The first line names the columns: file,labels (then 1.jpg,cat;dog) or file,cat,dog (then 1.jpg,1,1)."

Rows = dict[str, tuple[str, ...]]  # the classes of each file


def has_table(path: Path) -> bool:
    """Whether the labels of a folder stand in a table."""
    return _training(path) is not None


def open_table(name: str, path: Path, split: Split) -> LabelledPictures:
    """The images of a split, in the order of the table.

    Classes are in the order of the columns, or sorted by name. Raises UsageError for a table that cannot be understood,
    naming its line, for a file that is not there, and for a class that is tested and not trained.
    """
    training = _training(path)
    assert training is not None, "has_table"
    classes, rows = _read(training / FILE)
    if len(classes) < 2:
        where = f"{training / FILE}: {len(classes)} classes"
        raise UsageError("The data have too few classes.", where=where, hint=COLUMNS)
    testing = first_folder(path, TEST) if training != path else None
    if testing is None:
        return part(_pictures(name, training, classes, rows, split), TEST_SHARE)
    if split == "train":
        return _pictures(name, training, classes, rows, split)
    tested, rows = _read(testing / FILE)
    if unknown := [each for each in tested if each not in classes]:
        raise UsageError(f"The class {unknown[0]!r} is in no table to train with.", where=str(testing / FILE))
    return _pictures(name, testing, classes, rows, split)


def _training(path: Path) -> Path | None:
    """The folder of the table to train with."""
    below = first_folder(path, TRAIN)
    return next((each for each in (below, path) if each is not None and (each / FILE).is_file()), None)


def _pictures(name: str, folder: Path, classes: tuple[str, ...], rows: Rows, split: Split) -> LabelledPictures:
    numbers = {each: number for number, each in enumerate(classes)}
    several = tuple(tuple(sorted(numbers[each] for each in labels)) for labels in rows.values())
    return LabelledPictures(name, split, classes, (-1,) * len(rows), tuple(rows), reader(folder), several=several)


def _read(file: Path) -> tuple[tuple[str, ...], Rows]:
    """The classes that are named, and those of every file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("The table of labels cannot be read.", where=f"{file}: {error}") from error
    lines = csv.reader(text.splitlines())
    header = [cell.strip() for cell in next(lines, [])]
    if len(header) < 2 or len(set(header)) < len(header) or (file.parent / header[0]).is_file():
        raise UsageError("The table of labels has no first line with its columns.", where=f"{file}:1", hint=COLUMNS)
    columns, rows = header[1:], Rows()
    for cells in lines:
        where = f"{file}:{lines.line_num}"
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if len(cells) != len(header):
            what = f"A line of the table has {len(cells)} cells, and the first line {len(header)}."
            raise UsageError(what, where=where, hint=COLUMNS)
        item, labels = cells[0], cells[1:]
        if item in rows:
            raise UsageError("An image is in the table twice.", where=f"{where}: {item}")
        if not (file.parent / item).is_file():
            raise UsageError("An image of the table is not there.", where=f"{where}: {file.parent / item}")
        rows[item] = _named(labels[0]) if len(columns) == 1 else _marked(columns, labels, where)
    if not rows:
        raise UsageError("The table of labels is empty.", where=str(file))
    named = sorted({label for labels in rows.values() for label in labels})
    return tuple(named if len(columns) == 1 else columns), rows


def _named(cell: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(label.strip() for label in cell.split(BETWEEN) if label.strip()))


def _marked(columns: list[str], cells: list[str], where: str) -> tuple[str, ...]:
    for column, cell in zip(columns, cells, strict=True):
        if cell not in ("0", "1"):
            raise UsageError(f"The column {column!r} has {cell!r}, neither 0 nor 1.", where=where, hint=COLUMNS)
    return tuple(column for column, cell in zip(columns, cells, strict=True) if cell == "1")
