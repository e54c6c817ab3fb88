from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar

from torch import Tensor

from netgraft.errors import PlanError
from netgraft.operators._checks import axis, computable


@dataclass(frozen=True)
class ScalePart:
    """Multiply a range of entries along one axis by a factor, such as the queries of a fused projection.

    Entries ``start`` to ``start + count - 1`` of axis ``dim`` are multiplied, the others keep their bits. Types below
    float32 are computed in float32 and rounded once.
    """

    fate: ClassVar[str] = "stacked"

    dim: int = field(metadata={"help": "axis of the range; negative counts from the end"})
    start: int = field(metadata={"help": "first entry to multiply"})
    count: int = field(metadata={"help": "number of entries to multiply"})
    factor: float = field(metadata={"help": "what they are multiplied by"})

    def __post_init__(self) -> None:
        if min(self.start, self.count) < 0:
            raise ValueError(f"start and count cannot be negative: {self.start}, {self.count}")
        if not isfinite(self.factor):
            raise ValueError(f"factor must be finite: {self.factor}")

    def __call__(self, weight: Tensor) -> Tensor:
        dim = axis("scale-part", weight, self.dim)
        if self.start + self.count > weight.shape[dim]:
            last = self.start + self.count - 1
            raise PlanError(f"scale-part: axis {dim} of {tuple(weight.shape)} has no entry {last}.")
        if self.factor == 1 or self.count == 0:
            return weight
        part = weight.narrow(dim, self.start, self.count)
        result = weight.clone()
        result.narrow(dim, self.start, self.count).copy_(computable("scale-part", part) * self.factor)
        return result
