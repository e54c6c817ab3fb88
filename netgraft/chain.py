"""The longest chain: the path through a network that passes the most parametric layers (HMT 2.3.1).

Nothing here imports torch: it works on hand-drawn graphs too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netgraft.graph import LayerGraph, Node
from netgraft.plan import numel


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

    kernels: int = 0
    layers: int = 0  # norms and the like counted too
    numel: int = 0


def longest_chain(graph: LayerGraph) -> Chain:
    """The path with the most kernel layers from an input to an output, by dynamic programming in O(V + E).

    Equally long paths are told apart by the number of all layers on them, then by the number of their weights, then by
    execution order, so the answer never depends on chance; ``ties`` says how many there were. A graph without a kernel
    layer between input and output gives an empty chain.
    """
    live = graph.from_input & graph.to_output
    best: dict[str, tuple[_Score, str | None]] = {}
    for node in graph.nodes:
        if node.id not in live:
            continue
        before: tuple[_Score, str | None] = (_Score(), None)
        for source in node.inputs:
            if source in best and (before[1] is None or best[source][0] > before[0]):
                before = (best[source][0], source)
        best[node.id] = (_plus(before[0], graph, node), before[1])
    ends = [node.id for node in graph.nodes if node.op == "output" and node.id in best]
    if not ends:
        return Chain((), (), (), 0)
    path = []
    step: str | None = max(ends, key=lambda id: best[id][0])
    while step is not None:
        path.append(step)
        step = best[step][1]
    nodes = tuple(id for id in reversed(path) if _is_kernel(graph, graph.by_id[id]))
    layers = tuple(graph.by_id[id].layer or "" for id in nodes)
    return Chain(nodes, layers, tuple(_followers(graph, nodes)), _count_longest(graph, live) if nodes else 0)


def _plus(score: _Score, graph: LayerGraph, node: Node) -> _Score:
    if node.op != "layer" or node.layer is None:
        return score
    layer = graph.layers[node.layer]
    if not layer.is_kernel:
        return _Score(score.kernels, score.layers + 1, score.numel)
    return _Score(score.kernels + 1, score.layers + 1, score.numel + numel(layer.shape))


def _is_kernel(graph: LayerGraph, node: Node) -> bool:
    return node.op == "layer" and node.layer is not None and graph.layers[node.layer].is_kernel


def _count_longest(graph: LayerGraph, live: frozenset[str]) -> int:
    """Number of distinct sequences of kernel layers of the greatest length.

    ``lasts`` are the kernels that end a longest sequence up to a node, so that paths which differ only in the
    operations between two layers count once.
    """
    length: dict[str, int] = {}
    lasts: dict[str, frozenset[str]] = {}
    ways: dict[str, int] = {}
    for node in graph.nodes:
        if node.id not in live:
            continue
        sources = [source for source in node.inputs if source in length]
        longest = max((length[source] for source in sources), default=0)
        before = frozenset().union(*(lasts[source] for source in sources if length[source] == longest))
        if _is_kernel(graph, node):
            ways[node.id] = sum(ways[last] for last in before) or 1
            length[node.id], lasts[node.id] = longest + 1, frozenset({node.id})
        else:
            length[node.id], lasts[node.id] = longest, before
    ends = [node.id for node in graph.nodes if node.op == "output" and node.id in length]
    longest = max(length[end] for end in ends)
    return sum(ways[last] for last in frozenset().union(*(lasts[end] for end in ends if length[end] == longest)))


def _followers(graph: LayerGraph, chain: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """For each node of the chain the norm layers on the way to the next one (or to the output)."""
    position = {node.id: i for i, node in enumerate(graph.nodes)}
    ends = [*chain[1:], *(node.id for node in graph.nodes if node.op == "output")][: len(chain)]
    for start, end in zip(chain, ends, strict=True):
        after = _between(graph, position, start, end, forwards=True)
        before = _between(graph, position, end, start, forwards=False)
        norms = [graph.by_id[id].layer or "" for id in sorted(after & before, key=position.__getitem__)]
        yield tuple(dict.fromkeys(name for name in norms if name and graph.layers[name].is_norm))


def _between(graph: LayerGraph, position: dict[str, int], start: str, end: str, *, forwards: bool) -> set[str]:
    """Nodes reached from ``start`` before ``end`` in execution order, without passing another kernel layer."""
    low, high = sorted((position[start], position[end]))
    neighbours = graph.dag.successors if forwards else graph.dag.predecessors
    seen: set[str] = set()
    stack = [start]
    while stack:
        for other in neighbours(stack.pop()):
            if other not in seen and low < position[other] < high and not _is_kernel(graph, graph.by_id[other]):
                seen.add(other)
                stack.append(other)
    return seen
