from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar

from torch import Tensor

from netgraft.operators._checks import computable


@dataclass(frozen=True)
class Scale:
    """Multiply every value by one factor, such as the (c_s / c_t)^a of a changed fan-in.

    Any shape, a scalar too; types below float32 are computed in float32 and rounded once. For channels *selected* from
    more, a = 1/2 keeps the variance of independent inputs (Kaiming, arXiv:1502.01852); for copies ``share`` already
    holds the a = 1. OPERATORS D3.
    """

    fate: ClassVar[str] = "stacked"

    factor: float = field(metadata={"help": "what every value is multiplied by"})

    def __post_init__(self) -> None:
        if not isfinite(self.factor):
            raise ValueError(f"factor must be finite: {self.factor}")

    def __call__(self, weight: Tensor) -> Tensor:
        if self.factor == 1:
            return weight
        return (computable("scale", weight) * self.factor).to(weight.dtype)
