from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from netgraft.errors import PlanError
from netgraft.operators._checks import add_up, axis, computable
from netgraft.operators.cyclic import Cyclic


@dataclass(frozen=True)
class StretchRows:
    """Widen what is added to a normalised residual stream by any ratio: whole copies, then the mean for the rest.

    Along ``dim``, of d_s entries, with k = floor(size / d_s): k copies of all entries, and the remaining
    size - k d_s entries are each their mean (``zero`` for RMSNorm, which subtracts no mean). All that writes to the
    stream is stretched alike: rows and biases of embeddings and output projections, position embeddings, class and
    register tokens. Then a LayerNorm over the stream has the source's mean, eta^2 = k d_s / d_t times its variance, and
    sees zero in the rest. A layer-scale between the projection and the stream must first be multiplied into the
    projection (the mean of products is not the product of means), and what mixes the stream channel by channel, as a
    depthwise convolution does, has no exact rest. LEMON (arXiv:2310.07999); OPERATORS D6. The mean is taken in float64
    and rounded once; otherwise any dtype.
    """

    fate: ClassVar[str] = "stacked"

    dim: int = field(metadata={"help": "axis of the stream; negative counts from the end"})
    size: int = field(metadata={"help": "length of that axis in the result"})
    rest: Literal["mean", "zero"] = field(
        default="mean", metadata={"help": "what stands behind the copies: mean (LayerNorm) or zero (RMSNorm)"}
    )

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size cannot be negative: {self.size}")
        if self.rest not in ("mean", "zero"):
            raise ValueError(f"rest must be mean or zero: {self.rest}")

    def __call__(self, weight: Tensor) -> Tensor:
        dim = axis("stretch-rows", weight, self.dim)
        length = weight.shape[dim]
        if length == self.size:
            return weight
        if length == 0 or length > self.size:
            raise PlanError(f"stretch-rows: axis {dim} of {tuple(weight.shape)} cannot be stretched to {self.size}.")
        copied = Cyclic(dim, self.size - self.size % length)(weight)
        if copied.shape[dim] == self.size:
            return copied
        if self.rest == "zero":
            value = torch.zeros_like(weight.narrow(dim, 0, 1))
        else:
            total = add_up(computable("stretch-rows", weight), dim).unsqueeze(dim)
            value = (total / length).to(weight.dtype)
        rest = value.expand(*weight.shape[:dim], self.size % length, *weight.shape[dim + 1 :])
        return torch.cat([copied, rest], dim)
