"""A narrow layer before a layer of the network, which is itself when both are multiplied.

The network reads ``up(down(x))`` instead of its own layer, as long as a pass is inside of ``inserted``. Nothing stands
between the two, so that ``fold`` can write their product to the network's own layer: what is trained, measured and
written is the architecture that was asked for, whose layer has at most the rank of the bottleneck (an average over
steps, --model-ema, may have more).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from netgraft.errors import UsageError
from netgraft.finetune.toolbox.taps import submodule


class Bottleneck(nn.Module):
    """``down`` to ``width`` features, and ``up``, which takes the place of a linear layer or a convolution."""

    def __init__(self, layer: nn.Module, width: int, where: str = "") -> None:
        """Both are drawn anew. Raises UsageError for another kind of layer, ``where`` being its path."""
        super().__init__()
        bias = getattr(layer, "bias", None) is not None
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, width, bias=bias)
            self.up = nn.Linear(width, layer.out_features, bias=bias)
        elif isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
            self.down = nn.Conv2d(layer.in_channels, width, 1, bias=False)  # with one its zeros at borders were others
            size, stride, padding, dilation = layer.kernel_size, layer.stride, layer.padding, layer.dilation
            self.up = nn.Conv2d(width, layer.out_channels, size, stride, padding, dilation, bias=bias)  # type: ignore[arg-type]
        else:
            what = "An adaptation layer stands before a linear layer or a convolution without groups."
            raise UsageError(what, where=f"{where}: {type(layer).__name__}", hint="Name another place.")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The narrow features, and what the layer would put out."""
        narrow = self.down(x)
        return narrow, self.up(narrow)

    @torch.no_grad()
    def fold(self, layer: nn.Module) -> None:
        """Write the product of both to the layer."""
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        down, up = self.down.weight.flatten(1), self.up.weight
        layer.weight.copy_(torch.einsum("ow...,wi->oi...", up, down))
        if layer.bias is not None and self.up.bias is not None:
            layer.bias.copy_(self.up.bias if self.down.bias is None else self.up.bias + up @ self.down.bias)


class Candidates(nn.Module):
    """Bottlenecks of several widths at several places, and the number ``chosen`` of the one that is in use."""

    chosen: Tensor

    def __init__(self, network: nn.Module, kinds: Sequence[tuple[str, int]]) -> None:
        """``kinds`` are (module path, width). Raises UsageError, UnknownName."""
        super().__init__()
        self.kinds = tuple(kinds)
        self.each = nn.ModuleList(Bottleneck(submodule(network, path), width, path) for path, width in kinds)
        self.register_buffer("chosen", torch.zeros((), dtype=torch.int64))

    def get(self, number: int) -> Bottleneck:
        found = self.each[number]
        assert isinstance(found, Bottleneck)
        return found


@contextmanager
def inserted(layer: nn.Module, bottleneck: Bottleneck | None) -> Iterator[list[Tensor]]:
    """Passes inside go through the bottleneck instead of the layer; the narrow features of each are in the list.

    Without a bottleneck nothing is changed.
    """
    found: list[Tensor] = []

    def instead(_: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> Tensor:
        narrow, out = bottleneck(args[0])  # type: ignore[misc]
        found.append(narrow)
        result: Tensor = out
        return result

    handle = layer.register_forward_hook(instead) if bottleneck is not None else None
    try:
        yield found
    finally:
        if handle is not None:
            handle.remove()
