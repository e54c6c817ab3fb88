"""What a network expects of its images: values from 0 to 1, less a mean, over a standard deviation.

One answer for passes, score and fine-tuning. Numbers belong to weights: those that a name comes with, or those that a
training left. A target's weights come from its source, and so do its numbers, unless the user's own file says others.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn

from netgraft.errors import NetgraftError, UsageError
from netgraft.files.checkpoint import read_provenance
from netgraft.models.model import Model

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Said = Literal["user", "training", "catalogue", "nobody"]


@dataclass(frozen=True)
class Normalisation:
    """(image - mean) / std per channel, for images in [0, 1]: one number for all channels, or one for each."""

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    said: Said = field(default="nobody", compare=False)  # who says it: nobody where it is assumed
    of: str = field(default="the default", compare=False)  # the model, file or option that it was taken from
    remark: str = field(default="", compare=False)  # for the user, where it is a guess

    def tensors(self, channels: int) -> tuple[Tensor, Tensor]:  # each [C, 1, 1]
        """Mean and standard deviation by channel; three numbers for a grey image are averaged. Raises UsageError."""
        found = []
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels) and channels != 1:
                what = f"The {name} has {len(values)} numbers for {channels} channels."
                raise UsageError(what, hint=f"Give --{name} one number, or one for each channel.")
            if name == "std" and not min(values) > 0:
                raise UsageError("A standard deviation is a positive number.", where=f"--std {values}")
            found.append(torch.tensor(_spread(values, channels), dtype=torch.float32)[:, None, None])
        return found[0], found[1]

    def __call__(self, images: Tensor) -> Tensor:  # [N, C, H, W]
        """Images in [0, 1] as the network expects them: a new tensor of the same shape, on the same device."""
        mean, std = (each.to(images.device) for each in self.tensors(images.shape[1]))
        return (images - mean).div_(std)

    def fitted(self, channels: int | None) -> Normalisation:
        """One number for each channel; where the counts differ, each channel gets the average, with a remark."""
        channels = channels or max(len(self.mean), len(self.std))
        remark = self.remark
        if not {len(self.mean), len(self.std)} <= {1, channels}:
            count = max(len(self.mean), len(self.std))
            remark = f"The mean and standard deviation of {count} channels are averaged for the model's {channels}."
        return replace(self, mean=_spread(self.mean, channels), std=_spread(self.std, channels), remark=remark)


def _spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def parse_statistics(text: str, option: str) -> tuple[float, ...]:
    """The numbers of ``0.485,0.456,0.406``. Raises UsageError."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        hint = f"For example {option} 0.5 or {option} 0.485,0.456,0.406."
        raise UsageError(f"{option} is one number, or one for each channel.", where=repr(text), hint=hint)
    return numbers


def normalisation_for(
    target: Model,
    sources: Iterable[Model],  # where the target's weights come from, the first one first
    module: nn.Module | None = None,
) -> Normalisation:
    """What the target's images are normalised by, one number per channel.

    In this order: what the target's own file says, or the training of its own weights; what the first source that says
    anything expects, for its weights become the target's; what belongs to the target's name; 0.5 and 0.5, with a
    remark. ``module`` is the built target. Raises what building a model raises.
    """
    own = normalisation_of(target, module)
    if own.said in ("user", "training"):
        return own
    for source in sources:
        found = normalisation_of(source)
        if found.said != "nobody":
            return replace(found, remark="").fitted(_channels(target))
    return own


def normalisation_of(model: Model, module: nn.Module | None = None) -> Normalisation:
    """What the model's weights expect, one number per channel of ``model.input_size``.

    ``module`` is the built model, if there is one already. In this order: what the training recorded that wrote the
    model's weights file; numbers ``mean`` and ``std`` of a user's class or file; of one of netgraft's own nets; of
    torchvision's pretrained weights, or ImageNet's where the architecture has none; of timm's configuration in the
    built module (``pretrained_cfg``). Else 0.5 and 0.5, with a remark. Raises what building the model raises.
    """
    channels = _channels(model)
    if model.weights is not None and model.weights.file is not None:
        trained = trained_on(model.weights.file)
        if trained is not None:
            return trained.fitted(channels)
    mean, std, said = _own(model, module)
    if said != "nobody":
        return Normalisation(mean, std, said, model.name).fitted(channels)
    remark = (
        f"{model.name} does not say how its images are normalised: mean 0.5 and standard deviation 0.5 are assumed."
    )
    if model.reference.kind in ("file", "module"):
        remark += " Its class or file may say mean = (...) and std = (...)."
    return Normalisation(remark=remark).fitted(channels)


def trained_on(file: Path) -> Normalisation | None:
    """What a fine-tuning normalised its images by, from the checkpoint that it wrote; None for any other file."""
    try:
        record = read_provenance(file)["finetune"]["normalisation"]
    except (NetgraftError, KeyError, TypeError):
        return None
    mean, std = (_numbers(_get(record, name)) for name in ("mean", "std"))
    return Normalisation(mean, std, "training", str(file)) if _sound(mean, std) else None


def _channels(model: Model) -> int | None:
    return model.input_size[0] if model.input_size else None


def _own(model: Model, module: nn.Module | None) -> tuple[tuple[float, ...], tuple[float, ...], Said]:
    kind = model.reference.kind
    if kind == "netgraft":
        from netgraft.models import wheels
        from netgraft.models.embedded import catalogue as embedded

        nets: dict[str, embedded.Embedded | wheels.Wheel] = {**embedded.NETS, **wheels.NETS}
        net = nets[model.reference.name]
        return (net.mean,), (net.std,), "catalogue"
    if kind == "torchvision":
        return *_of_torchvision(model), "catalogue"
    if module is None:
        with torch.device("meta"):
            module = model.build()
    owners: list[tuple[object, Said]] = []
    if kind in ("file", "module"):
        owners = [(type(module), "user"), (_user_module(model), "user")]
    owners += [(getattr(module, name, None), "catalogue") for name in ("pretrained_cfg", "default_cfg")]
    for owner, said in owners:
        mean, std = (_numbers(_get(owner, name)) for name in ("mean", "std"))
        if _sound(mean, std):
            return mean, std, said
    return (), (), "nobody"


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


def _sound(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    return bool(mean and std) and all(map(math.isfinite, (*mean, *std))) and min(std) > 0
