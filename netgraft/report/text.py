"""Plain building blocks of every report: aligned tables, shapes, names made safe for a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netgraft.architecture.graph import Shape


def safe(text: str) -> str:
    """``text`` without control characters: tensor and layer names come from files of strangers."""
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else c for c in text)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, indent: str = "") -> list[str]:
    """Lines of a table whose columns are as wide as their widest cell; columns of numbers are right-aligned."""
    cells = [[safe(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [
        len(cells) > 1 and all(row[i].replace(",", "").replace(".", "").rstrip(" %").isdigit() for row in cells[1:])
        for i in range(len(header))
    ]
    lines = []
    for row in cells:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        lines.append((indent + "  ".join(padded)).rstrip())
    return lines


def shape_text(shape: Shape) -> str:
    """[64, 3, 7, 7] as 64x3x7x7; a scalar as 1."""
    return "x".join(map(str, shape)) or "1"


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names and how many more there are."""
    shown = ", ".join(map(safe, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def percent(part: int, whole: int) -> str:
    """A share with one decimal; 0.0 % and 100.0 % are exactly that, never a little more or less."""
    if not 0 < part < whole:
        return "100.0 %" if part and part == whole else "0.0 %"
    share = 100 * part / whole
    return "<0.1 %" if share < 0.05 else ">99.9 %" if share >= 99.95 else f"{share:.1f} %"


def size_text(size: int) -> str:
    """Bytes as files are listed: 1,500,000 as 1.5 MB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
