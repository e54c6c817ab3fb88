"""Which mean and standard deviation a source's images are normalised by."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

import torch
from torch import nn

from netgraft.models.model import Model

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocessing(NamedTuple):
    """(image - mean) / std per channel, for images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    remark: str = ""  # for the user, where it is a guess


def preprocessing_of(model: Model, module: nn.Module | None = None) -> Preprocessing:
    """What the model's pretrained weights expect, one number per channel of ``model.input_size``.

    ``module`` is the built model, if there is one already. In this order: numbers ``mean`` and ``std`` of a user's
    class or file; of one of netgraft's embedded nets; of torchvision's pretrained weights, or ImageNet's where the
    architecture has none; of timm's configuration in the built module (``pretrained_cfg``). Else 0.5 and 0.5, with a
    remark. Raises what building the model raises.
    """
    kind = model.reference.kind
    channels = model.input_size[0] if model.input_size else None
    if kind == "netgraft":
        from netgraft.models.embedded.catalogue import NETS

        net = NETS[model.reference.name]
        return _fit((net.mean,), (net.std,), channels)
    if kind == "torchvision":
        return _fit(*_of_torchvision(model), channels)
    if module is None:
        with torch.device("meta"):
            module = model.build()
    owners: tuple[object, ...] = (getattr(module, "pretrained_cfg", None), getattr(module, "default_cfg", None))
    if kind in ("file", "module"):
        owners = (type(module), _user_module(model), *owners)
    for owner in owners:
        mean, std = (_numbers(_get(owner, name)) for name in ("mean", "std"))
        if mean and std and min(std) > 0:
            return _fit(mean, std, channels)
    remark = (
        f"{model.name} does not say how its images are normalised: mean 0.5 and standard deviation 0.5 are assumed."
    )
    if kind in ("file", "module"):
        remark += " Its class or file may say mean = (...) and std = (...)."
    return _fit((0.5,), (0.5,), channels, remark)


def _of_torchvision(model: Model) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from netgraft.models.torchvision_models import find_torchvision_model

    weights = find_torchvision_model(model.reference, {}, option=f"--{model.role}-arg", pretrained=False).weights
    transform = weights.transforms() if weights is not None else None
    mean, std = (_numbers(getattr(transform, name, None)) for name in ("mean", "std"))
    return (mean, std) if mean and std else (IMAGENET_MEAN, IMAGENET_STD)


def _user_module(model: Model) -> ModuleType | None:
    """The module of a user's file, which has run already."""
    if model.reference.kind == "module" or model.file is None:
        return sys.modules.get(model.reference.name)
    path = str(model.file.expanduser().resolve())
    return next((each for each in list(sys.modules.values()) if getattr(each, "__file__", None) == path), None)


def _get(owner: object, name: str) -> object:
    return owner.get(name) if isinstance(owner, Mapping) else getattr(owner, name, None)


def _numbers(value: object) -> tuple[float, ...]:
    """A number or numbers as a tuple; empty for anything else, for the names may mean anything in a user's code."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in values):
        return ()
    return tuple(float(each) for each in values)


def _fit(mean: tuple[float, ...], std: tuple[float, ...], channels: int | None, remark: str = "") -> Preprocessing:
    """One number per channel: repeated if there was one, else, where the counts differ, their averages."""
    channels = channels or max(len(mean), len(std))
    if {len(mean), len(std)} <= {1, channels}:
        return Preprocessing(mean * (channels // len(mean)), std * (channels // len(std)), remark)
    remark = f"The mean and standard deviation of {len(mean)} channels are averaged for the model's {channels}."
    return Preprocessing((sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels, remark)
