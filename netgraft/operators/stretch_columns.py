from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.channels.index_map import cyclic
from netgraft.errors import PlanError
from netgraft.operators._checks import axis
from netgraft.operators.pad import Pad
from netgraft.operators.share import Share


@dataclass(frozen=True)
class StretchColumns:
    """Let a layer read a residual stream widened by ``stretch-rows``: shares for the copies, zeros for the rest.

    Along ``dim``, of d_s entries, with k = floor(size / d_s): each entry is split among its k copies as by ``share``
    (equally, or drawn with ``seed``), and the remaining size - k d_s entries, whose normalised input is zero, are zero.
    LEMON (arXiv:2310.07999); OPERATORS D6.
    """

    fate: ClassVar[str] = "stacked"

    dim: int = field(metadata={"help": "axis of the stream; negative counts from the end"})
    size: int = field(metadata={"help": "length of that axis in the result"})
    seed: int | None = field(default=None, metadata={"help": "draws unequal shares; none: equal ones"})
    concentration: float = field(default=10.0, metadata={"help": "the larger, the nearer to equal the drawn shares"})

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size cannot be negative: {self.size}")
        Share(self.dim, (), self.seed, self.concentration)

    def __call__(self, weight: Tensor) -> Tensor:
        dim = axis("stretch-columns", weight, self.dim)
        length = weight.shape[dim]
        if length == self.size:
            return weight
        if length == 0 or length > self.size:
            raise PlanError(f"stretch-columns: axis {dim} of {tuple(weight.shape)} cannot be stretched to {self.size}.")
        copies = cyclic(length, self.size - self.size % length)
        return Pad(dim, self.size)(Share(dim, copies, self.seed, self.concentration)(weight))
