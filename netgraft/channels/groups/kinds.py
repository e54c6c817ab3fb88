"""A rule for each kind of layer: the axes of its output, given those of its input; its tensors' axes are placed.

A rule answers None where it does not cover the layer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from netgraft.architecture.graph import Layer, Node, Slot
from netgraft.architecture.kinds import Mixes
from netgraft.channels.groups.axes import Axis, Concat, Fixed, Product, fix, normal, run, unify
from netgraft.channels.groups.call import Axes, Mixed


class Tensors(dict[str, tuple[Axis, ...]]):
    """The axes of every tensor met so far, by its key, and what they are used for.

    A linear layer ``reads`` the channels along axis 1 of its weight, and makes those along axis 0.
    """

    def __init__(self) -> None:
        self.reads: set[tuple[str, int]] = set()
        self.makes: set[tuple[str, int]] = set()

    def use(self, slot: Slot, reads: Collection[int] = ()) -> Axes:
        """The axes of a tensor, new ones if it has not been met; ``reads`` are those summed over."""
        if slot.key not in self:
            self[slot.key] = tuple(map(run, slot.shape))
        for d in range(len(slot.shape)):
            (self.reads if d in reads else self.makes).add((slot.key, d))
        return list(self[slot.key])

    def place(self, slot: Slot, axes: Axes, reads: Collection[int] = ()) -> None:
        """Let the axes of a tensor be ``axes``; what they were before is made the same."""
        if slot.key in self:
            for one, other in zip(self[slot.key], axes, strict=True):
                unify(one, other)
        else:
            self[slot.key] = tuple(axes)
        self.use(slot, reads)


def _place_all(layer: Layer, known: Tensors, kernel: Axes, output: Axis, reads: int) -> None:
    """Kernel-shaped tensors get the kernel's axes, vectors along the output the output's; anything else is fixed."""
    for role, slot in layer.tensors.items():
        shape, size = slot.shape, output.size
        # A vector that is no bias might as well go along the input: spectral norm keeps one of each.
        unclear = role != "bias" and len(shape) == 1 and size in layer.shape[1:]
        if shape == layer.shape:
            known.place(slot, kernel, [reads])
        elif shape and shape[0] == size and all(n == 1 for n in shape[1:]) and not unclear:
            known.place(slot, [output, *(Fixed(1) for _ in shape[1:])])
        else:
            known.place(slot, [Fixed(n) for n in shape])
            if any(n != 1 for n in shape):
                for axis in (*kernel, output):
                    fix(axis)


def conv(layer: Layer, data: Axes, shape: tuple[int, ...], known: Tensors) -> Axes | None:
    spatial = len(layer.stride)
    if len(data) != spatial + 2 or len(layer.shape) != spatial + 2:
        return None
    space: Axes = []
    for axis, size, slide in zip(
        data[2:], shape[2:], zip(layer.shape[2:], layer.stride, layer.padding, strict=True), strict=True
    ):
        alone = slide == (1, 1, 0) and axis.size == size  # one tap: no position sees its neighbours
        space.append(axis if alone else Fixed(size))
        if not alone:
            fix(axis)
    groups, read = layer.groups, data[1]
    group, into, out = run(groups), run(read.size // groups), run(shape[1] // groups)
    unify(read, Product((group, into)))
    output = Product((group, out))
    taps: Axes = [Fixed(size) for size in layer.shape[2:]]
    if layer.in_axis == 0:
        kernel: Axes = [Product((group, into)), out, *taps]
    else:
        kernel = [output, into, *taps]
    if [axis.size for axis in kernel] != list(layer.shape):
        return None
    _place_all(layer, known, kernel, output, layer.in_axis)
    return [data[0], output, *space]


def linear(layer: Layer, data: Axes, known: Tensors, *, sure: bool) -> Axes | None:
    """The last axis of the input is multiplied with the weight; where it might be another one, it is not ``sure``."""
    inp, out = layer.shape[::-1] if not layer.transposed else layer.shape if len(layer.shape) == 2 else (0, 0)
    if len(layer.shape) != 2 or not data or data[-1].size != inp:
        return None
    if not sure and len(data) > 1 and data[-2].size == inp:
        return None  # either axis may be the one
    output = run(out)
    kernel = [data[-1], output] if layer.transposed else [output, data[-1]]
    for role, slot in layer.tensors.items():
        if layer.transposed and role != "bias" and slot.shape == (out,):
            return None
    _place_all(
        layer if not layer.transposed else replace(layer, shape=(inp, out)),
        known,
        kernel,
        output,
        layer.in_axis,
    )
    return [*data[:-1], output]


def norm(layer: Layer, node: Node, data: Axes, known: Tensors, mixed: Mixed) -> Axes | None:
    shape = tuple(axis.size for axis in data)
    if not layer.shape or not shape:
        return None
    mixes = layer.rules.mixes
    if mixes is Mixes.CHANNELS and len(layer.shape) > 1:
        rank = len(layer.shape)
        if layer.shape != shape[-rank:]:
            return None
        mixed += [(axis, "mean", node.id) for axis in data[-rank:]]
        for slot in layer.tensors.values():
            known.place(slot, list(data[-rank:]) if slot.shape == layer.shape else [Fixed(n) for n in slot.shape])
        return list(data)
    size = max(layer.shape)
    channel = _channel_axis(layer, node, shape)
    if channel is None or any(n not in (1, size) for slot in layer.tensors.values() for n in slot.shape):
        return None
    groups = node.facts.get("groups", layer.groups)
    if groups > 1:
        inner = run(size // groups)
        unify(data[channel], Product((run(groups), inner)))
        mixed.append((inner, "mean", node.id))
    elif mixes in (Mixes.CHANNELS, Mixes.BOTH):
        mixed.append((data[channel], "mean", node.id))
    if mixes in (Mixes.POSITIONS, Mixes.BOTH):
        mixed += [(axis, "mean", node.id) for axis in (*data[1:channel], *data[channel + 1 :])]
    for slot in layer.tensors.values():
        known.place(slot, [data[channel] if n == size else Fixed(1) for n in slot.shape])
    return list(data)


def _channel_axis(layer: Layer, node: Node, shape: tuple[int, ...]) -> int | None:
    """The axis of the input that the norm's weights go along; None if it is unclear."""
    size = max(layer.shape)
    if layer.out_axis == 1:
        return 1 if len(shape) > 1 and shape[1] == size else None
    fits = [d for d, n in enumerate(shape) if d and n == size]
    if len(shape) == 1 or "axis" in node.facts:
        fits = [d for d in [int(node.facts.get("axis", 0))] if shape[d] == size]
    return fits[0] if len(fits) == 1 else None


def embedding(layer: Layer, data: Axes, known: Tensors) -> Axes | None:
    if len(layer.shape) != 2 or len(layer.tensors) != 1:
        return None
    output = run(layer.shape[1])
    (slot,) = layer.tensors.values()
    known.place(slot, [Fixed(layer.shape[0]), output])
    return [*data, output]


def activation(layer: Layer, data: Axes, known: Tensors) -> Axes | None:
    """PReLU: one slope a channel (axis 1), or one for all."""
    for slot in layer.tensors.values():
        per_channel = len(slot.shape) == 1 and len(data) > 1 and slot.shape[0] == data[1].size
        if not per_channel and any(size != 1 for size in slot.shape):
            return None
    for slot in layer.tensors.values():
        known.place(slot, [data[1] if size > 1 else Fixed(1) for size in slot.shape])
    return list(data)


def recurrent(layer: Layer, data: Axes, known: Tensors) -> Axes | None:
    """RNN, GRU, LSTM of one or more floors, to and fro: the hidden units of each direction are a run of their own.

    The gates of a unit stand ``hidden`` rows apart. The sequence, and the batch, keep their order.
    """
    for axis in data[:-1]:
        fix(axis)
    read, placed = data[-1], 0
    for floor in range(len(layer.tensors)):
        outputs: Axes = []
        for suffix in (f"_l{floor}", f"_l{floor}_reverse"):
            if f"weight_ih{suffix}" not in layer.tensors:
                continue
            into, again = layer.tensors[f"weight_ih{suffix}"], layer.tensors[f"weight_hh{suffix}"]
            hidden = run(again.shape[1])
            rows = Product((Fixed(again.shape[0] // hidden.size), hidden))
            if into.shape != (rows.size, read.size) or again.shape[0] != rows.size:
                return None
            known.place(into, [rows, read], [1])
            known.place(again, [rows, hidden], [1])
            for name in ("bias_ih", "bias_hh"):
                if name + suffix in layer.tensors:
                    known.place(layer.tensors[name + suffix], [rows])
            placed += sum(name.endswith(suffix) for name in layer.tensors)
            outputs.append(hidden)
        if outputs:
            read = normal(Concat(tuple(outputs)))
    return [*data[:-1], read] if placed == len(layer.tensors) else None
