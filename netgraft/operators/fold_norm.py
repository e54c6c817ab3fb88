from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.errors import PlanError
from netgraft.operators._checks import along, computable


@dataclass(frozen=True)
class FoldNorm:
    """Fold the source's batch norm into the layer before it, for a target that has no norm there.

    A kernel's rows are multiplied by gamma / sqrt(var + eps). With ``mean`` the tensor is the norm's beta, and becomes
    the bias that does the rest: beta + (bias - mean) gamma / sqrt(var + eps). Jacob et al., arXiv:1712.05877;
    OPERATORS part 2, 2.
    """

    fate: ClassVar[str] = "stacked"

    variance: str = field(metadata={"help": "key of the norm's running variance in the source"})
    gamma: str | None = field(default=None, metadata={"help": "key of the norm's weight; none: 1"})
    mean: str | None = field(default=None, metadata={"help": "key of its running mean: makes a bias of beta"})
    bias: str | None = field(default=None, metadata={"help": "key of the bias of the layer before it; none: 0"})
    eps: float = field(default=1e-5, metadata={"help": "the norm's eps, which no state_dict holds"})
    reads: ClassVar[Literal["own", "source"]] = "source"

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return "norm folded in"

    def __call__(self, weight: Tensor, source: Mapping[str, Tensor]) -> Tensor:
        keys = [key for key in (self.variance, self.gamma, self.mean, self.bias) if key is not None]
        for key in keys:
            if key not in source or source[key].shape != weight.shape[:1]:
                raise PlanError(f"fold-norm: the source has no {key} of shape {tuple(weight.shape[:1])}.")
        values = computable("fold-norm", weight)
        if self.mean is not None and weight.ndim != 1:
            raise PlanError(f"fold-norm: a tensor of shape {tuple(weight.shape)} is no bias.")
        scale = (source[self.variance].to(values) + self.eps).rsqrt()
        if self.gamma is not None:
            scale = scale * source[self.gamma].to(values)
        if self.mean is None:
            return (values * along(scale, 0, values)).to(weight.dtype)
        centre = -source[self.mean].to(values)
        if self.bias is not None:
            centre = centre + source[self.bias].to(values)
        return (values + centre * scale).to(weight.dtype)
