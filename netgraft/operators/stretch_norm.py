from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from netgraft.errors import PlanError
from netgraft.operators._checks import add_up, axis, computable
from netgraft.operators.cyclic import Cyclic


@dataclass(frozen=True)
class StretchNorm:
    """The affine of a LayerNorm or RMSNorm over a residual stream widened by ``stretch-rows``.

    Along ``dim``, of d_s entries, with k = floor(d_t / d_s) and eta = sqrt(k d_s / d_t): ``weight`` is eta times the
    source's on the k copies and eta times their mean on the rest (any value is exact there, the normalised input being
    zero); ``bias`` is the source's on the copies and zero on the rest. Exact when the target's eps is eta^2 times the
    source's; eps is no tensor of a state_dict, and with the source's own eps the relative error is about
    eps (1 / eta^2 - 1) / (2 Var). LEMON (arXiv:2310.07999); OPERATORS D6. Types below float32 are computed in float32
    and rounded once.
    """

    fate: ClassVar[str] = "stacked"

    size: int = field(metadata={"help": "length of the axis in the result"})
    role: Literal["weight", "bias"] = field(default="weight", metadata={"help": "which tensor of the norm this is"})
    dim: int = field(default=0, metadata={"help": "axis of the stream; negative counts from the end"})

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size cannot be negative: {self.size}")
        if self.role not in ("weight", "bias"):
            raise ValueError(f"role must be weight or bias: {self.role}")

    def __call__(self, weight: Tensor) -> Tensor:
        dim = axis("stretch-norm", weight, self.dim)
        length = weight.shape[dim]
        if length == self.size:
            return weight
        if length == 0 or length > self.size:
            raise PlanError(f"stretch-norm: axis {dim} of {tuple(weight.shape)} cannot be stretched to {self.size}.")
        copied = self.size - self.size % length
        if copied == self.size:
            return Cyclic(dim, copied)(weight)
        exact = computable("stretch-norm", weight)
        mean = (add_up(exact, dim) / length).to(exact).unsqueeze(dim)
        value = mean if self.role == "weight" else torch.zeros_like(mean)
        rest = value.expand(*weight.shape[:dim], self.size - copied, *weight.shape[dim + 1 :])
        result = torch.cat([Cyclic(dim, copied)(exact), rest], dim)
        if self.role == "weight":
            result *= sqrt(copied / self.size)
        return result.to(weight.dtype)
