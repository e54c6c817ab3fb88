from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from netgraft.errors import PlanError
from netgraft.operators._checks import computable


@dataclass(frozen=True)
class RankOne:
    """One half of a dense kernel's split into a depthwise and a pointwise one.

    For each input channel c the matrix W[:, c] of shape [out, taps] is replaced by the nearest one of rank one,
    u_c v_c': "spatial" gives the filters v_c, [in, 1, *kernel] of norm 1, "channel" the mixing weights u_c,
    [out, in, 1, ...]. The sign is such that no filter's sum is negative. OPERATORS part 2, 6.
    """

    fate: ClassVar[str] = "stacked"

    part: Literal["spatial", "channel"] = field(metadata={"help": "spatial: depthwise filters; channel: their mixing"})

    def __call__(self, weight: Tensor) -> Tensor:
        if weight.ndim < 3 or not weight.numel():
            raise PlanError(f"rank-one: a tensor of shape {tuple(weight.shape)} has no kernels.")
        by_input = computable("rank-one", weight).flatten(2).transpose(0, 1)  # [in, out, taps]
        left, sizes, right = torch.linalg.svd(by_input, full_matrices=False)
        sign = torch.where(right[:, 0].sum(1) < 0, -1.0, 1.0).to(by_input)
        if self.part == "spatial":
            filters: Tensor = right[:, 0] * sign[:, None]
            return filters.reshape(weight.shape[1], 1, *weight.shape[2:]).to(weight.dtype)
        mixing: Tensor = left[:, :, 0] * (sizes[:, 0] * sign)[:, None]  # [in, out]
        return mixing.T.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2)).to(weight.dtype)
