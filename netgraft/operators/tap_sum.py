from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.operators._checks import add_up, computable, kernel_start


@dataclass(frozen=True)
class TapSum:
    """Replace every kernel by one tap, the sum of its taps.

    [..., *kernel] becomes [..., 1, ..., 1] with the last ``axes`` axes summed in float64 and rounded once: the layer's
    response to constant inputs stays, which the centre tap alone would not keep. OPERATORS D4 (iv).
    """

    fate: ClassVar[str] = "interpolated"

    axes: int = field(default=2, metadata={"help": "number of kernel axes, counted from the end"})

    def __post_init__(self) -> None:
        if self.axes < 1:
            raise ValueError(f"axes must be at least 1: {self.axes}")

    def __call__(self, weight: Tensor) -> Tensor:
        first = kernel_start("tap-sum", weight, self.axes)
        if set(weight.shape[first:]) == {1}:
            return weight
        total = add_up(computable("tap-sum", weight).flatten(first), first)
        return total.to(weight.dtype)[(..., *[None] * self.axes)]
