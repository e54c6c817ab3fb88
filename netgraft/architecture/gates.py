"""Gates: side paths that scale a feature map, such as squeeze-and-excitation and spatial attention.

A gate is known by its structure, never by its name. At an elementwise multiplication with a feature map, the other
operand is a gate if it is squashed (by a sigmoid, softmax or the like) and smaller than the map, or if it was computed
from that very map and is squashed or smaller. Smaller: it is broadcast, or enlarged before it is multiplied. So the two
halves of a gated linear unit are no gates, and neither are the products inside attention. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from math import prod

from netgraft.architecture.graph import LayerGraph, Node
from netgraft.architecture.operations import BOUNDS, SELECTS


def without_gates(graph: LayerGraph) -> LayerGraph:
    """``graph`` with every gate cut off where it is multiplied: what only serves gates no longer reaches the output."""
    cut = set(gate_edges(graph))
    if not cut:
        return graph
    nodes = tuple(replace(n, inputs=tuple(i for i in n.inputs if (i, n.id) not in cut)) for n in graph.nodes)
    return replace(graph, nodes=nodes)


def gate_edges(graph: LayerGraph) -> Iterator[tuple[str, str]]:
    """(gate, multiplication) node ids, in execution order; never all operands of a multiplication."""
    for node in graph.nodes:
        operands = [id for id in node.inputs if id in graph.from_input]
        if node.op != "mul" or len(operands) < 2:
            continue
        for gate in operands:
            if any(_is_gate(graph, gate, other) for other in operands if other != gate):
                yield gate, node.id
                break


def _is_gate(graph: LayerGraph, gate: str, other: str) -> bool:
    whole = graph.by_id[other]
    squashed, smaller = False, False
    for node in _back(graph, graph.by_id[gate]):
        squashed = squashed or node.op in BOUNDS
        smaller = smaller or prod(node.shape) < prod(whole.shape)
    if squashed and smaller:
        return True
    return (squashed or smaller) and any(
        _depends(graph, gate, origin.id)
        for origin in takewhile(lambda node: node.op not in SELECTS, _back(graph, whole))
    )


def _back(graph: LayerGraph, node: Node) -> Iterator[Node]:
    """``node`` and what it was made from, back to the first kernel or operation on several feature maps, inclusive."""
    while True:
        yield node
        data = [id for id in node.inputs if id in graph.from_input]
        if len(data) != 1 or graph.kernel_of(node) is not None:
            return
        node = graph.by_id[data[0]]


def _depends(graph: LayerGraph, node: str, origin: str) -> bool:
    """Whether ``node`` was computed from ``origin``, another node."""
    first = graph.position[origin]
    return any(each.id == origin for each in graph.walk([node], through=lambda each: graph.position[each.id] > first))
