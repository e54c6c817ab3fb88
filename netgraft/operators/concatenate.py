from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.errors import PlanError
from netgraft.operators._checks import axis


@dataclass(frozen=True)
class Concatenate:
    """Put further tensors of the source behind this one, as one projection is made of those of queries, keys, values.

    All must agree in every axis but ``dim``. No value changes, where all have one dtype; with ``gather`` behind it the
    rows come into any order.
    """

    fate: ClassVar[str] = "exact"

    keys: tuple[str, ...] = field(metadata={"help": "keys of the source's tensors to put behind, in order"})
    dim: int = field(default=0, metadata={"help": "axis along which they lie; negative counts from the end"})
    reads: ClassVar[Literal["own", "source"]] = "source"

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        return f"joined with {', '.join(self.keys)}"

    def __call__(self, weight: Tensor, source: Mapping[str, Tensor]) -> Tensor:
        dim = axis("concatenate", weight, self.dim)
        parts = [weight]
        for key in self.keys:
            part = source.get(key)
            shapes = None if part is None else [s[:dim] + s[dim + 1 :] for s in (part.shape, weight.shape)]
            if part is None or shapes is None or shapes[0] != shapes[1]:
                found = "no such tensor" if part is None else f"shape {tuple(part.shape)}"
                raise PlanError(
                    f"concatenate: {key} does not fit behind a tensor of shape {tuple(weight.shape)}.", where=found
                )
            parts.append(part.to(weight.dtype))
        return torch.cat(parts, dim) if self.keys else weight
