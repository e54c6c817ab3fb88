from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.channels.index_map import check, identity, runs
from netgraft.operators._checks import axis, entries, select


@dataclass(frozen=True)
class Gather:
    """Read the entries of an index map along one axis: what a producer of channels does to its rows.

    ``out[..., p, ...] = weight[..., g(p), ...]`` along ``dim``, for widening, selection and permutation alike: rows of
    a convolution or linear layer, biases, all four tensors of a batch norm, and depthwise kernels. Any dtype.
    OPERATORS D1 (W'[p] = W[g(p)], b'[p] = b[g(p)]); Net2WiderNet (arXiv:1511.05641).
    """

    fate: ClassVar[str] = "stacked"

    dim: int = field(metadata={"help": "axis to read along; negative counts from the end"})
    index: tuple[tuple[int, int], ...] = field(metadata={"help": "runs (start, count) of source entries"})

    def __post_init__(self) -> None:
        check(self.index)

    def __call__(self, weight: Tensor) -> Tensor:
        dim = axis("gather", weight, self.dim)
        read = entries("gather", weight, dim, self.index)
        if runs(read) == identity(weight.shape[dim]):
            return weight
        return select(weight, dim, read)
