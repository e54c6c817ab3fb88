"""Residual streams that can be widened by any ratio: a run of channels that is only added to and normalised.

Where the ratio of widths is not whole, copies alone change the mean and variance that a LayerNorm sees. LEMON
(arXiv:2310.07999) puts the mean of the channels behind the copies; that works as long as the stream is written by
weights, added, and read through the norm or by weights (OPERATORS D6). Nothing here imports torch.
"""

from __future__ import annotations

from typing import Literal, assert_never

from netgraft.architecture.graph import Layer, LayerGraph, Node
from netgraft.architecture.kinds import StreamRule
from netgraft.architecture.operations import ADDS, SCALES
from netgraft.channels.groups.axes import Axis, Var, normal, variables
from netgraft.channels.groups.find import Groups

State = Literal["absent", "stream", "normed"]


def stretch(
    graph: LayerGraph, groups: Groups, run: Var, *, scaled: bool = False
) -> Literal["layer_norm", "rms_norm"] | None:
    """The norm over ``run`` if the run can be stretched by any ratio; None if something else acts on its channels.

    With ``scaled``, layer scales on what is added may act too. Then the stretched stream is near the source's, rather
    than equal: the mean of products is not the product of means.
    """
    states: dict[str, State] = {}
    norms: set[StreamRule] = set()
    for node in graph.nodes:
        inputs = {states[source] for source in node.inputs} - {"absent"}
        state = _state(graph, groups, run, node, inputs, scaled)
        if state is None:
            return None
        states[node.id] = state
        if state == "normed" and (layer := graph.layer_of(node)):
            norms.add(layer.rules.stream)
    if norms == {StreamRule.LAYER_NORM}:
        return "layer_norm"
    return "rms_norm" if norms == {StreamRule.RMS_NORM} else None


def _state(graph: LayerGraph, groups: Groups, run: Var, node: Node, inputs: set[State], scaled: bool) -> State | None:
    """What the node's output holds of the run; None if the node does what a stretched run does not survive."""
    layer = graph.layer_of(node)
    if layer is not None:
        return _layer_state(groups, run, layer, inputs)
    if not inputs:
        return "absent"
    if scaled and node.op == "mul" and any(source not in graph.from_input for source in node.inputs):
        return "stream" if inputs == {"stream"} else None  # by a parameter, one number per channel
    if node.op in ADDS:
        return "stream" if inputs == {"stream"} and node.adds_data else None
    if node.op in SCALES:
        return next(iter(inputs)) if len(inputs) == 1 else None
    return None


def _layer_state(groups: Groups, run: Var, layer: Layer, inputs: set[State]) -> State | None:
    slot = layer.tensors.get("weight") or next(iter(layer.tensors.values()), None)
    axes = groups.axes.get(slot.key, ()) if slot is not None else ()
    match layer.rules.stream:
        case StreamRule.LAYER_NORM | StreamRule.RMS_NORM if inputs:
            return "normed" if inputs == {"stream"} and len(axes) == 1 and normal(axes[0]) is run else None
        case StreamRule.TABLE:
            return _writes(axes[-1:], run)
        case StreamRule.MAP if layer.groups == 1:
            reads = any(var is run for axis in axes[1:2] for var in variables(axis))
            if reads and normal(axes[1]) is not run:
                return None
            return _writes(axes[:1], run)
        case StreamRule.LAYER_NORM | StreamRule.RMS_NORM | StreamRule.MAP | StreamRule.BREAKS:
            touches = any(var is run for axis in axes for var in variables(axis))
            return None if inputs or touches else "absent"
        case never:
            assert_never(never)


def _writes(axes: tuple[Axis, ...], run: Var) -> State | None:
    if not any(var is run for axis in axes for var in variables(axis)):
        return "absent"
    return "stream" if normal(axes[0]) is run else None
