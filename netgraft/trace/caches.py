"""Caches outside the model that a pass without numbers has filled.

A table of positions is often kept by ``functools.lru_cache``, once for all models. Filled on the meta device it holds
no numbers, and the next real pass would read whatever lies in memory. Such caches are emptied.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import _lru_cache_wrapper
from typing import Any

from torch import nn


def forget(module: nn.Module) -> None:
    """Empty the caches that the classes of the model's modules can reach by name: their own, and those of their files.

    A cache behind a decorator, as functools.wraps leaves it, is found too.
    """
    classes = {kind for part in module.modules() for kind in type(part).__mro__ if _is_foreign(kind.__module__)}
    files = {kind.__module__ for kind in classes} & sys.modules.keys()
    for space in (*classes, *(sys.modules[name] for name in files)):
        for cache in _caches(list(vars(space).values())):
            cache.cache_clear()


def _is_foreign(name: str) -> bool:
    return name.partition(".")[0] not in ("torch", "builtins", "typing", "abc")


def _caches(values: Iterable[Any]) -> Iterator[_lru_cache_wrapper[Any]]:
    for value in values:
        function = getattr(value, "__func__", value)  # of a static method
        inside = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _is_filled(cell)]
        yield from (each for each in (function, *inside) if isinstance(each, _lru_cache_wrapper))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
