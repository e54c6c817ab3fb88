from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from netgraft.channels.index_map import check, copies, identity, runs
from netgraft.errors import PlanError
from netgraft.operators._checks import along, axis, computable, entries, select


@dataclass(frozen=True)
class Fold:
    """Merge the entries of one axis that an index map sends to the same entry.

    ``index`` is the map g from the tensor's axis [n] to the result's [n_t], n_t = 1 + its largest entry, all of them
    read. ``mean``: out[j] = mean of weight[q] over g(q) = j, for the rows of a producer, the left inverse of
    ``gather`` bit for bit; ``sum``: their sum, for the columns of a consumer, the left inverse of ``share`` whatever
    its shares. Exact where the merged channels carry equal activations. Types below float32 are computed in float32
    and rounded once. OPERATORS D2.
    """

    fate: ClassVar[str] = "stacked"

    dim: int = field(metadata={"help": "axis to merge along; negative counts from the end"})
    index: tuple[tuple[int, int], ...] = field(metadata={"help": "runs (start, count) of result entries"})
    reduce: Literal["mean", "sum"] = field(default="mean", metadata={"help": "how merged entries are reduced"})

    def __post_init__(self) -> None:
        check(self.index)
        if self.reduce not in ("mean", "sum"):
            raise ValueError(f"reduce must be mean or sum: {self.reduce}")
        goals = {entry for start, count in self.index for entry in range(start, start + count)}
        if goals != set(range(len(goals))):
            raise ValueError(f"index must reach every entry of the result: {self.index}")

    def __call__(self, weight: Tensor) -> Tensor:
        dim = axis("fold", weight, self.dim)
        length = sum(count for _, count in self.index)
        if length != weight.shape[dim]:
            raise PlanError(f"fold: the index map of {length} entries is not axis {dim} of {tuple(weight.shape)}.")
        goals = entries("fold", weight, dim, self.index)
        if runs(goals) == identity(length):
            return weight
        exact = computable("fold", weight)
        merged = copies(self.index, max(goals) + 1)
        base = select(exact, dim, [members[0] for members in merged])
        total = torch.zeros_like(base)
        for rank in range(1, max(map(len, merged))):
            rows = [row for row, members in enumerate(merged) if len(members) > rank]
            part = select(exact, dim, [merged[row][rank] for row in rows])
            if self.reduce == "mean":  # differences, so that the mean of copies is the copy itself
                part -= select(base, dim, rows)
            total.index_add_(dim, torch.tensor(rows, device=weight.device), part)
        if self.reduce == "mean":
            total /= along(torch.tensor([len(members) for members in merged]), dim, total)
        return (base + total).to(weight.dtype)
