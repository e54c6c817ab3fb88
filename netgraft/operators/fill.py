from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from netgraft.errors import PlanError


@dataclass(frozen=True)
class Fill:
    """Replace every value by one constant, such as the zero last layer of an inserted block.

    Same shape and dtype; a constant that an integer type cannot hold is refused. OPERATORS D7: a residual block whose
    last affine is zero is the identity.
    """

    fate: ClassVar[str] = "set"

    value: float = field(metadata={"help": "what every value becomes"})

    def __call__(self, weight: Tensor) -> Tensor:
        result = torch.full_like(weight, self.value)
        if not weight.is_floating_point() and torch.full((), self.value, dtype=weight.dtype).item() != self.value:
            raise PlanError(f"fill: {weight.dtype} cannot hold {self.value}.", where=f"shape {tuple(weight.shape)}")
        return result
