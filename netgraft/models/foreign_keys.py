"""A file of weights whose keys are those of another implementation: told by order, shapes and what tensors are for.

Two implementations of one network mostly register the same layers in the same order. So the tensors of the file are put
together to layers (all under one path), and the layers of file and architecture are read side by side: each must hold
tensors for the same purposes (weight, bias, statistics) and of the same shapes. One that does not, and nothing is
taken. That the network computes what it did is likely then, but cannot be checked without the other implementation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod

from torch import Tensor

COUNTER = "num_batches_tracked"
PURPOSES = {
    "weight": "weight",
    "gamma": "weight",
    "kernel": "weight",
    "bias": "bias",
    "beta": "bias",
    "running_mean": "running_mean",
    "moving_mean": "running_mean",
    "running_var": "running_var",
    "moving_variance": "running_var",
}
"""What tensors are for, by the last part of their keys."""
LEAST = 8
"""Fewer tensors than these are too few to tell one network from another."""


def by_order(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The file's tensors under the architecture's keys; None where order and shapes do not tell which is which.

    Axes of length one may differ (a linear layer as a convolution of one pixel): the numbers are laid out anew.
    """
    given, wanted = _layers(tensors), _layers(expected)
    if len(given) != len(wanted) or sum(map(len, wanted)) < LEAST:
        return None
    found: dict[str, Tensor] = {}
    for layer, own in zip(given, wanted, strict=True):
        if layer.keys() != own.keys():
            return None
        for purpose, key in own.items():
            tensor, shape = tensors[layer[purpose]], expected[key].shape
            if _long(tensor.shape) != _long(shape) or prod(tensor.shape) != prod(shape):
                return None
            found[key] = tensor.reshape(shape)
    return found


def _layers(tensors: Mapping[str, Tensor]) -> list[dict[str, str]]:
    """Layer by layer the key of each tensor by its purpose; by its place where the purpose is not known."""
    found: dict[str, dict[str, str]] = {}
    unnamed: Counter[str] = Counter()
    for key in tensors:
        path, _, last = key.rpartition(".")
        if last == COUNTER:
            continue
        purpose = PURPOSES.get(last)
        if purpose is None:
            unnamed[path] += 1
            purpose = f"number {unnamed[path]}"
        found.setdefault(path, {})[purpose] = key
    return list(found.values())


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)
