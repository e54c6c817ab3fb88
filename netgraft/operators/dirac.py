from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from netgraft.errors import PlanError


@dataclass(frozen=True)
class Dirac:
    """Replace a kernel by the one that passes its input through: channel j to channel j at the centre tap.

    [out, in, *kernel] with ``w[j, j, centre] = 1`` and zeros elsewhere; a linear layer's [out, in] becomes the identity
    matrix. Channels beyond the narrower side get zeros. The centre of a kernel of size k is tap (k - 1) // 2. Net2Net's
    deeper nets (arXiv:1511.05641); OPERATORS D7.
    """

    fate: ClassVar[str] = "set"

    def __call__(self, weight: Tensor) -> Tensor:
        if weight.ndim < 2:
            raise PlanError(f"dirac: a tensor of shape {tuple(weight.shape)} is no kernel.")
        result = weight.new_zeros(weight.shape)
        centre = tuple((size - 1) // 2 for size in weight.shape[2:])
        for channel in range(min(weight.shape[0], weight.shape[1])):
            result[(channel, channel, *centre)] = 1
        return result
