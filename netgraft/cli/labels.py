"""Label maps: which class of the source each class of the target is. Nothing here imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from netgraft.errors import UsageError

NEW = -1
"""A class of the target that the source does not know."""

_FORMS = """It holds a list with one source class (a number, or null for a new class) per target class,
or {"source": [names], "target": [names]}, whose equal names are matched."""


def read_labels(path: Path) -> tuple[int, ...]:
    """The source class of each target class, -1 for a new one, from a JSON file.

    Raises UsageError for a file that is missing, not JSON, or neither a list of class numbers nor two lists of names.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError("The label map cannot be read.", where=f"{path}: {error}", hint=_FORMS) from error
    if isinstance(content, list) and all(_is_class(entry) for entry in content):
        return tuple(NEW if entry is None else entry for entry in content)
    if isinstance(content, dict) and content.keys() == {"source", "target"}:
        source, target = content["source"], content["target"]
        if all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in (source, target)):
            return match_names(source, target)
    raise UsageError("This is not a label map.", where=str(path), hint=_FORMS)


def match_names(source: list[str], target: list[str]) -> tuple[int, ...]:
    """For each target name the place of the equal source name (case and underscores aside), -1 without one."""
    places = {_folded(name): place for place, name in reversed(list(enumerate(source)))}
    return tuple(places.get(_folded(name), NEW) for name in target)


def _is_class(entry: object) -> bool:
    return entry is None or (isinstance(entry, int) and not isinstance(entry, bool) and entry >= 0)


def _folded(name: str) -> str:
    return name.replace("_", " ").strip().casefold()
