"""Letters a to z, drawn from the fonts of this computer: ``netgraft:glyphs``, the task of netgraft's embedded nets.

Upper and lower case share a class. One font of each typeface family, as Debian's packages or matplotlib bring them;
families are for training or for tests as a whole, so that test letters are of typefaces never seen. What the images are
depends on the fonts that are installed: their names are in the record of a run.
"""

from __future__ import annotations

import functools
import hashlib
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgraft.data.optional import needed
from netgraft.data.pictures import LabelledPictures, Split
from netgraft.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "glyphs"
LETTERS = string.ascii_lowercase + string.ascii_uppercase
SIDE, INK = 32, 26  # a picture is 32x32; the longer side of its ink is 26
TEST_SHARE = 0.15  # of the families
FONT_DIRS = ("/usr/share/fonts", "/usr/share/texmf/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
NOT_LETTERS = re.compile(
    r"symbol|dingbat|ornament|icon|emoji|awesome|braille|barcode|music|math|initials|outline|cmsy|cmex|cmmi|siz\dsym",
    re.I,
)
STYLE_WORDS = re.compile(
    r"\b((extra|ultra|semi|demi)?[ -]?(thin|light|bold|black|heavy|condensed|expanded)|regular|medium|book|roman|italic"
    r"|oblique|narrow|cond|\d+)\b",
    re.I,
)


def open_glyphs(name: str, split: Split) -> LabelledPictures:
    """All letters of the fonts of a split. Raises UsageError where there are fewer than two families."""
    fonts = _fonts()
    if len(fonts) < 2:
        hint = "Type pip install matplotlib, which brings some, or install the Debian package fonts-dejavu."
        raise UsageError("There are too few fonts to draw letters from.", where=", ".join(FONT_DIRS), hint=hint)
    families = sorted(fonts, key=lambda family: hashlib.sha256(family.encode()).digest())
    held_out = set(families[: max(1, round(TEST_SHARE * len(families)))])
    chosen = [fonts[family] for family in sorted(fonts) if (family in held_out) == (split == "test")]
    paths = {path.name: path for path in chosen}
    items = tuple(f"{font}:{letter}" for font in sorted(paths) for letter in LETTERS)
    labels = tuple(string.ascii_lowercase.index(item[-1].lower()) for item in items)

    def read(item: str, _: int) -> Image:
        font, letter = item.rsplit(":", 1)
        return _draw(paths[font], letter)

    return LabelledPictures(name, split, tuple(string.ascii_lowercase), labels, items, read)


@functools.cache
def _fonts() -> dict[str, Path]:
    """A usable font file of each family: of several the one with the shortest name, which is the plainest."""
    by_family: dict[str, list[Path]] = {}
    for path in _files():
        if (family := _family(path)) is not None:
            by_family.setdefault(family, []).append(path)
    found = {}
    for family, paths in by_family.items():
        ordered = sorted(paths, key=lambda path: (len(path.name), path.name))
        if usable := [path for path in ordered[:2] if _usable(path)]:
            found[family] = usable[0]
    return found


def _files() -> Iterator[Path]:
    seen = set()
    for folder in (*(Path(each).expanduser() for each in FONT_DIRS), *_matplotlib()):
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if path.suffix.lower() in (".ttf", ".otf") and path.name not in seen and not NOT_LETTERS.search(path.stem):
                seen.add(path.name)
                yield path


def _matplotlib() -> Iterator[Path]:
    try:
        import matplotlib
    except ImportError:
        return
    yield Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@functools.lru_cache(maxsize=256)
def _font(path: Path) -> Any:
    module = needed("PIL.ImageFont", "Pillow", f"netgraft:{NAME}")
    return module.truetype(path, 96, layout_engine=module.Layout.BASIC)


def _family(path: Path) -> str | None:
    """The family's name without words for weight and slant; None for a font that cannot be used."""
    try:
        family, style = (part or "" for part in _font(path).getname())
    except (OSError, ValueError):  # not scalable, or broken
        return None
    if not family or NOT_LETTERS.search(f"{family} {style}"):
        return None
    return " ".join(STYLE_WORDS.sub(" ", family).lower().split()) or family.lower()


def _usable(path: Path) -> bool:
    """Whether it has all letters, each with its own look but for I and l."""
    missing = _ink(path, "\U0010ffff")
    shown: dict[bytes, str] = {}
    for letter in LETTERS:
        ink = _ink(path, letter)
        if ink is None or min(ink.size) < 2 or (missing is not None and ink.tobytes() == missing.tobytes()):
            return False
        alike = letter.lower().replace("l", "i")
        if shown.setdefault(ink.tobytes(), alike) != alike:
            return False
    return True


def _draw(path: Path, letter: str) -> Image:  # 32x32, "L", light on dark
    module = needed("PIL.Image", "Pillow", f"netgraft:{NAME}")
    ink = _ink(path, letter)
    page: Image = module.new("L", (SIDE, SIDE))
    if ink is not None:
        zoom = INK / max(ink.size)
        size = (max(1, round(zoom * ink.width)), max(1, round(zoom * ink.height)))
        page.paste(ink.resize(size, module.Resampling.BOX), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return page


def _ink(path: Path, text: str) -> Image | None:
    """What ``text`` leaves on paper, cropped to its ink; None where that is nothing or runs off the page."""
    image = needed("PIL.Image", "Pillow", f"netgraft:{NAME}")
    page: Image = image.new("L", (320, 320))
    needed("PIL.ImageDraw", "Pillow", f"netgraft:{NAME}").Draw(page).text((110, 90), text, fill=255, font=_font(path))
    box = page.getbbox()
    return None if box is None or 0 in box[:2] or 320 in box[2:] else page.crop(box)
