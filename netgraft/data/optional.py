"""Packages that only some commands need."""

from __future__ import annotations

import importlib
from types import ModuleType

from netgraft.errors import UsageError


def needed(module: str, package: str, what: str, *, hint: str = "Type pip install 'netgraft[train]'") -> ModuleType:
    """A module of an optional package; UsageError saying what to install without it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{what} needs {package}, which is not installed.", where=str(error), hint=hint) from error
