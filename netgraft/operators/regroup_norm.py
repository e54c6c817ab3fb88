from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.errors import PlanError
from netgraft.operators._checks import along, computable, per_row


@dataclass(frozen=True)
class RegroupNorm:
    """The affine part of a batch norm, for a norm that takes its statistics from each image, over groups of channels.

    A batch norm divides by the deviation s_c of its channel, a group norm by that of the group, s_g. If an image is
    like the average of those that made the statistics, then mean m_g = mean(m_c) and s_g^2 = mean(s_c^2 + m_c^2) -
    m_g^2 over the group's channels, and both norms give the same with gamma_c s_g / s_c as the weight, and beta_c +
    gamma_c (m_g - m_c) / s_c as the bias. So channels keep their sizes and their offsets to one another. One group is
    a layer norm over the channels; as many groups as channels are an instance norm, which keeps both as they are. Group
    norm: Wu and He, arXiv:1803.08494.
    """

    fate: ClassVar[str] = "stacked"

    part: Literal["weight", "bias"] = field(metadata={"help": "which of the two tensors is made"})
    groups: int = field(metadata={"help": "of how many channels' groups the new norm has"})
    mean: str = field(metadata={"help": "key of the norm's running mean in the source"})
    variance: str = field(metadata={"help": "key of its running variance"})
    gamma: str | None = field(default=None, metadata={"help": "key of its weight, for the bias; none: 1"})
    eps: float = field(default=1e-5, metadata={"help": "the norm's eps, which no state_dict holds"})
    reads: ClassVar[Literal["own", "source"]] = "source"

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups must be 1 or more: {self.groups}")

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return f"statistics over {self.groups} group{'s' * (self.groups > 1)} of channels"

    def __call__(self, weight: Tensor, source: Mapping[str, Tensor]) -> Tensor:
        if weight.ndim and len(weight) == self.groups:
            return weight
        values = computable("regroup-norm", weight)
        if not weight.ndim or len(weight) % self.groups:
            shape = tuple(weight.shape)
            raise PlanError(f"regroup-norm: a tensor of shape {shape} cannot be cut into {self.groups} groups.")
        mean, variance = (
            per_row("regroup-norm", weight, source, key, "statistics").double() for key in (self.mean, self.variance)
        )
        variance = variance + self.eps
        by_group = mean.view(self.groups, -1)
        centre = by_group.mean(1, keepdim=True)
        spread = (variance.view(self.groups, -1) + by_group.square()).mean(1, keepdim=True) - centre.square()
        if self.part == "weight":
            factor = spread.sqrt().expand_as(by_group).flatten() / variance.sqrt()
            return (values.double() * along(factor, 0, values.double())).to(weight.dtype)
        offset = (centre - by_group).flatten() / variance.sqrt()
        if self.gamma is not None:
            offset = offset * per_row("regroup-norm", weight, source, self.gamma, "factors").double()
        return (values.double() + along(offset, 0, values.double())).to(weight.dtype)
