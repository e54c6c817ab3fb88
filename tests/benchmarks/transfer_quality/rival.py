"""The package iatransfer (Czyzewski, Nowak, Piechowiak 2021, version 1.0.3), with its defaults, where it is installed.

    pip install --no-deps iatransfer inflection

Its other requirements are of 2021 and serve matchings that are not the default; empty stand-ins take their place.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

from netgraft.errors import UsageError

UNUSED = ("graphviz", "karateclub", "matplotlib.pyplot")


def iatransfer(source: nn.Module, target: nn.Module) -> dict[str, Tensor]:
    """The target's state_dict after the transfer. Raises UsageError where the package is missing or fails."""
    try:
        algorithm = _import()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            algorithm(source, target)
    except Exception as error:  # old code on a new torch
        raise UsageError(f"iatransfer does not run: {type(error).__name__}: {error}") from error
    return target.state_dict()


def _import():
    missing = [name for name in UNUSED if name not in sys.modules and not _exists(name)]
    sys.modules.update({name: MagicMock() for name in missing})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from iatransfer.toolkit import IAT
    finally:
        for name in missing:
            del sys.modules[name]
    return IAT()


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent
        return False
