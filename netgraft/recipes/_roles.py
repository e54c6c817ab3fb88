"""What the tensors of a layer are for, whatever they are called."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from netgraft.architecture.graph import Layer, Slot

MAGNITUDES = ("weight_g", "parametrizations.weight.original0")
DIRECTIONS = ("weight_v", "parametrizations.weight.original1")
NAMES = {
    "weight": ("weight", "gamma", "scale", "g", "w", "alpha", "kernel"),
    "bias": ("bias", "beta", "shift", "b", "offset"),
    "running_mean": ("running_mean", "moving_mean", "mean"),
    "running_var": ("running_var", "moving_var", "var", "moving_variance"),
}
"""What tensors of norms are called."""


def roles_of(layer: Layer) -> dict[str, Slot]:
    """The tensors of a layer by what they do, "weight" or "bias"; under their own names where that is unclear."""
    found: dict[str, Slot] = {}
    left = dict(layer.tensors)
    for role, known in (("magnitude", MAGNITUDES), ("direction", DIRECTIONS)):
        for name in set(known) & left.keys():
            found[role] = left.pop(name)
    if layer.is_kernel and layer.rules.name != "rnn":
        _take(found, left, "weight", (n for n, slot in left.items() if slot.shape == layer.shape and not slot.buffer))
        sizes = (n for n, slot in left.items() if prod(slot.shape) == layer.out_channels and not slot.buffer)
        _take(found, left, "bias", sizes)
    elif layer.is_norm:
        for role, names in NAMES.items():
            _take(found, left, role, (name for name in left if name in names))
        parameters = [name for name, slot in left.items() if not slot.buffer]
        for role in ("weight", "bias"):
            if role not in found and parameters:
                found[role] = left.pop(parameters.pop(0))
    elif layer.kind in ("parameter", "embedding"):
        _take(found, left, "value", iter(list(left)))
    return found | left


def _take(found: dict[str, Slot], left: dict[str, Slot], role: str, names: Iterable[str]) -> None:
    name = next(iter(names), None)
    if name is not None and role not in found and not (role == "weight" and "direction" in found):
        found[role] = left.pop(name)
