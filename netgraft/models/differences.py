"""How tensors differ from the state_dict that an architecture expects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class Differences:
    """How tensors differ from what an architecture expects."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]  # key -> shape in the file, shape expected

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)


def compare(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Differences:
    """What keeps ``tensors`` from being a state_dict of the architecture.

    Keys that name the same parameter (tied weights) need only one entry, and ``num_batches_tracked`` none.
    """
    twins = ties(expected)
    missing = tuple(
        key
        for key in expected
        if key not in tensors
        and not any(twin in tensors for twin in twins[key])
        and not key.endswith("num_batches_tracked")
    )
    reshaped = {}
    for key, slot in expected.items():
        if (
            key in tensors
            and not is_lazy(slot)
            and (tensors[key].shape != slot.shape or _kinds_differ(tensors[key], slot))
        ):
            reshaped[key] = (tuple(tensors[key].shape), tuple(slot.shape))
    return Differences(missing, tuple(key for key in tensors if key not in expected), reshaped)


def ties(expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """For every key the other keys of the same parameter."""
    keys: dict[int, list[str]] = {}
    for key, tensor in expected.items():
        keys.setdefault(id(tensor), []).append(key)
    return {key: [other for other in keys[id(tensor)] if other != key] for key, tensor in expected.items()}


def _kinds_differ(tensor: Tensor, slot: Tensor) -> bool:
    return tensor.is_complex() != slot.is_complex() or (tensor.is_floating_point() and not slot.is_floating_point())
