"""What is refused before anything is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from netgraft.errors import UsageError

Array = NDArray[Any]


def features(given: ArrayLike, what: str) -> Array:
    """``[n, d]`` float64. Raises UsageError for another shape, none at all, and what is not finite."""
    found = np.asarray(given, dtype=np.float64)
    if found.ndim != 2 or 0 in found.shape:
        raise UsageError(f"The {what} are a table of images times features.", where=f"their shape is {found.shape}")
    if not np.isfinite(found).all():
        raise UsageError(f"The {what} are not all finite.")
    return found


def both_domains(source: ArrayLike, target: ArrayLike) -> tuple[Array, Array]:
    """The features of both, of the same width. Raises UsageError."""
    first, second = features(source, "source's features"), features(target, "target's features")
    if first.shape[1] != second.shape[1]:
        what = "Source and target have the same features."
        raise UsageError(what, where=f"{first.shape[1]} and {second.shape[1]} of them")
    return first, second


def labelled(x: ArrayLike, y: ArrayLike, what: str) -> tuple[Array, Array]:
    """Features, and one label or number for each row. Raises UsageError."""
    rows, labels = features(x, f"{what}'s features"), np.asarray(y)
    if labels.shape != rows.shape[:1]:
        raise UsageError(f"The {what} has one label for each row.", where=f"{labels.shape} for {rows.shape}")
    return rows, labels


def at_least(least: float, **options: float) -> None:
    """Raise UsageError for the first option below ``least``."""
    for name, value in options.items():
        if value < least:
            raise UsageError(f"{name} is at least {least}.", where=str(value))


def above_zero(**options: float) -> None:
    """Raise UsageError for the first option that is not above 0."""
    for name, value in options.items():
        if value <= 0:
            raise UsageError(f"{name} is above 0.", where=str(value))
