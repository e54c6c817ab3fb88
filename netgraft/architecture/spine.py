"""Cuts a network into units at the steps that every path from input to output goes through.

The spine are these steps; a unit is one of them with what lies between it and the one before. A residual block, an
attention branch with its addition, a gate with its product, a single convolution of a plain chain: each is one unit, so
it can be left out, put in, or matched as a whole. For example::

    input - conv - bn - relu --+-- conv - bn - relu - conv - bn --- add - relu - linear - output
                               +---------------------------------------+
    units: (input) (conv bn relu) (conv bn relu conv bn add) (relu) (linear) (output)

The addition is on every path, the layers before it are not: there is a way around them. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from netgraft.architecture.graph import Layer, LayerGraph, Node
from netgraft.architecture.operations import KEEPS_SIGN, PASSES

DIMENSION = re.compile("[123]d(?![0-9a-z])")


@dataclass(frozen=True)
class Unit:
    """The nodes after one step that every path goes through, up to and including the next such step."""

    entry: str | None  # the step before; None at the input
    nodes: tuple[Node, ...]  # in execution order; the last is the step itself
    layers: tuple[str, ...]  # names of the layers in it, raw parameters included, in order of use

    @property
    def exit(self) -> Node:
        return self.nodes[-1]


def spine(graph: LayerGraph) -> tuple[Unit, ...]:
    """Returns the units of a graph in order; nodes that the output does not depend on are in none.

    A node is on every path if no edge of the data flow jumps over it in execution order. Parameters, and layers that
    the input does not reach (a table of positions, say), belong to the unit that is open when they run.
    """
    nodes = [node for node in graph.nodes if node.id in graph.to_output]
    last_use = dict.fromkeys((node.id for node in nodes), -1)
    for place, node in enumerate(nodes):
        for source in node.inputs:
            if source in last_use:
                last_use[source] = place
    units: list[Unit] = []
    pending: list[Node] = []
    entry: str | None = None
    furthest = -1
    for place, node in enumerate(nodes):
        pending.append(node)
        if node.id not in graph.from_input:
            continue
        if furthest <= place:  # nothing from before is read after this node
            names = dict.fromkeys(n.layer for n in pending if n.layer is not None)
            units.append(Unit(entry, tuple(pending), tuple(names)))
            entry, pending = node.id, []
        furthest = max(furthest, last_use[node.id])
    return tuple(_join_plain(graph, units))


def _join_plain(graph: LayerGraph, units: list[Unit]) -> Iterator[Unit]:
    """Units, with a kernel that stands alone, the norm and the ReLU that follow it as one: a step of a plain chain."""
    i = 0
    while i < len(units):
        unit = units[i]
        i += 1
        if len(unit.nodes) == 1 and graph.kernel_of(unit.exit):
            for follows in (_is_norm, _is_relu):
                if i < len(units) and len(units[i].nodes) == 1 and follows(graph, units[i].exit):
                    unit = Unit(unit.entry, unit.nodes + units[i].nodes, unit.layers + units[i].layers)
                    i += 1
        yield unit


def _is_norm(graph: LayerGraph, node: Node) -> bool:
    layer = graph.layer_of(node)
    return node.op == "layer" and layer is not None and layer.is_norm


def _is_relu(graph: LayerGraph, node: Node) -> bool:  # noqa: ARG001
    return node.op == "relu"


def is_identity_when_dirac(graph: LayerGraph, unit: Unit) -> bool:
    """Whether a step of a plain chain can pass its entry through: a square kernel that keeps size and resolution.

    A norm after it must be a batch norm, whose statistics can be set. A ReLU at the end leaves what is not negative, so
    the entry must come from a ReLU; without one the step is linear.
    """
    kernel = graph.kernel_of(unit.nodes[0])
    if kernel is None or kernel.calls > 1 or unit.entry is None or len(unit.layers) > 2:
        return False
    if not kernel.rules.dirac or kernel.groups > 1:
        return False
    if len(kernel.shape) < 2 or kernel.shape[0] != kernel.shape[1] or set(kernel.stride) - {1}:
        return False
    if not len(kernel.shape) - 2 == len(kernel.dilation) == len(kernel.padding):
        return False
    sides = zip(kernel.shape[2:], kernel.dilation, kernel.padding, strict=True)
    if not all(size % 2 and padding == dilation * (size - 1) // 2 for size, dilation, padding in sides):
        return False
    if any(not graph.layers[name].rules.has_statistics for name in unit.layers[1:]):
        return False
    before = graph.by_id[unit.entry]
    while before.op in PASSES | KEEPS_SIGN and before.inputs:
        before = graph.by_id[before.inputs[0]]
    return before.op == "relu" if unit.exit.op == "relu" else not unit.layers[1:]


def signature(graph: LayerGraph, unit: Unit) -> Hashable:
    """What a unit does, whatever its sizes and names: equal for units that can stand for one another."""
    place = {node.id: i for i, node in enumerate(unit.nodes)}
    steps = []
    for node in unit.nodes:
        sources = tuple(place.get(source, -1 if source == unit.entry else -2) for source in node.inputs)
        layer = graph.layer_of(node)
        steps.append((_whatever_axes(node.op), sources, None if layer is None else layer_signature(layer)))
    return tuple(steps)


def layer_signature(layer: Layer) -> Hashable:
    """What kind of layer it is: what it can be made from, its stride, its axes, the roles of its tensors.

    A convolution is the same over a line, an image or a volume, dense or in groups, if it steps alike along all axes; a
    linear layer is one with a single tap.
    """
    stride = layer.stride if len(set(layer.stride)) > 1 else layer.stride[:1] or (1,)
    made_of = "map" if layer.is_linear or layer.rules.family == "convolution" else layer.rules.exchanges_as
    axes = 0 if made_of == "map" or layer.rules.family else len(layer.shape)
    return made_of, stride, axes, layer.gates, tuple(sorted(layer.tensors))


def _whatever_axes(op: str) -> str:
    """The name of an operation for lines, images and volumes alike: "max_pool2d" is "max_poolnd"."""
    return DIMENSION.sub("nd", op)


def is_identity_when_zero(graph: LayerGraph, unit: Unit) -> tuple[str, ...]:
    """The layers to set to zero so that a residual unit passes its entry through; empty if there are none.

    The unit must end by adding its entry to a branch. The end of the branch is its last norm (gamma and beta), its last
    layer-scale parameter, or its last kernel with its bias: Net2Net's identity insertion (arXiv:1511.05641) for blocks.
    """
    if unit.exit.op != "add" or unit.entry is None or unit.entry not in unit.exit.inputs:
        return ()
    branches = [source for source in unit.exit.inputs if source != unit.entry]
    inside = {node.id: node for node in unit.nodes}
    if len(branches) != 1 or branches[0] not in inside:
        return ()
    return tuple(_ends(graph, inside, inside[branches[0]]))


def _ends(graph: LayerGraph, inside: dict[str, Node], node: Node) -> Iterator[str]:
    while True:
        layer = graph.layer_of(node)
        if node.op == "layer" and layer is not None:
            if layer.calls == 1 and (layer.is_norm or layer.is_kernel) and "weight" in layer.tensors:
                yield layer.name
            return
        sources = [inside[source] for source in node.inputs if source in inside]
        if node.op == "mul":
            scales = [source for source in sources if source.op == "parameter" and source.layer is not None]
            if scales:
                yield scales[0].layer or ""
                return
            full = [source for source in sources if source.shape == node.shape]
            if not full:
                return
            node = full[0]
        elif node.op in PASSES and len(node.inputs) == 1 and sources:
            node = sources[0]
        else:
            return


def repeated_norms(graph: LayerGraph, units: Sequence[Unit]) -> frozenset[int]:
    """The places of norms over all channels behind which another one stands, with blocks between that can be zero.

    Such a norm can be left without an affine (gamma 1, beta 0): when the blocks between give zero, the next norm sees
    what is normalised already, and puts its own affine to it. So post-norm transformers grow deeper.
    """
    found: set[int] = set()
    for place, unit in enumerate(units):
        kind = _stream_norm(graph, unit)
        rest = range(place + 1, len(units)) if kind else ()
        after = next((i for i in rest if not is_identity_when_zero(graph, units[i])), None)
        if after is not None and after > place + 1 and _stream_norm(graph, units[after]) == kind:
            found.add(place)
    return frozenset(found)


def _stream_norm(graph: LayerGraph, unit: Unit) -> str:
    """The kind of a norm over all channels that makes up a unit; empty for anything else."""
    layer = graph.layer_of(unit.exit)
    if len(unit.nodes) != 1 or unit.exit.op != "layer" or layer is None:
        return ""
    return layer.kind if layer.rules.scale_free and layer.calls == 1 and "weight" in layer.tensors else ""
