"""What layers put out during a forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from netgraft.errors import ForwardError, UnknownName
from netgraft.finetune.protocol import Outputs
from netgraft.models.running import find_submodule


class _Enough(Exception):
    """The last layer that was asked for has run."""


class Taps:
    """A network whose layers' outputs are kept while it runs.

    ``layers`` are module paths; "(model)" is the whole network. Raises UnknownName for one that does not exist. With
    ``compiled`` the network is compiled (torch.compile), and always runs to its end.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str] = (), *, compiled: bool = False) -> None:
        self.module = module
        self.layers = {name: submodule(module, name) for name in dict.fromkeys(layers)}
        self._kept: dict[str, Tensor] | None = None
        if compiled:  # what is compiled runs the hooks that it had then, and no others
            self._kept = {}
            self._hook(self._kept, None)
            module.compile()

    def __call__(self, call: Callable[[], Any], *, last: str | None = None) -> Outputs:
        """Run ``call``, which runs the network once; with ``last``, only until this layer has run.

        A layer that runs several times in a pass counts the first time. Outputs come in float32.
        """
        found: dict[str, Tensor] = {}
        if self._kept is not None:
            self._kept.clear()
            last = None
        with self._watch(found, last) if self._kept is None else nullcontext():
            try:
                logits = first_tensor(call()).float()
            except _Enough:
                one = next(iter(found.values()))
                logits = one.new_zeros((len(one), 0))
        found |= self._kept or {}
        if missing := [name for name in self.layers if name not in found and last is None]:
            raise ForwardError("A paired layer did not run.", where=", ".join(missing), hint="Leave it out of --pairs.")
        return Outputs(logits, found)

    @contextmanager
    def _watch(self, found: dict[str, Tensor], last: str | None) -> Iterator[None]:
        handles = self._hook(found, last)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, found: dict[str, Tensor], last: str | None) -> list[RemovableHandle]:
        def keep(name: str, output: Any) -> None:
            if name not in found:
                found[name] = first_tensor(output).float()
                if name == last:
                    raise _Enough

        return [
            layer.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
            for name, layer in self.layers.items()
        ]


def submodule(module: nn.Module, name: str) -> nn.Module:
    """The module at a path of a layer graph. Raises UnknownName."""
    found = find_submodule(module, name)
    if found is None:
        raise UnknownName("layer", name, [path for path, _ in module.named_modules() if path])
    return found


def first_tensor(output: Any) -> Tensor:
    """The first floating-point tensor of what a module returned. Raises ForwardError without any."""
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    for part in parts:
        if isinstance(part, Tensor) and part.is_floating_point():
            return part
    raise ForwardError("A layer returns no tensor.", where=type(output).__name__)


def each_tensor(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """What a module returned with every tensor changed, in tuples, lists and dicts; what is none of them stays."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, dict):
        found = copy.copy(output)
        for name, part in output.items():
            found[name] = each_tensor(part, change)
        return found
    if isinstance(output, (list, tuple)) and not hasattr(output, "_fields"):
        return type(output)(each_tensor(part, change) for part in output)
    return output


def with_first(output: Any, tensor: Tensor) -> Any:
    """What a module returned with another tensor in place of its first (``first_tensor``)."""
    first = first_tensor(output)
    return each_tensor(output, lambda each: tensor if each is first else each)


@torch.no_grad()
def shapes(module: nn.Module, layers: Sequence[str], images: Tensor) -> dict[str, tuple[int, ...]]:
    """The output shape of each layer, without the batch axis, in the order in which they first run.

    Layers that do not run are left out, and so are those whose output is the network's.
    """
    taps = Taps(module, layers)
    found: dict[str, Tensor] = {}
    with taps._watch(found, None):
        result = first_tensor(module(images))
    same = (result.data_ptr(), result.shape)
    return {name: tuple(seen.shape[1:]) for name, seen in found.items() if (seen.data_ptr(), seen.shape) != same}
