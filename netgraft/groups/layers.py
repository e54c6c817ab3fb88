"""What each kind of layer says about the axes of its tensors, given the axes of its input."""

from __future__ import annotations

from netgraft.graph import Layer, Slot
from netgraft.groups.axes import Axis, Fixed, Product, Var, fix, unify
from netgraft.groups.operations import Mixed

Axes = list[Axis]
Tensors = dict[str, tuple[Axis, ...]]  # state_dict key -> axes


def call_layer(layer: Layer, inputs: list[Axes], shape: tuple[int, ...], known: Tensors, mixed: Mixed) -> Axes:
    """The axes of the layer's output; ``known`` gets the axes of its tensors (a second call makes them equal).

    A layer without a rule, or with several inputs or tensors it cannot place, is fixed.
    """
    data = inputs[0] if len(inputs) == 1 else None
    if not inputs and layer.in_shape:  # fed by a constant: a buffer of coordinates, say
        data = [Fixed(size) for size in layer.in_shape]
    output = None
    if data is not None and len(data) == len(layer.in_shape or data):
        if layer.kind.startswith("conv") and layer.kind != "conv_dynamic":
            output = _conv(layer, data, shape, known)
        elif layer.kind == "linear":
            output = _linear(layer, data, known)
        elif layer.is_norm:
            output = _norm(layer, data, known, mixed)
        elif layer.kind == "embedding":
            output = _embedding(layer, data, known)
        elif layer.kind == "activation":
            output = _activation(layer, data, known)
    if output is not None and [axis.size for axis in output] == list(shape):
        return output
    for axes in inputs:
        for axis in axes:
            fix(axis)
    for slot in layer.tensors.values():
        _place(known, slot, [Fixed(size) for size in slot.shape])
    return [Fixed(size) for size in shape]


def _place(known: Tensors, slot: Slot, axes: Axes) -> None:
    if slot.key in known:
        for one, other in zip(known[slot.key], axes, strict=True):
            unify(one, other)
    else:
        known[slot.key] = tuple(axes)


def _place_all(layer: Layer, known: Tensors, kernel: Axes, output: Axis) -> None:
    """Kernel-shaped tensors get the kernel's axes, vectors along the output the output's; anything else is fixed."""
    for slot in layer.tensors.values():
        if slot.shape == layer.shape:
            _place(known, slot, kernel)
        elif slot.shape and slot.shape[0] == output.size and all(size == 1 for size in slot.shape[1:]):
            _place(known, slot, [output, *(Fixed(1) for _ in slot.shape[1:])])
        elif all(size == 1 for size in slot.shape):
            _place(known, slot, [Fixed(size) for size in slot.shape])
        else:
            _place(known, slot, [Fixed(size) for size in slot.shape])
            for axis in (*kernel, output):
                fix(axis)


def _conv(layer: Layer, data: Axes, shape: tuple[int, ...], known: Tensors) -> Axes | None:
    spatial = len(layer.stride)
    if len(data) != spatial + 2 or len(layer.shape) != spatial + 2:
        return None
    for axis in data[2:]:
        fix(axis)
    groups, read = layer.groups, data[1]
    inner_in, inner_out = read.size // groups, shape[1] // groups
    group = Var(groups) if groups > 1 else Fixed(1)
    into: Axis = Var(inner_in) if inner_in > 1 else Fixed(1)
    out: Axis = Var(inner_out) if inner_out > 1 else Fixed(1)
    unify(read, Product((group, into)))
    output = Product((group, out))
    taps: Axes = [Fixed(size) for size in layer.shape[2:]]
    if layer.kind.startswith("conv_transpose"):
        kernel: Axes = [Product((group, into)), out, *taps]
    else:
        kernel = [output, into, *taps]
    if [axis.size for axis in kernel] != list(layer.shape):
        return None
    _place_all(layer, known, kernel, output)
    return [data[0], output, *map(Fixed, shape[2:])]


def _linear(layer: Layer, data: Axes, known: Tensors) -> Axes | None:
    if len(layer.shape) != 2 or not data or data[-1].size != layer.shape[1]:
        return None
    output: Axis = Var(layer.shape[0]) if layer.shape[0] > 1 else Fixed(1)
    _place_all(layer, known, [output, data[-1]], output)
    return [*data[:-1], output]


def _norm(layer: Layer, data: Axes, known: Tensors, mixed: Mixed) -> Axes | None:
    shape = tuple(axis.size for axis in data)
    if layer.kind in ("batch_norm", "instance_norm", "group_norm"):
        channel = 1
    else:
        size = max(layer.shape, default=0)
        channel = next((d for d in (len(shape) - 1, 1) if d < len(shape) and shape[d] == size), -1)
    if layer.kind == "layer_norm" and len(layer.shape) > 1:
        rank = len(layer.shape)
        if layer.shape != shape[-rank:]:
            return None
        mixed += [(axis, "mean", layer.name) for axis in data[-rank:]]
        for slot in layer.tensors.values():
            _place(known, slot, list(data[-rank:]) if slot.shape == layer.shape else [Fixed(n) for n in slot.shape])
        return list(data)
    if channel < 0 or not layer.shape or max(layer.shape) != shape[channel]:
        return None
    if layer.kind == "group_norm" and layer.groups > 1:
        inner = Var(shape[channel] // layer.groups)
        unify(data[channel], Product((Var(layer.groups), inner)))
        mixed.append((inner, "mean", layer.name))
    elif layer.kind not in ("batch_norm", "instance_norm"):
        mixed.append((data[channel], "mean", layer.name))
    for slot in layer.tensors.values():
        if any(size not in (1, shape[channel]) for size in slot.shape):
            return None
    for slot in layer.tensors.values():
        _place(known, slot, [data[channel] if size == shape[channel] else Fixed(1) for size in slot.shape])
    return list(data)


def _embedding(layer: Layer, data: Axes, known: Tensors) -> Axes | None:
    if len(layer.shape) != 2 or len(layer.tensors) != 1:
        return None
    output = Var(layer.shape[1])
    (slot,) = layer.tensors.values()
    _place(known, slot, [Fixed(layer.shape[0]), output])
    return [*data, output]


def _activation(layer: Layer, data: Axes, known: Tensors) -> Axes | None:
    """PReLU: one slope a channel (axis 1), or one for all."""
    for slot in layer.tensors.values():
        per_channel = len(slot.shape) == 1 and len(data) > 1 and slot.shape[0] == data[1].size
        if not per_channel and any(size != 1 for size in slot.shape):
            return None
    for slot in layer.tensors.values():
        _place(known, slot, [data[1] if size > 1 else Fixed(1) for size in slot.shape])
    return list(data)
