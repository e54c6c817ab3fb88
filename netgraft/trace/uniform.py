"""Along which axes a constant says the same everywhere, known without computing: filled, or copied, and left alone.

A bias of zeros that no checkpoint holds is such a buffer, a blur that is the same for every channel another. Whoever
reorders channels may ignore them.
"""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from netgraft.trace.flow import storage_of
from netgraft.trace.structure import tensors_in

Axes = tuple[int, ...]  # along which nothing changes
_FOUND: weakref.WeakKeyDictionary[nn.Module, dict[str, Axes]] = weakref.WeakKeyDictionary()
LIMIT = 1 << 16  # numbers looked at in one tensor


class Fills:
    """Watches what is written while a model is built where nothing is computed."""

    def __init__(self) -> None:
        self.filled: dict[int, tuple[weakref.ref[Tensor], Axes]] = {}  # storage -> the whole tensor in it

    def note(self, func: Any, args: Any, result: Any) -> None:
        """Note one operation that ran."""
        if func in _filling() and _is_whole(result):
            self.filled[storage_of(result)] = weakref.ref(result), tuple(range(result.dim()))
        elif func is torch.ops.aten.copy_.default and _is_whole(args[0]) and args[0].shape == args[1].shape:
            self.filled[storage_of(args[0])] = weakref.ref(args[0]), flat_axes(args[1])
        elif self.filled and func._schema.is_mutable:
            for tensor in tensors_in(args):
                self.filled.pop(storage_of(tensor), None)

    def remember(self, module: nn.Module) -> None:
        """Keep what is known of the buffers of ``module``, which was just built."""
        found = {}
        for name, buffer in module.named_buffers():
            if is_lazy(buffer):  # it gets its shape, and its values, from the first forward pass
                continue
            known, axes = self.filled.get(storage_of(buffer), (None, ()))
            if known is not None and known() is buffer:
                found[name] = axes
        _FOUND[module] = found


def uniform_buffers(module: nn.Module) -> dict[str, Axes]:
    """The axes along which the buffers without a place in the state_dict say the same everywhere."""
    held, known = set(module.state_dict()), _FOUND.get(module, {})
    buffers = ((name, buffer) for name, buffer in module.named_buffers() if name not in held and not is_lazy(buffer))
    return {name: axes for name, buffer in buffers if (axes := known.get(name) or flat_axes(buffer))}


def flat_axes(tensor: Tensor) -> Axes:
    """The axes along which a tensor says the same everywhere: by its strides, or by its values if it has any."""
    axes = {d for d, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)) if size > 1 > stride}
    if not tensor.is_meta and 0 < tensor.numel() <= LIMIT:
        axes |= {d for d in range(tensor.dim()) if bool((tensor == tensor.narrow(d, 0, 1)).all())}
    return tuple(sorted(axes))


def _is_whole(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@cache
def _filling() -> frozenset[Any]:
    aten = torch.ops.aten
    return frozenset({aten.zero_.default, aten.fill_.Scalar, aten.zeros.default, aten.ones.default, aten.full.default})
