"""Channel groups: which axes of which tensors must share one index map.

A residual addition, a depthwise convolution, a norm, a concatenation couples channels of several layers: permute one
without the others and the network computes something else. ``find_groups`` follows every operation of a traced
architecture and finds the sets that can be permuted together without changing the output (DepGraph, arXiv:2301.12900,
does this per framework layer; here it is done on recorded operations, so no layer needs to be known by name).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from netgraft.architecture.graph import LayerGraph
from netgraft.channels.groups.axes import Axis, Var, because, normal, positions, reasons, variables
from netgraft.channels.groups.call import Mixed
from netgraft.channels.groups.kinds import Tensors
from netgraft.channels.groups.walk import AxisWalk, reason


@dataclass(frozen=True)
class Group:
    """A run of channels with one index map, and the tensor axes it runs through.

    ``Conv2d(2, 4) -> BatchNorm2d(4) -> ReLU -> Conv2d(4, 3)`` has one: the 4 channels between convolutions, with the
    members (0.weight, 0), (0.bias, 0), (1.weight, 0), (1.bias, 0), (1.running_mean, 0), (1.running_var, 0) and
    (3.weight, 1). The 2 channels of the input and the 3 of the output have a meaning outside, and are in none.
    """

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
    reads: Set[tuple[str, int]] = frozenset()  # (key, axis) along which a tensor reads channels: it sums over them

    def index(self, key: str, axis: int, maps: Mapping[str, Sequence[int]]) -> list[int]:
        """Positions along ``axis`` of tensor ``key`` after the index map of each group in ``maps``.

        ``maps[name][j]`` is the old channel of new channel j, as many as the group has; other groups stay as they are.
        """
        given = {id(self.variables[name]): list(channels) for name, channels in maps.items()}
        return positions(self.axes[key][axis], lambda var: given.get(id(var), range(var.size)))

    def reasons(self, key: str) -> tuple[str, ...]:
        """What gave the positions of a tensor a meaning of their own, axis by axis; () if some may be permuted."""
        axes = [axis for axis in self.axes[key] if axis.size > 1]
        if any(True for axis in axes for _ in variables(axis)):
            return ()
        return tuple(dict.fromkeys(why for axis in axes for why in reasons(axis)))


def find_groups(graph: LayerGraph) -> Groups:
    """The channel groups of an architecture. Tensors that no rule covers have fixed axes and stand in no group."""
    token = because.set("")
    try:
        walk = AxisWalk(graph)
        for node in graph.nodes:
            because.set(reason(node))
            walk.visit(node)
    finally:
        because.reset(token)
    return _collect(graph, walk.tensors, walk.mixed)


def _collect(graph: LayerGraph, tensors: Tensors, mixed: Mixed) -> Groups:
    members: dict[int, list[tuple[str, int]]] = {}
    found: dict[int, Var] = {}
    for layer in graph.layers.values():
        for slot in layer.tensors.values():
            for number, axis in enumerate(tensors.get(slot.key, ())):
                for var in dict.fromkeys(variables(axis)):
                    found.setdefault(id(var), var)
                    members.setdefault(id(var), []).append((slot.key, number))
    for key, number in sorted(tensors.reads & tensors.makes):
        mixed.append((tensors[key][number], "tied weight", key))
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
    return Groups(tuple(groups), axes, names, frozenset(tensors.reads))
