"""Counts what a piece of work costs: floating-point operations of convolutions and products of matrices."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Products(TorchDispatchMode):
    """While it is active it adds up ``flops``, by the formulas of PyTorch's FlopCounterMode, backward passes included.

    What runs on the meta device costs nothing. Solving normal equations, and all that works number by number, is not
    counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        first = next((each for each in args if isinstance(each, Tensor)), None)
        if formula is not None and first is not None and first.device.type != "meta":
            self.flops += formula(*args, **kwargs, out_val=out)
        return out
