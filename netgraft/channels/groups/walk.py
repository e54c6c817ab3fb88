"""Follows the operations of a traced architecture in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator

from netgraft.architecture.graph import LayerGraph, Node, Shape, Slot
from netgraft.architecture.operations import MAKES_TWO, SPLITS
from netgraft.channels.groups.axes import Fixed, fix, unify
from netgraft.channels.groups.call import Axes, Call, Mixed, unknown
from netgraft.channels.groups.kinds import Tensors
from netgraft.channels.groups.layers import call_layer
from netgraft.channels.groups.operations import RULES, result_of
from netgraft.channels.groups.reshaping import pieces


def reason(node: Node) -> str:
    """How a node is named where it is the reason for something."""
    if node.op in ("input", "output", "layer", "parameter"):
        return node.id if node.op == "layer" or node.id.startswith(node.op) else f"{node.op} {node.id}"
    return f"{node.op} ({node.id})" if node.op in RULES or node.op in SPLITS else f"{node.op} ({node.id}), no rule"


class AxisWalk:
    """What is known of the axes of every value and every tensor so far."""

    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph
        self.values: dict[str, Axes] = {}  # node id -> axes of its (first) result
        self.several: dict[str, list[Axes]] = {}  # of all its results, where there are several
        self.mixed: Mixed = []
        self.tensors = Tensors()
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
            values[node.id] = self.tensors.use(self._slot(node))
        elif node.op == "layer" and (layer := self.graph.layer_of(node)):
            values[node.id] = call_layer(layer, node, values, self.tensors, self.mixed)
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
                if node.op in MAKES_TWO:
                    self.several[node.id] = [values[node.id]] * 2

    def _slot(self, node: Node) -> Slot:
        """The tensor behind a parameter, or behind a layer's weight that other code reads too."""
        slots = self.graph.layers[node.layer or ""].tensors.values()
        key = node.id.removesuffix(":value")
        return next((slot for slot in slots if key in slot.keys), next(iter(slots)))

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
        named = set(_names([node.facts.get("args", ()), list(node.facts.values())]))
        for source in node.inputs:
            writer = self.graph.by_id[source]
            if f"%{source}" in named:
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


def _names(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _names(item)
