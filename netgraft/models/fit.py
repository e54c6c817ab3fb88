"""Lay tensors into an architecture: every key, every shape, its types; or an error that lists the gaps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from netgraft.errors import NonFiniteWeights, WeightsMismatch
from netgraft.models.differences import Differences, compare, ties
from netgraft.models.foreign_keys import by_order
from netgraft.models.state_dicts import find_inner, find_part, find_without_head, nearest, remarks, take_off_wrappers

_CLASS_ARGUMENTS = ("num_classes", "n_classes", "classes", "num_labels", "num_outputs", "out_features")
_LISTED = 4


def fit_weights(
    tensors: Mapping[str, Tensor],
    module: nn.Module,  # on the meta device
    *,
    label: str,
    origin: str,
    option: str,
    place: str,
    fresh: Callable[[], Mapping[str, Tensor]],
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The architecture's whole state_dict, contiguous and of its types, and remarks for the user.

    ``tensors`` are all of a file's, named as it nests them: those that fit are found under any prefix, through
    ``convert``, or in a network that the architecture wraps. ``place`` is what stands before ``::`` when the user types
    a prefix. Keys that name the same parameter (tied weights) need only one entry, and ``num_batches_tracked`` none. A
    head that is missing is taken from ``fresh``, a state_dict of random weights. Raises WeightsMismatch or CorruptFile.
    """
    expected = {key: value for key, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    bare, wrappers = take_off_wrappers(tensors, expected)
    notes = [f"{origin}: taken off the keys: {', '.join(wrappers)}."] if wrappers else []
    part = find_part(bare, expected, place=place, label=label)
    if part is None:
        body = nearest(bare, expected)
        converted = convert(dict(body.tensors)) if convert else None
        if converted is not None and not compare(converted, expected):
            return _fitted(converted, expected), (*notes, f"{origin}: timm converted the keys or shapes for {label}.")
        part = find_without_head(bare, expected, place=place, label=label)
        part = part or find_inner(bare, expected, place=place, label=label)
        foreign = part is None and 2 * len(body.tensors.keys() & expected.keys()) < len(expected)
        translated = by_order(body.tensors, expected) if foreign else None
        if translated is not None:
            said = f"{origin}: its keys are not those of {label}; its layers are, one by one in their order, by shape"
            return _fitted(translated, expected), (*notes, f"{said}. Such a translation is not checked by running.")
        if part is None:
            differences = compare(body.tensors, expected)
            named = f"{origin}, under {body.name}," if body.name else origin
            raise _mismatch(differences, module, label=label, origin=named, option=option)
    notes += remarks(part, bare, expected, place=place, origin=origin)
    drawn = fresh() if part.missing else {}
    return _fitted({**part.tensors, **{key: drawn[key] for key in part.missing}}, expected), tuple(notes)


def _fitted(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of ``expected`` from tensors that have all of its keys, or their twins."""
    twins = ties(expected)
    fitted = {}
    for key, slot in expected.items():
        name = next((k for k in (key, *twins[key]) if k in found), None)
        if name is None:  # num_batches_tracked, absent from old checkpoints
            fitted[key] = torch.zeros(slot.shape, dtype=slot.dtype)
        else:
            fitted[key] = found[name].detach().to("cpu", slot.dtype).contiguous()
    return fitted


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


def _some(items: list[str] | tuple[str, ...]) -> str:
    rest = len(items) - _LISTED
    return ", ".join(items[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
