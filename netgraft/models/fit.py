"""Lay tensors into an architecture: every key, every shape, its types; or an error that lists the gaps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from netgraft.errors import NonFiniteWeights, WeightsMismatch
from netgraft.models.weights_file import strip_wrappers

_CLASS_ARGUMENTS = ("num_classes", "n_classes", "classes", "num_labels", "num_outputs", "out_features")
_LISTED = 4


@dataclass(frozen=True)
class Differences:
    """How tensors differ from what an architecture expects."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]  # key -> shape in the file, shape expected

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)


def fit_weights(
    tensors: Mapping[str, Tensor],
    module: nn.Module,  # on the meta device
    *,
    label: str,
    origin: str,
    option: str,
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The architecture's whole state_dict, contiguous and of its types, and remarks for the user.

    Keys are tried as they are, without the prefixes of wrappers, and through ``convert``. Keys that name the same
    parameter (tied weights) need only one entry, and ``num_batches_tracked`` none. Raises WeightsMismatch.
    """
    expected = {key: value for key, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    notes: list[str] = []
    found = dict(tensors)
    if compare(found, expected):
        found = strip_wrappers(tensors)
    if differences := compare(found, expected):
        converted = convert(found) if convert else None
        if converted is None or compare(converted, expected):
            raise _mismatch(differences, module, label=label, origin=origin, option=option)
        found = converted
        notes.append(f"{origin}: timm converted the keys or shapes for {label}.")
    ties = _ties(expected)
    fitted = {}
    for key, slot in expected.items():
        twin = next((k for k in (key, *ties[key]) if k in found), None)
        if twin is None:  # num_batches_tracked, absent from old checkpoints
            fitted[key] = torch.zeros(slot.shape, dtype=slot.dtype)
        else:
            fitted[key] = found[twin].detach().to("cpu", slot.dtype).contiguous()
    return fitted, tuple(notes)


def compare(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Differences:
    """What keeps ``tensors`` from being a state_dict of the architecture."""
    ties = _ties(expected)
    missing = tuple(
        key
        for key in expected
        if key not in tensors
        and not any(twin in tensors for twin in ties[key])
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


def nonfinite(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How many values of each tensor are NaN or infinity; tensors without any are left out."""
    counts = {
        key: int((~(tensor.float() if tensor.dtype.itemsize == 1 else tensor).isfinite()).sum())
        for key, tensor in tensors.items()
        if tensor.is_floating_point() or tensor.is_complex()
    }
    return {key: count for key, count in counts.items() if count}


def check_finite(tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Raise NonFiniteWeights naming the tensors with NaN or infinity."""
    bad = nonfinite(tensors)
    if bad:
        listed = _some([f"{key} ({count} of {tensors[key].numel()} values)" for key, count in bad.items()])
        plural = "s" if len(bad) > 1 else ""
        raise NonFiniteWeights(
            f"{len(bad)} tensor{plural} of {origin} hold{'' if plural else 's'} NaN or infinity.",
            where=listed,
            hint="Add --allow-nonfinite to use them all the same.",
        )


def _mismatch(differences: Differences, module: nn.Module, *, label: str, origin: str, option: str) -> WeightsMismatch:
    missing, unexpected, reshaped = differences.missing, differences.unexpected, differences.reshaped
    counts = [
        f"{len(keys)} {what}"
        for keys, what in ((missing, "missing"), (unexpected, "unexpected"), (reshaped, "of another shape"))
        if keys
    ]
    shapes = [f"{key} {list(has)} there, {list(wants)} in {label}" for key, (has, wants) in reshaped.items()]
    lines = [
        f"{what}: {_some(keys)}"
        for keys, what in ((list(missing), "Missing"), (list(unexpected), "Unexpected"), (shapes, "Shapes"))
        if keys
    ]
    hint = "Name the architecture that the weights belong to"
    hint += f", or give its arguments: {option} NAME=VALUE."
    if not missing and not unexpected and (classes := _other_classes(reshaped)):
        parameters = inspect.signature(type(module).__init__).parameters
        argument = next((name for name in _CLASS_ARGUMENTS if name in parameters), "num_classes")
        hint = f"The weights have a classifier for {classes} classes: add {option} {argument}={classes}."
    return WeightsMismatch(
        f"{origin} does not fit {label}: keys {', '.join(counts)}.", where="\n".join(lines), hint=hint
    )


def _other_classes(reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> int:
    """The number of classes in the weights if only classifiers differ, and only in that number; else 0."""
    lengths = {(has[:1], wants[:1]) for has, wants in reshaped.values()}
    inner = all(has and wants and has[1:] == wants[1:] for has, wants in reshaped.values())
    return next(iter(lengths))[0][0] if inner and len(lengths) == 1 and len(reshaped) <= 4 else 0


def _kinds_differ(tensor: Tensor, slot: Tensor) -> bool:
    return tensor.is_complex() != slot.is_complex() or (tensor.is_floating_point() and not slot.is_floating_point())


def _ties(expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """For every key the other keys of the same parameter."""
    keys: dict[int, list[str]] = {}
    for key, tensor in expected.items():
        keys.setdefault(id(tensor), []).append(key)
    return {key: [other for other in keys[id(tensor)] if other != key] for key, tensor in expected.items()}


def _some(items: list[str] | tuple[str, ...]) -> str:
    rest = len(items) - _LISTED
    return ", ".join(items[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
