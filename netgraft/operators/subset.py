from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from netgraft.channels.index_map import indices, uniform
from netgraft.errors import PlanError
from netgraft.operators._checks import axis, select


@dataclass(frozen=True)
class Subset:
    """Take some of the entries along one axis, in order: evenly spaced ones, the first ones, or ones drawn at random.

    Which, depends on the two lengths alone (and on ``seed``): axes that hold the same channels lose the same ones.
    Evenly spaced are every (n / m)-th of n entries where that is whole, else linspace(0, n - 1, m) rounded. Weight
    selection (Xu et al., ICLR 2024, arXiv:2311.18823). Any dtype.
    """

    fate: ClassVar[str] = "stacked"

    dim: int = field(metadata={"help": "axis to shorten; negative counts from the end"})
    size: int = field(metadata={"help": "how many entries are left"})
    mode: Literal["uniform", "consecutive", "random"] = field(
        default="uniform", metadata={"help": "evenly spaced entries, the first ones, or ones drawn at random"}
    )
    seed: int = field(default=0, metadata={"help": "draws the random ones"})

    def __post_init__(self) -> None:
        positive = self.size > 0
        if not positive or self.mode not in ("uniform", "consecutive", "random"):
            raise ValueError(f"size is positive, mode is uniform, consecutive or random: {self.size}, {self.mode}")

    def __call__(self, weight: Tensor) -> Tensor:
        dim = axis("subset", weight, self.dim)
        length = weight.shape[dim]
        if length < self.size:
            raise PlanError(f"subset: axis {dim} of {tuple(weight.shape)} does not have {self.size} entries.")
        return weight if length == self.size else select(weight, dim, self._entries(length))

    def _entries(self, length: int) -> list[int]:
        if self.mode == "uniform":
            return indices(uniform(length, self.size)) if self.size > 1 else [0]
        if self.mode == "consecutive":
            return list(range(self.size))
        return sorted(random.Random(f"{self.seed} {length} {self.size}").sample(range(length), self.size))
