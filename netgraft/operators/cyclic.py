from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from netgraft.errors import PlanError


@dataclass(frozen=True)
class Cyclic:
    """Repeat the source's channels in a circle, or keep the first ones (HMT's cyclic stack).

    ``out[..., j, ...] = weight[..., j mod n, ...]`` along ``dim``, whose length is n before and ``size`` after:
    [a, b, c] becomes [a, b, c, a, b] for size 5 and [a, b] for size 2. Any dtype. HMT 2.3.2, Figure 4 (b).
    """

    fate: ClassVar[str] = "stacked"

    dim: int = field(metadata={"help": "axis to resize; negative counts from the end"})
    size: int = field(metadata={"help": "length of that axis in the result"})

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size cannot be negative: {self.size}")

    def __call__(self, weight: Tensor) -> Tensor:
        if not -weight.ndim <= self.dim < weight.ndim:
            raise PlanError(f"cyclic: a tensor of shape {tuple(weight.shape)} has no axis {self.dim}.")
        length = weight.shape[self.dim]
        if length == self.size:
            return weight
        if length == 0:
            raise PlanError(f"cyclic: axis {self.dim} of {tuple(weight.shape)} is empty and cannot fill {self.size}.")
        return weight.index_select(self.dim, torch.arange(self.size, device=weight.device) % length)
