"""Tensors inside tuples, lists, dictionaries and dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor


def tensors_in(structure: Any) -> list[Tensor]:
    """Every tensor in ``structure``, in order; one that stands in two places comes twice."""
    found: list[Tensor] = []
    _collect(structure, found)
    return found


def map_leaves(function: Callable[[Any], Any], structure: Any) -> Any:
    """``structure`` in plain tuples, lists and dicts, with ``function`` applied to everything else in it."""
    if isinstance(structure, dict):
        return {str(key): map_leaves(function, value) for key, value in structure.items()}
    if isinstance(structure, tuple):
        return tuple(map_leaves(function, item) for item in structure)
    if isinstance(structure, list):
        return [map_leaves(function, item) for item in structure]
    if dataclasses.is_dataclass(structure) and not isinstance(structure, type):
        return {field.name: map_leaves(function, getattr(structure, field.name)) for field in _fields(structure)}
    return function(structure)


def map_tensors(function: Callable[[Tensor], Any], structure: Any) -> Any:
    """``structure``, of the same types, with ``function`` applied to every tensor in it."""
    if isinstance(structure, Tensor):
        return function(structure)
    if dataclasses.is_dataclass(structure) and not isinstance(structure, type):
        names = [field.name for field in _fields(structure) if field.init]
        return dataclasses.replace(structure, **{n: map_tensors(function, getattr(structure, n)) for n in names})
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(map_tensors(function, item) for item in structure))
    if type(structure) in (tuple, list):
        return type(structure)(map_tensors(function, item) for item in structure)
    if isinstance(structure, dict):
        return {key: map_tensors(function, value) for key, value in structure.items()}
    return structure


def first_shape(structure: Any) -> tuple[int, ...]:
    """Shape of the first tensor in a structure, () without one."""
    if isinstance(structure, Tensor):
        return tuple(structure.shape)
    found = tensors_in(structure)
    return tuple(found[0].shape) if found else ()


def dashed(shape: tuple[int, ...]) -> str:
    """2x3x224x224."""
    return "x".join(map(str, shape))


def _collect(structure: Any, found: list[Tensor]) -> None:
    if isinstance(structure, Tensor):
        found.append(structure)
    elif isinstance(structure, (tuple, list)):
        for item in structure:
            _collect(item, found)
    elif isinstance(structure, dict):
        for item in structure.values():
            _collect(item, found)
    elif hasattr(structure, "__dataclass_fields__") and not isinstance(structure, type):
        for field in _fields(structure):
            _collect(getattr(structure, field.name), found)


def _fields(structure: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(structure)
