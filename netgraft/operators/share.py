from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from netgraft.channels.index_map import check, identity, multiplicity, runs
from netgraft.errors import PlanError
from netgraft.operators._checks import along, axis, computable, entries, select


@dataclass(frozen=True)
class Share:
    """Split each entry among the copies of an index map: what a consumer of channels does to its columns.

    ``out[..., q, ...] = alpha_q weight[..., g(q), ...]`` along ``dim``, with one alpha_q for all other axes and the
    alphas of the copies of one entry summing to 1, so that inputs x'_q = x_g(q) give the output they gave. Every entry
    must be read. Without ``seed`` alpha_q = 1 / m(g(q)), where m counts the copies (Net2WiderNet, arXiv:1511.05641).
    With ``seed`` the alphas of one entry are drawn from Dirichlet(``concentration``), in float64 from the
    seed's own generator: as exact, and the copies get different gradients, so that they do not stay copies (LEMON,
    arXiv:2310.07999). Types below float32 are computed in float32 and rounded once. OPERATORS D1.
    """

    fate: ClassVar[str] = "stacked"

    dim: int = field(metadata={"help": "axis to widen; negative counts from the end"})
    index: tuple[tuple[int, int], ...] = field(metadata={"help": "runs (start, count) of source entries"})
    seed: int | None = field(default=None, metadata={"help": "draws unequal shares; none: equal ones"})
    concentration: float = field(default=10.0, metadata={"help": "the larger, the nearer to equal the drawn shares"})

    def __post_init__(self) -> None:
        check(self.index)
        if not self.concentration > 0:
            raise ValueError(f"concentration must be positive: {self.concentration}")

    def __call__(self, weight: Tensor) -> Tensor:
        dim = axis("share", weight, self.dim)
        read = entries("share", weight, dim, self.index)
        counts = multiplicity(self.index, weight.shape[dim])
        if 0 in counts:
            raise PlanError(f"share: no copy of entry {counts.index(0)} along axis {dim} of {tuple(weight.shape)}.")
        if runs(read) == identity(weight.shape[dim]):
            return weight
        result = select(computable("share", weight), dim, read)
        if self.seed is None:
            copies = torch.tensor([counts[entry] for entry in read])
            return result.div_(along(copies, dim, result)).to(weight.dtype)
        return result.mul_(along(self._shares(read, len(counts)), dim, result)).to(weight.dtype)

    def _shares(self, read: list[int], length: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed or 0)
        shape = torch.full((len(read),), self.concentration, dtype=torch.float64)
        drawn = torch._standard_gamma(shape, generator=generator).clamp_(min=torch.finfo(torch.float64).tiny)
        source = torch.tensor(read, dtype=torch.long)
        return drawn / torch.zeros(length, dtype=torch.float64).index_add_(0, source, drawn)[source]
