"""Channel groups: which axes of which tensors must share one index map.

A residual addition, a depthwise convolution, a norm, a concatenation couples the channels of several layers: permute one
without the others and the network computes something else. ``find_groups`` follows every operation of a traced
architecture and finds the sets that can be permuted together without changing the output (DepGraph, arXiv:2301.12900,
does this per framework layer; here it is done on recorded operations, so no layer needs to be known by name).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from netgraft.graph import LayerGraph, Node, Shape, Slot
from netgraft.groups.axes import Axis, Fixed, Var, because, fix, normal, positions, unify, variables
from netgraft.groups.call import Axes, Call, Mixed, unknown
from netgraft.groups.layers import Tensors, call_layer, tensor_axes
from netgraft.groups.operations import RULES, SPLITS, TWINS, result_of
from netgraft.groups.reshaping import pieces


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
    token = because.set("")
    try:
        walk = _Walk(graph)
        for node in graph.nodes:
            because.set(reason(node))
            walk.visit(node)
    finally:
        because.reset(token)
    return _collect(graph, walk.tensors, walk.mixed)


def reason(node: Node) -> str:
    """How a node is named where it is the reason for something."""
    if node.op in ("input", "output", "layer", "parameter"):
        return node.id if node.op == "layer" or node.id.startswith(node.op) else f"{node.op} {node.id}"
    return f"{node.op} ({node.id})" if node.op in RULES or node.op in SPLITS else f"{node.op} ({node.id}), no rule"


class _Walk:
    """Follows the operations in the order in which they run."""

    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph
        self.values: dict[str, Axes] = {}  # node id -> axes of its (first) result
        self.several: dict[str, list[Axes]] = {}  # of all its results, where there are several
        self.mixed: Mixed = []
        self.tensors: Tensors = {}
        self.items: dict[str, dict[int, Shape]] = {}
        for node in graph.nodes:
            if node.op == "getitem":
                self.items.setdefault(node.inputs[0], {})[node.facts["args"][1]] = node.shape

    def visit(self, node: Node) -> None:
        """Note the axes of the node's result, and what the node makes equal or fixes."""
        values = self.values
        if node.op == "input":
            values[node.id] = [Fixed(size) for size in node.shape]
        elif node.op == "output":
            for source in node.inputs:
                for axes in self.several.get(source, [values[source]]):
                    for axis in axes:
                        fix(axis)
        elif node.op in ("parameter", "weight") and node.layer is not None:
            values[node.id] = tensor_axes(self.tensors, self._slot(node))
        elif node.op == "layer" and node.layer is not None:
            values[node.id] = call_layer(self.graph.layers[node.layer], node, values, self.tensors, self.mixed)
        elif node.op == "getitem":
            values[node.id] = self._item(node)
        else:
            self._settle_writes(node)
            call = Call(node, values, self.mixed)
            if node.op in SPLITS:
                self.several[node.id] = self._split(call)
                values[node.id] = self.several[node.id][0]
            else:
                values[node.id] = result_of(call)
                if node.op in TWINS:
                    self.several[node.id] = [values[node.id]] * 2

    def _slot(self, node: Node) -> Slot:
        """The tensor behind a parameter, or behind a layer's weight that other code reads too."""
        slots = self.graph.layers[node.layer or ""].tensors.values()
        key = node.id.removesuffix(":value")
        return next((slot for slot in slots if key in (slot.key, *slot.aliases)), next(iter(slots)))

    def _item(self, node: Node) -> Axes:
        source, position = node.inputs[0], node.facts["args"][1]
        found = self.several.get(source)
        if found is not None and position < len(found):
            return found[position]
        if position == 0 and [axis.size for axis in self.values[source]] == list(node.shape):
            return self.values[source]
        return unknown(Call(node, self.values, self.mixed))

    def _settle_writes(self, node: Node) -> None:
        """What an operation in place wrote has the structure of what it was written into."""
        named = {v for value in node.facts.get("args", ()) for v in (value if isinstance(value, list) else [value])
                 if isinstance(v, str)}  # fmt: skip
        for source in node.inputs:
            writer = self.graph.by_id[source]
            if f"%{source}" in named or f"%{source}" in map(str, node.facts.values()):
                continue
            target = Call(writer, self.values, []).tensor(next(iter(writer.facts.get("args", ())), None))
            written = self.values[source]
            if target is not None and [a.size for a in target] == [a.size for a in written]:
                for one, other in zip(target, written, strict=True):
                    unify(one, other)
            else:
                for axis in written:
                    fix(axis)

    def _split(self, call: Call) -> list[Axes]:
        """The pieces of a split; sizes of pieces that nobody reads follow from those that are read."""
        axes, shape = call.tensors()[0], call.shape
        if call.node.op == "unbind":
            d = call.dims(call.argument(1, "dim", 0), len(axes))[0]
            return pieces(call, [shape] * axes[d].size)
        d = call.dims(call.argument(2, "dim", 0), len(axes))[0]
        size, given, read = axes[d].size, call.args[1], self.items.get(call.node.id, {})
        if call.node.op == "tensor_split":
            number = given if isinstance(given, int) else 0
            sizes = [size // number + (i < size % number) for i in range(number)]
        elif isinstance(given, list):
            sizes = given
        else:  # split: the size of a piece; chunk: their number. The first piece's shape tells.
            sizes = [min(shape[d], size - start) for start in range(0, size, shape[d])]
        if sum(sizes) != size or any(i < len(sizes) and sizes[i] != item[d] for i, item in read.items()):
            unknown(call)
            return [[Fixed(n) for n in read.get(i, shape)] for i in range(max(read, default=0) + 1)]
        return pieces(call, [(*shape[:d], n, *shape[d + 1 :]) for n in sizes])


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
