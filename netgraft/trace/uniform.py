"""Which buffers hold one and the same number everywhere, known without computing: they were filled and left alone.

A bias of zeros that no checkpoint holds is such a buffer. Whoever reorders channels may ignore it.
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

_FOUND: weakref.WeakKeyDictionary[nn.Module, frozenset[str]] = weakref.WeakKeyDictionary()


class Fills:
    """Watches what is written while a model is built where nothing is computed."""

    def __init__(self) -> None:
        self.filled: dict[int, weakref.ref[Tensor]] = {}  # storage -> the tensor that fills it with one number

    def note(self, func: Any, args: Any, result: Any) -> None:
        """Note one operation that ran."""
        if func in _filling():
            whole = result.untyped_storage().nbytes() == result.numel() * result.element_size()
            if whole:
                self.filled[storage_of(result)] = weakref.ref(result)
                return
        if self.filled and func._schema.is_mutable:
            for tensor in tensors_in(args):
                self.filled.pop(storage_of(tensor), None)

    def remember(self, module: nn.Module) -> None:
        """Keep the names of the uniform buffers of ``module``, which was just built."""
        names = set()
        for name, buffer in module.named_buffers():
            if is_lazy(buffer):
                continue
            known = self.filled.get(storage_of(buffer))
            if known is not None and known() is buffer:
                names.add(name)
        _FOUND[module] = frozenset(names)


def uniform_buffers(module: nn.Module) -> frozenset[str]:
    """Names of the buffers without a place in the state_dict that hold one number everywhere."""
    held = set(module.state_dict())
    known = _FOUND.get(module, frozenset())
    return frozenset(name for name, b in module.named_buffers() if name not in held and (name in known or _is_flat(b)))


def _is_flat(buffer: Tensor) -> bool:
    if buffer.is_meta or not 0 < buffer.numel() <= 1 << 20:
        return False
    return bool((buffer == buffer.flatten()[0]).all())


@cache
def _filling() -> frozenset[Any]:
    aten = torch.ops.aten
    return frozenset({aten.zero_.default, aten.fill_.Scalar, aten.zeros.default, aten.ones.default, aten.full.default})
