"""Channel spaces and residual blocks, read off the data flow for the matchers.

Graphs drawn without shapes will do, which is why the channel spaces here are coarser than those of
``netgraft.channels.groups``: a concatenation reads all of its parts, and a product of attention all of its
operands. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from netgraft.architecture.graph import LayerGraph, Node
from netgraft.architecture.operations import ATTENDS, JOINS_CHANNELS


@dataclass(frozen=True)
class Block:
    """A residual block: what lies between a step and the addition of a branch to that step or to its projection."""

    kernels: tuple[str, ...]  # in execution order, those of the shortcut included
    layers: tuple[str, ...]  # norms included
    attention: bool  # whether a softmax stands in it


@dataclass
class Spaces:
    """Channel spaces as a union-find: a kernel opens one, an addition joins those of its operands."""

    graph: LayerGraph
    parent: list[int] = field(default_factory=list)
    streams: set[int] = field(default_factory=set)
    values: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.read: dict[str, list[int]] = {}
        self.written: dict[str, list[int]] = {}
        opened: dict[str, int] = {}
        for node in self.graph.nodes:
            inputs = [self.values[source] for source in node.inputs]
            joined = tuple(dict.fromkeys(space for value in inputs for space in value))
            layer = self.graph.layer_of(node)
            if node.op == "input":
                joined = (self._new(),)
            elif layer is not None and layer.is_kernel:
                self.read.setdefault(layer.name, []).extend(joined)
                if not layer.is_depthwise or not joined:
                    joined = (opened.setdefault(layer.name, len(self.parent)),)
                    if joined[0] == len(self.parent):
                        self._new()
                self.written.setdefault(layer.name, []).extend(joined)
            elif node.op in JOINS_CHANNELS:
                joined = self._add(node)
            self.values[node.id] = joined
        self.streams = {self._find(space) for space in self.streams}

    def of(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The spaces a kernel reads and those it writes."""
        read, written = ([self._find(s) for s in side.get(name, ())] for side in (self.read, self.written))
        return tuple(dict.fromkeys(read)), tuple(dict.fromkeys(written))

    def is_stream(self, spaces: Iterable[int]) -> bool | None:
        """Whether additions of data write one of these spaces; None if there are no such additions."""
        if not self.streams:
            return None
        return any(self._find(space) in self.streams for space in spaces)

    def _add(self, node: Node) -> tuple[int, ...]:
        values = [self.values[source] for source in node.inputs if source in self.graph.from_input]
        values = [value for value in values if value]
        if not values:
            return ()
        for value in values[1:]:
            if len(value) == len(values[0]):
                pairs = zip(values[0], value, strict=True)
            else:
                pairs = zip([values[0][0]] * len(values[0] + value), values[0] + value, strict=True)
            for a, b in pairs:
                self.parent[self._find(b)] = self._find(a)
        if len(values) > 1 and node.op == "add":
            self.streams.update(values[0])
        return values[0]

    def _new(self) -> int:
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def _find(self, space: int) -> int:
        while self.parent[space] != space:
            self.parent[space] = self.parent[self.parent[space]]
            space = self.parent[space]
        return space


def find_blocks(graph: LayerGraph) -> list[Block]:
    """The residual blocks, inner ones only, in execution order.

    On the spine these are its residual units (``architecture.spine``); here they may also lie side by side. A block
    ends in an addition of data and begins at the last step that all its paths go through (the immediate dominator);
    one of its paths passes at most one kernel.
    """
    above: dict[str, str | None] = {}  # immediate dominator
    depth: dict[str, int] = {}
    taken: set[str] = set()
    found: list[Block] = []
    for node in graph.nodes:
        if node.id not in graph.from_input:
            continue
        data = [source for source in dict.fromkeys(node.inputs) if source in graph.from_input]
        above[node.id] = _common(data, above, depth)
        entry = above[node.id]
        depth[node.id] = 0 if entry is None else depth[entry] + 1
        if node.op != "add" or len(data) < 2 or entry is None:
            continue
        inside = _region(graph, node, entry)
        kernels = {kernel.name for n in inside if (kernel := graph.kernel_of(n))}
        ordered = sorted(inside, key=lambda n: graph.position[n.id])
        if kernels & taken or not kernels or _fewest(graph, ordered, entry, data) > 1:
            continue
        taken |= kernels
        names = dict.fromkeys(n.layer for n in ordered if n.layer is not None)
        attention = any(n.op in ATTENDS for n in inside)
        found.append(Block(tuple(name for name in names if name in kernels), tuple(names), attention))
    return found


def _common(nodes: Sequence[str], above: dict[str, str | None], depth: dict[str, int]) -> str | None:
    """The nearest step that all paths to these nodes go through; None where they start apart."""
    if not nodes:
        return None
    one: str | None = nodes[0]
    for node in nodes[1:]:
        other: str | None = node
        while one is not None and other is not None and one != other:
            if depth[one] >= depth[other]:
                one = above[one]
            else:
                other = above[other]
        one = one if one == other else None
    return one


def _region(graph: LayerGraph, end: Node, entry: str) -> list[Node]:
    """What of the data lies between two steps, both left out; ``entry`` is on every path to ``end``."""

    def inside(node: Node) -> bool:
        return node.id != entry and node.id in graph.from_input

    return [node for node in graph.walk([end.id], through=inside) if inside(node) and node is not end]


def _fewest(graph: LayerGraph, inside: Sequence[Node], entry: str, ends: Iterable[str]) -> int:
    """Kernels on the path from ``entry`` to one of ``ends`` that passes the fewest."""
    count = {entry: 0}
    for node in inside:
        before = min((count[source] for source in node.inputs if source in count), default=0)
        count[node.id] = before + (graph.kernel_of(node) is not None)
    return min(count[end] for end in ends)
