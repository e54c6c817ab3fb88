from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.channels.index_map import NEW, check, identity, runs
from netgraft.errors import PlanError
from netgraft.operators._checks import computable, entries

Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Overlay:
    """Lay a tensor into the target's own initial one: channels without a source keep what they were initialised with.

    ``out[p, q, ...] = weight[g(p), h(q), ...]`` where row p and column q both have a source; rows without one are the
    target's own; where only the column has none it is ``rest``: zero, so that a transferred output reads transferred
    inputs alone, or the target's own values. New channels that start fresh train better than copies, which get equal
    gradients and stay copies (OPERATORS part 2, 3). ``norm`` "own" then scales the transferred rows to the Frobenius
    norm that the target's own values have there, for layers that a norm follows (OPERATORS part 2, 2). With ``turned``
    columns take the part of rows: a linear layer [in, out], a transposed convolution.
    """

    fate: ClassVar[str] = "stacked"

    rows: Runs = field(metadata={"help": "runs (start, count) of source entries along axis 0; start -1 for new ones"})
    columns: Runs | None = field(default=None, metadata={"help": "the same along axis 1; none: that axis is kept"})
    norm: str = field(default="source", metadata={"help": "scale of the transferred rows: source or own"})
    rest: str = field(default="zero", metadata={"help": "new columns of transferred rows: zero or own"})
    turned: bool = field(default=False, metadata={"help": "axis 0 reads channels and axis 1 makes them: [in, out]"})
    reads: ClassVar[Literal["own", "source"]] = "own"

    def __post_init__(self) -> None:
        check(self.rows)
        check(self.columns or ())
        if self.norm not in ("source", "own") or self.rest not in ("zero", "own"):
            raise ValueError(f"norm is source or own, rest is zero or own: {self.norm}, {self.rest}")

    def in_words(self, before: Shape, after: Shape) -> str:  # noqa: ARG002
        """How many channels have a source: "32 of 40 out, 16 of 24 in"."""
        words = []
        sides = (
            (("in", self.rows), ("out", self.columns)) if self.turned else (("out", self.rows), ("in", self.columns))
        )
        for side, index in sides:
            if index:
                total, new = sum(count for _, count in index), sum(count for start, count in index if start < 0)
                words.append(f"{total - new} of {total} {side}" if new else f"{total} {side}")
        return ", ".join(words) + (", scale of the initialisation" if self.norm == "own" else "")

    def __call__(self, weight: Tensor, own: Tensor) -> Tensor:
        if weight.ndim < 1 + (self.columns is not None):
            raise PlanError(f"overlay: a tensor of shape {tuple(weight.shape)} has too few axes.")
        if self.turned and self.columns is not None:
            turned = replace(self, rows=self.columns, columns=self.rows, turned=False)
            return turned(weight.transpose(0, 1), own.transpose(0, 1)).transpose(0, 1)
        read = entries("overlay", weight, 0, self.rows, allow_new=True)
        across = identity(weight.shape[1]) if self.columns is None and weight.ndim > 1 else self.columns
        columns = entries("overlay", weight, 1, across, allow_new=True) if across is not None else None
        shape = (len(read), *([] if columns is None else [len(columns)]), *weight.shape[2:])
        if tuple(own.shape) != shape:
            raise PlanError(f"overlay: the target's own tensor has the shape {tuple(own.shape)}, not {shape}.")
        whole = runs(read) == identity(weight.shape[0]) and across in (
            None,
            identity(weight.shape[1] if columns else 0),
        )
        if whole and self.norm == "source":
            return weight
        values = computable("overlay", weight) if weight.is_floating_point() else weight  # rounded once, at the end
        result = own.to(values.dtype, copy=True)
        filled, taken = _pairs(read, weight.device)
        if columns is None:
            result[filled] = values[taken]
        else:
            filled_across, taken_across = _pairs(columns, weight.device)
            rows = result[filled]
            if self.rest == "zero":
                rows.zero_()
            rows[:, filled_across] = values[taken][:, taken_across]
            result[filled] = rows
        if self.norm == "own" and weight.is_floating_point():
            length = result[filled].norm()
            if length > 0:
                result[filled] *= own[filled].to(values.dtype).norm() / length
        return result.to(weight.dtype)


def _pairs(read: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The target entries that have a source, and their sources."""
    of = torch.tensor(read, dtype=torch.long, device=device)
    filled = (of != NEW).nonzero().flatten()
    return filled, of[filled]
