from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from netgraft.channels.index_map import NEW, check, identity, runs
from netgraft.errors import PlanError
from netgraft.operators._checks import add_up, axis, computable, entries, select


@dataclass(frozen=True)
class Labels:
    """Rearrange the rows of a classifier by a map of its labels.

    Row i along ``dim`` becomes the source's row ``index[i]``, weight and bias alike; a label without a source (-1, in
    runs (-1, count)) gets zeros, or the mean of all source rows, taken in float64 and rounded once. Labels that both
    classifiers know keep their logits exactly. Any dtype but for ``mean``. OPERATORS D9.
    """

    fate: ClassVar[str] = "stacked"

    index: tuple[tuple[int, int], ...] = field(metadata={"help": "runs (start, count) of source labels; -1: none"})
    fill: Literal["zero", "mean"] = field(default="zero", metadata={"help": "what a label without a source gets"})
    dim: int = field(default=0, metadata={"help": "axis of the labels; negative counts from the end"})

    def __post_init__(self) -> None:
        check(self.index)
        if self.fill not in ("zero", "mean"):
            raise ValueError(f"fill must be zero or mean: {self.fill}")

    def __call__(self, weight: Tensor) -> Tensor:
        dim = axis("labels", weight, self.dim)
        read = entries("labels", weight, dim, self.index, allow_new=True)
        if runs(read) == identity(weight.shape[dim]):
            return weight
        if weight.shape[dim] == 0:
            raise PlanError(f"labels: axis {dim} of {tuple(weight.shape)} has no labels.")
        result = select(weight, dim, [max(entry, 0) for entry in read])
        new = [position for position, entry in enumerate(read) if entry == NEW]
        if self.fill == "mean" and new:
            mean = add_up(computable("labels", weight), dim).unsqueeze(dim) / weight.shape[dim]
            rows = mean.to(weight.dtype).expand(*weight.shape[:dim], len(new), *weight.shape[dim + 1 :])
        else:
            rows = torch.zeros_like(result.narrow(dim, 0, len(new)))
        return result.index_copy_(dim, torch.tensor(new, dtype=torch.long, device=weight.device), rows)
