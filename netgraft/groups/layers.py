"""What each kind of layer says about the axes of its tensors, given the axes of its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from netgraft.graph import Layer, Node, Slot
from netgraft.groups.axes import Axis, Concat, Fixed, Product, fix, normal, run, unify
from netgraft.groups.call import Axes, Call, Mixed
from netgraft.groups.operations import result_of

Tensors = dict[str, tuple[Axis, ...]]  # state_dict key -> axes

EQUIVARIANT = frozenset(
    [
        "native_batch_norm",
        "batch_norm",
        "_native_batch_norm_legit_no_training",
        "mean",
        "std",
        "var",
        "var_mean",
        "sum",
        "norm",
        "clamp_min",
        "clamp",
        "linalg_vector_norm",
        "_weight_norm",
        "_weight_norm_interface",
        "sub",
        "mul",
        "div",
        "add",
        "rsqrt",
        "sqrt",
        "pow",
        "exp",
        "abs",
        "maximum",
        "reciprocal",
        "expm1",
        "tanh",
        "sigmoid",
        "softplus",
        "neg",
        "square",
    ]
)
"""Arithmetic on a weight that does the same whatever the order of its rows and columns."""
REDUCING = frozenset(
    [
        "native_batch_norm",
        "batch_norm",
        "_native_batch_norm_legit_no_training",
        "mean",
        "std",
        "var",
        "var_mean",
        "sum",
        "norm",
        "_weight_norm",
        "_weight_norm_interface",
        "linalg_vector_norm",
    ]
)
CONTRACTIONS = frozenset({"einsum", "matmul", "mm", "bmm"})


def call_layer(layer: Layer, node: Node, values: Mapping[str, Axes], known: Tensors, mixed: Mixed) -> Axes:
    """The axes of the layer's output; ``known`` gets the axes of its tensors (a second call makes them equal).

    A layer without a rule, with several inputs or tensors it cannot place, or that does more than its kind says, is
    fixed.
    """
    if kind := node.facts.get("kind"):  # a weight with two uses: the embedding that is the output layer, too
        layer = replace(layer, kind=kind, in_shape=())
    inputs = [values[source] for source in node.inputs]
    output = _contraction(layer, node, values, known)
    if output is None and not node.facts.get("others") and not set(node.facts.get("prepared", ())) - EQUIVARIANT:
        output = _by_kind(layer, node, values, known, mixed)
    if output is not None and [axis.size for axis in output] == list(node.shape):
        return output
    for axes in inputs:
        for axis in axes:
            fix(axis)
    for slot in layer.tensors.values():
        _place(known, slot, [Fixed(size) for size in slot.shape])
    return [Fixed(size) for size in node.shape]


def tensor_axes(known: Tensors, slot: Slot) -> Axes:
    """The axes of a tensor, new ones if it has not been met."""
    if slot.key not in known:
        known[slot.key] = tuple(map(run, slot.shape))
    return list(known[slot.key])


def _by_kind(layer: Layer, node: Node, values: Mapping[str, Axes], known: Tensors, mixed: Mixed) -> Axes | None:
    data, bias = _data(layer, node, values)
    if data is None or len(data) != len(layer.in_shape or data):
        return None
    output = None
    if layer.kind.startswith("conv") and layer.kind != "conv_dynamic":
        output = _conv(layer, data, node.shape, known)
    elif layer.kind == "linear":
        output = _linear(layer, data, known, sure=_is_left(node, values))
    elif layer.is_norm:
        output = _norm(layer, node, data, known, mixed)
    elif layer.kind == "embedding":
        output = _embedding(layer, data, known)
    elif layer.kind == "activation":
        output = _activation(layer, data, known)
    elif layer.kind == "rnn":
        output = _recurrent(layer, data, known)
    if output is not None and bias is not None:
        unify(bias, output[1 if layer.kind.startswith("conv") else -1])
    if output is not None and REDUCING & set(node.facts.get("prepared", ())):
        for slot in layer.tensors.values():
            if slot.shape == layer.shape:
                mixed.extend((axis, "weight norm", node.id) for axis in known[slot.key])
    return output


def _data(layer: Layer, node: Node, values: Mapping[str, Axes]) -> tuple[Axes | None, Axis | None]:
    """The axes of the one input, and of a bias that was computed; None for the input if that is not all."""
    inputs = [values[source] for source in node.inputs]
    if len(inputs) == 1:
        return inputs[0], None
    if not inputs and layer.in_shape:  # fed by a constant: a buffer of coordinates, say
        return [Fixed(size) for size in layer.in_shape], None
    function = str(node.facts.get("function", ""))
    if len(inputs) == 2 and (function == "linear" or function.startswith("conv")):
        call = Call(node, values, [])
        data, bias = call.tensor(call.argument(0, "input")), call.tensor(call.argument(2, "bias"))
        if data is not None and bias is not None and len(bias) == 1:
            return data, bias[0]
    return None, None


def _contraction(layer: Layer, node: Node, values: Mapping[str, Axes], known: Tensors) -> Axes | None:
    """A product that the model's code writes itself, weights as they are: a rule for the operation knows its axes."""
    if node.facts.get("function") not in CONTRACTIONS or node.facts.get("prepared"):
        return None
    slots = {key: slot for slot in layer.tensors.values() for key in (slot.key, *slot.aliases)}
    names = [
        value[1:]
        for argument in node.facts.get("args", ())
        for value in (argument if isinstance(argument, list) else [argument])
        if isinstance(value, str) and value.startswith("%")
    ]
    weights = [name for name in names if name not in values]
    keys = [name.removesuffix(":value") for name in weights]
    if len(keys) != 1 or keys[0] not in slots or len(names) != len(set(names)):
        return None
    rest = [slot for slot in layer.tensors.values() if slot.key != slots[keys[0]].key]
    if any(slot.shape != node.shape[-1:] for slot in rest):
        return None
    axes = {**{name: values[name] for name in names if name in values}, weights[0]: tensor_axes(known, slots[keys[0]])}
    ignored: Mixed = []  # weights of its own stand between the channels
    output = result_of(Call(replace(node, layer=None, inputs=()), axes, ignored))
    for slot in rest:
        _place(known, slot, [output[-1]])
    return output


def _place(known: Tensors, slot: Slot, axes: Axes) -> None:
    if slot.key in known:
        for one, other in zip(known[slot.key], axes, strict=True):
            unify(one, other)
    else:
        known[slot.key] = tuple(axes)


def _place_all(layer: Layer, known: Tensors, kernel: Axes, output: Axis) -> None:
    """Kernel-shaped tensors get the kernel's axes, vectors along the output the output's; anything else is fixed."""
    for role, slot in layer.tensors.items():
        shape, size = slot.shape, output.size
        # A vector that is no bias might as well go along the input: spectral norm keeps one of each.
        unclear = role != "bias" and len(shape) == 1 and size in layer.shape[1:]
        if shape == layer.shape:
            _place(known, slot, kernel)
        elif shape and shape[0] == size and all(n == 1 for n in shape[1:]) and not unclear:
            _place(known, slot, [output, *(Fixed(1) for _ in shape[1:])])
        else:
            _place(known, slot, [Fixed(n) for n in shape])
            if any(n != 1 for n in shape):
                for axis in (*kernel, output):
                    fix(axis)


def _conv(layer: Layer, data: Axes, shape: tuple[int, ...], known: Tensors) -> Axes | None:
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
    if layer.kind.startswith("conv_transpose"):
        kernel: Axes = [Product((group, into)), out, *taps]
    else:
        kernel = [output, into, *taps]
    if [axis.size for axis in kernel] != list(layer.shape):
        return None
    _place_all(layer, known, kernel, output)
    return [data[0], output, *space]


def _is_left(node: Node, values: Mapping[str, Axes]) -> bool:
    """Whether the data certainly stands left of the weight, so that its last axis is multiplied."""
    function, args = node.facts.get("function", "linear"), node.facts.get("args", ())
    if function in ("linear", "addmm"):
        return True
    return function in ("matmul", "mm", "bmm") and isinstance(args[0], str) and args[0].removeprefix("%") in values


def _linear(layer: Layer, data: Axes, known: Tensors, *, sure: bool) -> Axes | None:
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
    _place_all(layer if not layer.transposed else replace(layer, shape=(inp, out)), known, kernel, output)
    return [*data[:-1], output]


def _norm(layer: Layer, node: Node, data: Axes, known: Tensors, mixed: Mixed) -> Axes | None:
    shape = tuple(axis.size for axis in data)
    if not layer.shape or not shape:
        return None
    if layer.kind == "layer_norm" and len(layer.shape) > 1:
        rank = len(layer.shape)
        if layer.shape != shape[-rank:]:
            return None
        mixed += [(axis, "mean", node.id) for axis in data[-rank:]]
        for slot in layer.tensors.values():
            _place(known, slot, list(data[-rank:]) if slot.shape == layer.shape else [Fixed(n) for n in slot.shape])
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
    elif layer.kind not in ("batch_norm", "instance_norm"):
        mixed.append((data[channel], "mean", node.id))
    if layer.kind != "batch_norm":
        mixed += [(axis, "mean", node.id) for axis in (*data[1:channel], *data[channel + 1 :])]
    for slot in layer.tensors.values():
        _place(known, slot, [data[channel] if n == size else Fixed(1) for n in slot.shape])
    return list(data)


def _channel_axis(layer: Layer, node: Node, shape: tuple[int, ...]) -> int | None:
    """The axis of the input that the norm's weights go along; None if it is unclear."""
    size = max(layer.shape)
    if layer.kind in ("batch_norm", "instance_norm", "group_norm"):
        return 1 if len(shape) > 1 and shape[1] == size else None
    fits = [d for d, n in enumerate(shape) if d and n == size]
    if len(shape) == 1 or "axis" in node.facts:
        fits = [d for d in [int(node.facts.get("axis", 0))] if shape[d] == size]
    return fits[0] if len(fits) == 1 else None


def _embedding(layer: Layer, data: Axes, known: Tensors) -> Axes | None:
    if len(layer.shape) != 2 or len(layer.tensors) != 1:
        return None
    output = run(layer.shape[1])
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


def _recurrent(layer: Layer, data: Axes, known: Tensors) -> Axes | None:
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
            _place(known, into, [rows, read])
            _place(known, again, [rows, hidden])
            for name in ("bias_ih", "bias_hh"):
                if name + suffix in layer.tensors:
                    _place(known, layer.tensors[name + suffix], [rows])
            placed += sum(name.endswith(suffix) for name in layer.tensors)
            outputs.append(hidden)
        if outputs:
            read = normal(Concat(tuple(outputs)))
    return [*data[:-1], read] if placed == len(layer.tensors) else None
