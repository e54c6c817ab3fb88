"""Images to search for and images to search among: ``DIR/query/IDENTITY/1.jpg`` and ``DIR/gallery/IDENTITY/1.jpg``.

They stand beside ``DIR/train``, which may have other classes. The folder ``-1`` is left out: boxes that show nobody in
Market-1501. Where every file's name says a camera as in that data set and DukeMTMC-reID, ``0002_c1s1_000451_03.jpg``,
images of the query's identity that its own camera took do not count.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from netgraft.data.folder import GALLERY, QUERY, TEST, first_folder, gather, has_search
from netgraft.data.pictures import LabelledPictures, Split
from netgraft.errors import UsageError

JUNK = "-1"
CAMERA = re.compile(r"(?:^|_)c(\d+)[^/]*$")


def has_tests(name: str) -> bool:
    """Whether a folder has test images beside queries and a gallery."""
    return first_folder(Path(name).expanduser(), TEST) is not None


def open_search(name: str) -> tuple[LabelledPictures, LabelledPictures] | None:
    """Queries and gallery, with common classes; None where the data have none. Raises UsageError for empty folders."""
    path = Path(name).expanduser()
    if not path.is_dir() or not has_search(path):
        return None
    present = {part: _identities(path / part) for part in (QUERY, GALLERY)}
    classes = tuple(sorted({*present[QUERY], *present[GALLERY]}))
    split: Split = "test"
    both = [gather(name, path / part, present[part], split, classes) for part in (QUERY, GALLERY)]
    cameras = [[_camera(item) for item in pictures.items] for pictures in both]
    if None not in cameras[0] + cameras[1]:
        both = [_taken(pictures, numbers) for pictures, numbers in zip(both, cameras, strict=True)]
    return both[0], both[1]


def _identities(folder: Path) -> tuple[str, ...]:
    found = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not [each for each in found if each != JUNK]:
        hint = "Each identity is a folder of images: DIR/query/0002/1.jpg, DIR/gallery/0002/2.jpg."
        raise UsageError("There are no identities.", where=str(folder), hint=hint)
    return tuple(each for each in found if each != JUNK)


def _camera(item: str) -> int | None:
    found = CAMERA.search(item.rpartition("/")[2])
    return int(found[1]) if found else None


def _taken(pictures: LabelledPictures, cameras: list[int | None]) -> LabelledPictures:
    return replace(pictures, cameras=tuple(number for number in cameras if number is not None))
