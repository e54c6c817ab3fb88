"""What the operators ask of a tensor before they touch it; every refusal names the operator and the shape."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from netgraft.architecture.graph import Shape
from netgraft.channels.index_map import Runs, indices
from netgraft.errors import PlanError


def axis(operator: str, weight: Tensor, dim: int) -> int:
    """The axis counted from the front. Raises PlanError if there is none."""
    if not -weight.ndim <= dim < weight.ndim:
        raise PlanError(f"{operator}: a tensor of shape {tuple(weight.shape)} has no axis {dim}.")
    return dim % weight.ndim


def positive(size: tuple[int, ...]) -> None:
    """Raise ValueError for a kernel size that is none."""
    if not size or min(size) < 1:
        raise ValueError(f"size must be one or more positive lengths: {size}")


def kernel_start(operator: str, weight: Tensor, axes: int) -> int:
    """Where the last ``axes`` axes begin. Raises PlanError if there are fewer, or one of them is empty."""
    shape, first = tuple(weight.shape), weight.ndim - axes
    if first < 0:
        raise PlanError(f"{operator}: a tensor of shape {shape} does not have {axes} kernel axes.")
    if 0 in shape[first:]:
        raise PlanError(f"{operator}: the kernel {shape[first:]} of {shape} is empty.")
    return first


def resized_kernel(operator: str, weight: Tensor, size: tuple[int, ...]) -> int | None:
    """Where the kernel begins that is to become ``size``; None if it has that size. Raises as ``kernel_start``."""
    first = weight.ndim - len(size)
    if first >= 0 and tuple(weight.shape[first:]) == size:
        return None
    return kernel_start(operator, weight, len(size))


def kernel_words(operator: str, before: Shape, size: tuple[int, ...]) -> str:
    """How a resized kernel is told in a ledger: "centre 3x3 to 5x5"."""
    return f"{operator} {'x'.join(map(str, before[2:]))} to {'x'.join(map(str, size))}"


def computable(operator: str, weight: Tensor) -> Tensor:
    """The values in float32 or float64. Raises PlanError for a tensor that does not hold real floats."""
    if not weight.is_floating_point():
        raise PlanError(f"{operator}: cannot compute with {weight.dtype}.", where=f"shape {tuple(weight.shape)}")
    return weight if weight.dtype in (torch.float32, torch.float64) else weight.float()


def entries(operator: str, weight: Tensor, dim: int, index: Runs, *, allow_new: bool = False) -> list[int]:
    """The source entries an index map reads along ``dim``. Raises PlanError if one is not there."""
    read, length = indices(index), weight.shape[dim]
    low, high = min(read, default=0), max(read, default=0)
    if high >= length or (low < 0 and not allow_new):
        wrong = f"entry {high} of {length}" if high >= length else "an entry without a source"
        raise PlanError(f"{operator}: the index map reads {wrong} along axis {dim} of {tuple(weight.shape)}.")
    return read


def select(weight: Tensor, dim: int, read: list[int]) -> Tensor:
    """A new tensor of these entries along ``dim``."""
    return weight.index_select(dim, torch.tensor(read, dtype=torch.long, device=weight.device))


def along(values: Tensor, dim: int, weight: Tensor) -> Tensor:
    """A vector laid along axis ``dim`` of ``weight``, in its dtype and on its device, ready to broadcast."""
    return values.to(weight).reshape(-1, *[1] * (weight.ndim - dim - 1))


def per_row(operator: str, weight: Tensor, source: Mapping[str, Tensor], key: str, what: str) -> Tensor:
    """The source's tensor with one number per row of ``weight``, as a vector. Raises PlanError without one."""
    found, rows = source.get(key), weight.shape[0] if weight.ndim else 0
    if found is None or found.numel() != rows or not rows:
        raise PlanError(f"{operator}: the source has no {key} with {rows} {what}, one per row.")
    return found.flatten()


def add_up(weight: Tensor, dim: int) -> Tensor:
    """The sum over one axis in float64, one entry after the other, so that every machine gives the same bits."""
    total = torch.zeros_like(weight.select(dim, 0), dtype=torch.float64)
    for part in weight.unbind(dim):
        total += part
    return total
