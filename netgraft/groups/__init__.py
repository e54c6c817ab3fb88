"""Channel groups: which axes of which tensors must share one index map.

A residual addition, a depthwise convolution, a norm, a concatenation couples the channels of several layers: permute one
without the others and the network computes something else. ``find_groups`` follows every operation of a traced
architecture and finds the sets that can be permuted together without changing the output (DepGraph, arXiv:2301.12900,
does this per framework layer; here it is done on recorded operations, so no layer needs to be known by name).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from netgraft.graph import LayerGraph, Shape
from netgraft.groups.axes import Axis, Fixed, Var, fix, normal, positions, variables
from netgraft.groups.layers import Axes, Tensors, call_layer
from netgraft.groups.operations import SPLITS, Call, Mixed, item, result_of, unknown


@dataclass(frozen=True)
class Group:
    """A run of channels with one index map, and the tensor axes it runs through."""

    name: str  # "layer1.0.conv1.weight[0]": where it first stands
    size: int
    members: tuple[tuple[str, int], ...]  # (state_dict key, axis)
    mixed: tuple[tuple[str, str], ...] = ()  # (how, node) for what mixes its channels without weights: a mean, q k^T


@dataclass(frozen=True)
class Groups:
    """All channel groups of an architecture, and how each tensor axis is made of them."""

    groups: tuple[Group, ...]
    axes: Mapping[str, tuple[Axis, ...]]  # state_dict key -> structure of each axis
    variables: Mapping[str, Var]  # group name -> the run in the axes

    def index(self, key: str, axis: int, maps: Mapping[str, Sequence[int]]) -> list[int]:
        """Positions along ``axis`` of tensor ``key`` after the index map of each group in ``maps``.

        ``maps[name][j]`` is the old channel of new channel j, as many as the group has; other groups stay as they are.
        """
        given = {id(self.variables[name]): list(channels) for name, channels in maps.items()}
        return positions(self.axes[key][axis], lambda var: given.get(id(var), range(var.size)))


def find_groups(graph: LayerGraph) -> Groups:
    """The channel groups of an architecture. Tensors that no rule covers have fixed axes and stand in no group."""
    values: dict[str, Axes] = {}
    several: dict[str, list[Axes]] = {}
    mixed: Mixed = []
    tensors: Tensors = {}
    items: dict[str, dict[int, Shape]] = {}
    for node in graph.nodes:
        if node.op == "getitem":
            items.setdefault(node.inputs[0], {})[node.facts["args"][1]] = node.shape
    for node in graph.nodes:
        if node.op == "input":
            values[node.id] = [Fixed(size) for size in node.shape]
        elif node.op == "output":
            for source in node.inputs:
                for axes in several.get(source, [values[source]]):
                    for axis in axes:
                        fix(axis)
        elif node.op == "parameter" and node.layer is not None:
            (slot,) = graph.layers[node.layer].tensors.values()
            if slot.key not in tensors:
                tensors[slot.key] = tuple(Var(n) if n > 1 else Fixed(1) for n in slot.shape)
            values[node.id] = list(tensors[slot.key])
        elif node.op == "layer" and node.layer is not None:
            inputs = [values[source] for source in node.inputs]
            values[node.id] = call_layer(graph.layers[node.layer], inputs, node.shape, tensors, mixed)
        elif node.op == "getitem":
            source, position = node.inputs[0], node.facts["args"][1]
            found = several.get(source)
            if found is not None and position < len(found):
                values[node.id] = found[position]
            elif position == 0 and len(values[source]) == len(node.shape):
                values[node.id] = values[source]
            else:
                values[node.id] = unknown(Call(node, values, mixed))
        else:
            call = Call(node, values, mixed)
            if node.op in SPLITS:
                several[node.id] = _split(call, items.get(node.id, {}))
                values[node.id] = several[node.id][0]
            else:
                values[node.id] = result_of(call)
    return _collect(graph, tensors, mixed)


def _split(call: Call, items: Mapping[int, Shape]) -> list[Axes]:
    """The pieces of a split; sizes of pieces that nobody reads follow from those that are read."""
    axes = call.tensors()[0]
    if call.node.op == "unbind":
        d = call.dims(call.argument(1, "dim", 0), len(axes))[0]
        return item(call, [call.shape] * axes[d].size)
    d = call.dims(call.argument(2, "dim", 0), len(axes))[0]
    given = call.args[1]
    if isinstance(given, list):
        sizes = given
    else:  # split: the size of a piece; chunk: their number. The first piece's shape tells.
        step = call.shape[d]
        sizes = [min(step, axes[d].size - start) for start in range(0, axes[d].size, step)]
    shape = call.shape
    return item(call, [(*shape[:d], size, *shape[d + 1 :]) for size in sizes])


def _collect(graph: LayerGraph, tensors: Tensors, mixed: Mixed) -> Groups:
    members: dict[int, list[tuple[str, int]]] = {}
    found: dict[int, Var] = {}
    for layer in graph.layers.values():
        for slot in layer.tensors.values():
            for number, axis in enumerate(tensors.get(slot.key, ())):
                for var in dict.fromkeys(variables(axis)):
                    found.setdefault(id(var), var)
                    members.setdefault(id(var), []).append((slot.key, number))
    mixes: dict[int, dict[tuple[str, str], None]] = {}
    for axis, how, node in mixed:
        for var in variables(axis):
            mixes.setdefault(id(var), {})[how, node] = None
    groups: list[Group] = []
    names: dict[str, Var] = {}
    for identity, var in found.items():
        if var.size < 2:
            continue
        key, number = members[identity][0]
        name = f"{key}[{number}]"
        while name in names:
            name += "'"
        names[name] = var
        groups.append(Group(name, var.size, tuple(dict.fromkeys(members[identity])), tuple(mixes.get(identity, ()))))
    axes = {key: tuple(normal(axis) for axis in sides) for key, sides in tensors.items()}
    return Groups(tuple(groups), axes, names)
