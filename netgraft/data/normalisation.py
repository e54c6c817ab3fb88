"""What a network expects of its images: values from 0 to 1, less a mean, over a standard deviation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from netgraft.errors import NetgraftError, UsageError
from netgraft.models.references import Reference

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, in RGB


@dataclass(frozen=True)
class Normalisation:
    """One number for all channels, or one for each."""

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def tensors(self, channels: int) -> tuple[Tensor, Tensor]:  # each [C, 1, 1]
        """Mean and standard deviation by channel; three numbers for a grey image are averaged. Raises UsageError."""
        import torch

        found = []
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels) and channels != 1:
                what = f"The {name} has {len(values)} numbers for {channels} channels."
                raise UsageError(what, hint=f"Give --{name} one number, or one for each channel.")
            if name == "std" and min(values) <= 0:
                raise UsageError("A standard deviation is a positive number.", where=f"--std {values}")
            numbers = torch.tensor(values, dtype=torch.float32)
            numbers = numbers.mean().repeat(channels) if len(values) != channels else numbers
            found.append(numbers[:, None, None])
        return found[0], found[1]


def parse_statistics(text: str, option: str) -> tuple[float, ...]:
    """``0.485,0.456,0.406`` as numbers. Raises UsageError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        hint = f"For example {option} 0.5 or {option} 0.485,0.456,0.406."
        raise UsageError(f"{option} is one number, or one for each channel.", where=repr(text), hint=hint) from error


def normalisation_of(reference: Reference) -> Normalisation | None:
    """What the pretrained weights of that name expect; None for a user's own architecture."""
    if reference.kind == "netgraft":
        from netgraft.models.embedded import catalogue as embedded

        net = embedded.NETS.get(reference.name)
        return Normalisation((net.mean,), (net.std,)) if net else None
    if reference.kind == "torchvision":
        return Normalisation(*IMAGENET)
    if reference.kind in ("timm", "directory"):  # hf-hub would have to be asked
        from netgraft.models.timm_models import find_timm_model

        try:
            cfg = find_timm_model(reference, {}, option="--target-arg").cfg
        except NetgraftError:
            return None
        return Normalisation(tuple(cfg.mean), tuple(cfg.std))
    return None
