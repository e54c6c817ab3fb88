"""The longest chain: the path through a network that passes the most parametric layers (HMT 2.3.1).

Nothing here imports torch: it works on hand-drawn graphs too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from netgraft.architecture.gates import without_gates
from netgraft.architecture.graph import Layer, LayerGraph, Node

Weight = Literal["layers", "params"]
"""What makes a chain long: the kernel layers on it, or their parameters."""


@dataclass(frozen=True)
class Chain:
    """A path from the model's input to its output, seen as the kernel layers on it."""

    nodes: tuple[str, ...]  # node ids in order; a layer called twice may stand twice
    layers: tuple[str, ...]  # the layer of each node
    followers: tuple[tuple[str, ...], ...]  # per layer: norms between it and the next layer of the chain, in order
    ties: int = 1  # how many chains of layers are as long as this one, itself included

    def __len__(self) -> int:
        return len(self.layers)


@dataclass(frozen=True, order=True)
class _Score:
    """What makes one path better than another; ties fall through to the next field."""

    weight: int = 0
    kernels: int = 0
    layers: int = 0  # norms and the like counted too
    numel: int = 0


def longest_chain(graph: LayerGraph, *, gates: bool = True, weight: Weight = "layers") -> Chain:
    """The path with the most kernel layers from an input to an output, by dynamic programming in O(V + E).

    Equally long paths are told apart by the number of all layers on them, then by the number of their weights, then by
    execution order (where two paths meet, the one whose last step ran first), so the answer never depends on chance;
    ``ties`` says how many there were. A graph without a kernel layer between input and output gives an empty chain.

    ``gates=False`` leaves out what only scales the feature maps of the chain (``architecture.gates``).
    ``weight="params"`` takes the path whose kernel layers hold the most parameters; a layer called twice counts twice.
    """
    graph = graph if gates else without_gates(graph)
    live = graph.from_input & graph.to_output
    best: dict[str, tuple[_Score, str | None]] = {}
    for node in graph.nodes:
        if node.id not in live:
            continue
        before: tuple[_Score, str | None] = (_Score(), None)
        for source in sorted((id for id in node.inputs if id in best), key=graph.position.__getitem__):
            if before[1] is None or best[source][0] > before[0]:
                before = (best[source][0], source)
        best[node.id] = (_plus(before[0], graph, node, weight), before[1])
    ends = [node.id for node in graph.nodes if node.op == "output" and node.id in best]
    if not ends:
        return Chain((), (), (), 0)
    path = []
    step: str | None = max(ends, key=lambda id: best[id][0])
    while step is not None:
        path.append(step)
        step = best[step][1]
    nodes = tuple(id for id in reversed(path) if graph.kernel_of(graph.by_id[id]))
    if not nodes:
        return Chain((), (), (), 0)
    return _chain(graph, nodes, path[0], _count(_Longest(graph, live, weight)))


def all_longest_chains(
    graph: LayerGraph, limit: int = 100, *, gates: bool = True, weight: Weight = "layers"
) -> Iterator[Chain]:
    """At most ``limit`` of the chains that are as long as ``longest_chain``: that one first, then in execution order.

    Two chains differ in their layers; the ``ties`` of each say how many there are in all.
    """
    first = longest_chain(graph, gates=gates, weight=weight)
    if not first.nodes or limit < 1:
        return
    yield first
    if first.ties == 1:
        return
    graph = graph if gates else without_gates(graph)
    found = 1
    longest = _Longest(graph, graph.from_input & graph.to_output, weight)
    for nodes in _sequences(longest):
        if found == limit:
            return
        if nodes != first.nodes:
            found += 1
            yield _chain(graph, nodes, longest.last[nodes[-1]], first.ties)


def _chain(graph: LayerGraph, nodes: tuple[str, ...], output: str, ties: int) -> Chain:
    layers = tuple(graph.by_id[id].layer or "" for id in nodes)
    return Chain(nodes, layers, tuple(_followers(graph, nodes, output)), ties)


def _plus(score: _Score, graph: LayerGraph, node: Node, weight: Weight) -> _Score:
    layer = graph.layer_of(node) if node.op == "layer" else None
    if layer is None:
        return score
    if not layer.is_kernel:
        return _Score(score.weight, score.kernels, score.layers + 1, score.numel)
    return _Score(
        score.weight + _weight_of(layer, weight),
        score.kernels + 1,
        score.layers + 1,
        score.numel + prod(layer.shape),
    )


def _weight_of(layer: Layer, weight: Weight) -> int:
    """What a call of a kernel layer adds to a chain; at least one."""
    if weight == "layers":
        return 1
    parameters = sum(prod(slot.shape) for slot in layer.tensors.values() if not slot.buffer)
    return max(parameters or prod(layer.shape), 1)


class _Longest:
    """All longest sequences of kernel layers at once, as steps backwards from one kernel to those before it.

    Paths which differ only in the operations between two layers are one sequence.
    """

    def __init__(self, graph: LayerGraph, live: frozenset[str], weight: Weight) -> None:
        length: dict[str, int] = {}
        lasts: dict[str, frozenset[str]] = {}  # kernels that end a longest sequence up to a node
        self.position = graph.position
        self.before: dict[str, frozenset[str]] = {}  # kernel -> kernels before it on a longest sequence, in any order
        for node in graph.nodes:
            if node.id not in live:
                continue
            sources = [source for source in node.inputs if source in length]
            longest = max((length[source] for source in sources), default=0)
            before = _union(lasts[source] for source in sources if length[source] == longest)
            kernel = graph.kernel_of(node)
            if kernel is not None:
                self.before[node.id] = before
                length[node.id], lasts[node.id] = longest + _weight_of(kernel, weight), frozenset({node.id})
            else:
                length[node.id], lasts[node.id] = longest, before
        ends = [node.id for node in graph.nodes if node.op == "output" and node.id in length]
        longest = max((length[end] for end in ends), default=0)
        self.last: dict[str, str] = {}  # kernel that ends a longest sequence -> the output it leads to
        for end in ends:
            if length[end] == longest:
                for last in lasts[end]:
                    self.last.setdefault(last, end)


def _count(longest: _Longest) -> int:
    ways: dict[str, int] = {}
    for kernel, before in longest.before.items():
        ways[kernel] = sum(ways[other] for other in before) or 1
    return sum(ways[last] for last in longest.last)


def _sequences(longest: _Longest) -> Iterator[tuple[str, ...]]:
    """Every longest sequence of kernel nodes, in execution order of the first layer in which two differ."""
    after: dict[str | None, list[str]] = {}  # None: where sequences begin
    reached = set(longest.last)
    for kernel in sorted(longest.before, key=longest.position.__getitem__, reverse=True):
        if kernel in reached:
            reached.update(longest.before[kernel])
            for other in longest.before[kernel] or (None,):
                after.setdefault(other, []).insert(0, kernel)
    path: list[str] = []
    branches = [iter(after.get(None, ()))]
    while branches:
        step = next(branches[-1], None)
        if step is None:
            branches.pop()
            if path:
                path.pop()
            continue
        path.append(step)
        if step in longest.last:
            yield tuple(path)
        branches.append(iter(after.get(step, ())))


def _union(sets: Iterator[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*sets)


def _followers(graph: LayerGraph, chain: tuple[str, ...], output: str) -> Iterator[tuple[str, ...]]:
    """For each node of the chain the norm layers on the way to the next one (or to ``output``, where it ends)."""
    ends = [*chain[1:], output][: len(chain)]
    for start, end in zip(chain, ends, strict=True):
        after = _between(graph, start, end, forwards=True)
        before = _between(graph, end, start, forwards=False)
        norms = [graph.by_id[id].layer or "" for id in sorted(after & before, key=graph.position.__getitem__)]
        yield tuple(dict.fromkeys(name for name in norms if name and graph.layers[name].is_norm))


def _between(graph: LayerGraph, start: str, end: str, *, forwards: bool) -> set[str]:
    """Nodes reached from ``start`` before ``end`` in execution order, without passing another kernel layer."""
    low, high = sorted((graph.position[start], graph.position[end]))

    def inside(node: Node) -> bool:
        return low < graph.position[node.id] < high and graph.kernel_of(node) is None

    reached = graph.walk([start], forwards=forwards, through=lambda node: node.id == start or inside(node))
    return {node.id for node in reached if inside(node)}
