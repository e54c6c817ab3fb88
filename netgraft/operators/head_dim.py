from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from netgraft.channels.index_map import blocks, check, cyclic, identity, indices, multiplicity
from netgraft.errors import PlanError
from netgraft.operators._checks import along, axis, computable, select


@dataclass(frozen=True)
class HeadDim:
    """Change the width of every attention head in the rows of a query, key or value projection, fused or split.

    Axis ``dim`` is ``heads`` blocks of ``size_from`` entries and becomes ``heads`` blocks of ``size_to``, each read by
    the map g(r) = r mod e_s inside its own block (for a whole axis: ``blocks(identity(heads), e_s, cyclic(e_s,
    e_t))``, the map by which the output projection's columns are shared). ``queries`` are the blocks that hold queries;
    their rows, and those of their bias, are multiplied by sqrt(e_t / e_s) / m(g(r)), with m the number of copies, so
    that q' k' / sqrt(e_t) = q k / sqrt(e_s) exactly. Narrower heads keep their first entries, and the factor is
    (e_t / e_s)^(1/2 - exponent): 1/2 keeps the variance of the logits when the dropped products are independent of the
    kept, 1 their mean. Give every projection its own blocks: a fused q, k, v of h heads has 3 h, of which ((0, h),) are
    queries. Attention that does not divide by sqrt(e) needs a further ``scale`` of sqrt(e_s / e_t); rotary embeddings
    and per-head norms are not kept by a change of width. Types below float32 are computed in float32 and rounded
    once. OPERATORS D5 (B).
    """

    fate: ClassVar[str] = "stacked"

    dim: int = field(metadata={"help": "axis of the heads; negative counts from the end"})
    heads: int = field(metadata={"help": "number of head blocks along that axis, of queries, keys and values together"})
    size_from: int = field(metadata={"help": "width of a head in the source"})
    size_to: int = field(metadata={"help": "width of a head in the result"})
    queries: tuple[tuple[int, int], ...] = field(
        default=(), metadata={"help": "runs (start, count) of the blocks that are queries"}
    )
    exponent: float = field(default=0.5, metadata={"help": "correction of the logits of narrower heads"})

    def __post_init__(self) -> None:
        if min(self.heads, self.size_from, self.size_to) < 1:
            raise ValueError(f"heads and sizes must be positive: {self.heads}, {self.size_from}, {self.size_to}")
        chosen = indices(check(self.queries))
        if not set(chosen) <= set(range(self.heads)):
            raise ValueError(f"queries are not among {self.heads} heads: {self.queries}")

    def __call__(self, weight: Tensor) -> Tensor:
        dim = axis("head-dim", weight, self.dim)
        if weight.shape[dim] != self.heads * self.size_from:
            raise PlanError(
                f"head-dim: axis {dim} of {tuple(weight.shape)} is not {self.heads} heads of {self.size_from}."
            )
        if self.size_from == self.size_to:
            return weight
        inner = cyclic(self.size_from, self.size_to)
        result = select(weight, dim, indices(blocks(identity(self.heads), self.size_from, inner)))
        if not self.queries:
            return result
        ratio, counts = self.size_to / self.size_from, multiplicity(inner, self.size_from)
        power = sqrt(ratio) if ratio > 1 else ratio ** (0.5 - self.exponent)
        factors = torch.ones(self.heads, self.size_to, dtype=torch.float64)
        factors[indices(self.queries)] = torch.tensor(
            [power / counts[entry] for entry in indices(inner)], dtype=torch.float64
        )
        exact = computable("head-dim", result)
        return (exact * along(factors.flatten(), dim, exact)).to(weight.dtype)
