from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.errors import PlanError
from netgraft.operators._checks import axis


@dataclass(frozen=True)
class Pad:
    """Lengthen one axis with zeros at its end, such as the columns that read channels or heads the source lacks.

    Axis ``dim`` becomes ``size`` long. A consumer padded so ignores the new channels, whatever their weights: exact,
    and the new part is free to be initialised. Any dtype. Composable function-preserving expansions (arXiv:2308.06103);
    OPERATORS D5 (C).
    """

    fate: ClassVar[str] = "stacked"

    dim: int = field(metadata={"help": "axis to lengthen; negative counts from the end"})
    size: int = field(metadata={"help": "length of that axis in the result"})

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size cannot be negative: {self.size}")

    def __call__(self, weight: Tensor) -> Tensor:
        dim = axis("pad", weight, self.dim)
        length = weight.shape[dim]
        if length == self.size:
            return weight
        if length > self.size:
            raise PlanError(f"pad: axis {dim} of {tuple(weight.shape)} is longer than {self.size}.")
        result = weight.new_zeros((*weight.shape[:dim], self.size, *weight.shape[dim + 1 :]))
        result.narrow(dim, 0, length).copy_(weight)
        return result
