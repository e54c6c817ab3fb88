"""What each kind of layer says about the axes of its tensors, given the axes of its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

from netgraft.architecture.graph import Layer, Node
from netgraft.architecture.kinds import ChannelRule
from netgraft.architecture.operations import IGNORES_ORDER, REDUCES_WEIGHT, WEIGHT_PRODUCTS
from netgraft.channels.groups.axes import Axis, Fixed, fix, unify
from netgraft.channels.groups.call import Axes, Call, Mixed
from netgraft.channels.groups.kinds import Tensors, activation, conv, embedding, linear, norm, recurrent
from netgraft.channels.groups.operations import result_of


def call_layer(layer: Layer, node: Node, values: Mapping[str, Axes], known: Tensors, mixed: Mixed) -> Axes:
    """The axes of the layer's output; ``known`` gets the axes of its tensors (a second call makes them equal).

    A layer without a rule, with several inputs or tensors it cannot place, or that does more than its kind says, is
    fixed.
    """
    if kind := node.facts.get("kind"):  # a weight with two uses: the embedding that is the output layer, too
        layer = replace(layer, kind=kind, in_shape=())
    inputs = [values[source] for source in node.inputs]
    output = None if _is_unclear(layer, node) else _contraction(layer, node, values, known)
    if (
        output is None
        and not _is_unclear(layer, node)
        and not node.facts.get("others")
        and not set(node.facts.get("prepared", ())) - IGNORES_ORDER
    ):
        output = _by_kind(layer, node, values, known, mixed)
    if output is not None and [axis.size for axis in output] == list(node.shape):
        return output
    for axes in inputs:
        for axis in axes:
            fix(axis)
    for slot in layer.tensors.values():
        kernel = layer.is_kernel and slot.shape == layer.shape
        known.place(slot, [Fixed(size) for size in slot.shape], [layer.in_axis] if kernel else ())
    return [Fixed(size) for size in node.shape]


def _by_kind(layer: Layer, node: Node, values: Mapping[str, Axes], known: Tensors, mixed: Mixed) -> Axes | None:
    data, bias = _data(layer, node, values)
    if data is None or len(data) != len(layer.in_shape or data):
        return None
    output: Axes | None
    match layer.rules.channels:
        case ChannelRule.CONV:
            output = conv(layer, data, node.shape, known)
        case ChannelRule.LINEAR:
            output = linear(layer, data, known, sure=_is_left(node, values))
        case ChannelRule.NORM:
            output = norm(layer, node, data, known, mixed)
        case ChannelRule.EMBEDDING:
            output = embedding(layer, data, known)
        case ChannelRule.ACTIVATION:
            output = activation(layer, data, known)
        case ChannelRule.RECURRENT:
            output = recurrent(layer, data, known)
        case ChannelRule.FIXED:
            output = None
        case never:
            assert_never(never)
    if output is not None and bias is not None:
        unify(bias, output[layer.out_axis])
    if output is not None and REDUCES_WEIGHT & set(node.facts.get("prepared", ())):
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
    if node.facts.get("function") not in WEIGHT_PRODUCTS or node.facts.get("prepared"):
        return None
    slots = {key: slot for slot in layer.tensors.values() for key in slot.keys}
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
    slot = slots[keys[0]]
    weight = known.use(slot, _summed(node, names.index(weights[0]), len(slot.shape)))
    axes = {**{name: values[name] for name in names if name in values}, weights[0]: weight}
    ignored: Mixed = []  # weights of its own stand between the channels
    output = result_of(Call(replace(node, layer=None, inputs=()), axes, ignored))
    for slot in rest:
        known.place(slot, [output[-1]])
    return output


def _summed(node: Node, place: int, rank: int) -> list[int]:
    """The axes of an operand that a product sums over."""
    if node.facts["function"] != "einsum":
        return [rank - 1 if place == 0 else rank - 2]
    inputs, _, output = str(node.facts["args"][0]).replace(" ", "").partition("->")
    return [d for d, label in enumerate(inputs.split(",")[place]) if label not in output]


def _is_unclear(layer: Layer, node: Node) -> bool:
    """Whether a vector was added to a product that it may go along more than one axis of."""
    if node.facts.get("function") not in WEIGHT_PRODUCTS or len(layer.tensors) < 2:
        return False
    return max(map(node.shape[1:].count, node.shape[1:]), default=0) > 1


def _is_left(node: Node, values: Mapping[str, Axes]) -> bool:
    """Whether the data certainly stands left of the weight, so that its last axis is multiplied."""
    function, args = node.facts.get("function", "linear"), node.facts.get("args", ())
    if function in ("linear", "addmm"):
        return True
    return function in ("matmul", "mm", "bmm") and isinstance(args[0], str) and args[0].removeprefix("%") in values
