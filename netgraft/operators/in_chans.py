from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.errors import PlanError
from netgraft.operators._checks import add_up, axis, computable
from netgraft.operators.cyclic import Cyclic


@dataclass(frozen=True)
class InChans:
    """Let a stem read images with another number of channels, such as grey or multispectral ones.

    [out, c_s, *kernel] becomes [out, size, *kernel]. To one channel: the sum over the source's, exact for a grey image
    that was shown in all of them. Otherwise the source's channels in a circle times c_s / size, which keeps the
    response to equal channels: exactly where ``size`` is a multiple of c_s, on average else. Types below float32 are
    computed in float32 (the sum in float64) and rounded once. timm's ``adapt_input_conv``; OPERATORS D9.
    """

    fate: ClassVar[str] = "stacked"

    size: int = field(metadata={"help": "number of input channels of the target"})

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1: {self.size}")

    def __call__(self, weight: Tensor) -> Tensor:
        dim = axis("in-chans", weight, 1)
        length = weight.shape[dim]
        if length == self.size:
            return weight
        if length == 0:
            raise PlanError(f"in-chans: axis 1 of {tuple(weight.shape)} is empty.")
        exact = computable("in-chans", weight)
        if self.size == 1:
            return add_up(exact, dim).unsqueeze(dim).to(weight.dtype)
        return (Cyclic(dim, self.size)(exact) * (length / self.size)).to(weight.dtype)
