"""How many operations are done inside, and how many of them are the source's."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Flops(TorchDispatchMode):
    """FLOPs as torch's own counter has them, but without its hooks, which take no leaf as the input of a module.

    ``source`` are those of the source's passes, backward passes too; ``kept`` those of its passes without gradients,
    which a cache can take the place of. A step backward is the source's if its node of autograd was made while the
    source ran: nodes are numbered in the order in which they are made.
    """

    def __init__(self, source: nn.Module | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = self.source = self.kept = 0
        self._net, self._handles = source, list[Any]()
        self._began: int | None = None  # where the numbers of the source's pass begin, while it runs
        self._passes: list[range] = []

    def __enter__(self) -> Flops:
        if self._net is not None:
            pre = self._net.register_forward_pre_hook(lambda *_: self._begin())
            post = self._net.register_forward_hook(lambda *_: self._end(), always_call=True)  # it may stop on its way
            self._handles = [pre, post]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            cost = int(count(*args, **kwargs, out_val=found))
            self.total += cost
            if self._of_source():
                self.source += cost
                self.kept += 0 if torch.is_grad_enabled() or self._began is None else cost
        return found

    def _of_source(self) -> bool:
        if self._began is not None:
            return True
        node = torch._C._current_autograd_node()  # None outside of backward passes
        return node is not None and any(node._sequence_nr() in one for one in self._passes)

    def _begin(self) -> None:
        self._began = torch._C._autograd._get_sequence_nr()

    def _end(self) -> None:
        if self._began is not None:
            self._passes.append(range(self._began, torch._C._autograd._get_sequence_nr()))
        self._began = None
