"""Whether two canonical forms are one, and which part of one is which of the other.

Parts are coloured by what they are and by the colours around them, again and again (Weisfeiler and Lehman 1968), until
nothing new is told apart. Where that leaves several parts of one colour, VF2++ (networkx) finds a map that respects
the edges. Nothing here imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from netgraft.architecture.canonical import CanonicalGraph

ROUNDS = 2000
"""Most rounds of colouring; a chain of n parts takes about n."""


def isomorphism(source: CanonicalGraph, target: CanonicalGraph) -> dict[int, int] | None:
    """Parts of the source by the part of the target that they are; None if the two forms differ."""
    if len(source.parts) != len(target.parts) or len(source.edges) != len(target.edges):
        return None
    colours = colour((source, target))
    if colours is None:
        return None
    places: list[dict[int, list[int]]] = [{}, {}]
    for found, each in zip(places, colours, strict=True):
        for place, shade in enumerate(each):
            found.setdefault(shade, []).append(place)
    if all(len(group) == 1 for group in places[0].values()):
        return {places[1][shade][0]: group[0] for shade, group in places[0].items()}
    return _vf2(source, target, colours)


def colour(graphs: Sequence[CanonicalGraph], rounds: int = ROUNDS) -> list[list[int]] | None:
    """A colour for every part of every graph, equal where nothing tells two parts apart.

    None as soon as the first two graphs do not have the same number of parts of each colour.
    """
    current = _numbered([[part.label for part in graph.parts] for graph in graphs])
    known = 0
    for _ in range(rounds):
        if Counter(current[0]) != Counter(current[1]):
            return None
        count = len(set(current[0]))
        if count == known:
            break
        known = count
        current = _numbered([around(graph, colours) for graph, colours in zip(graphs, current, strict=True)])
    return current


def around(graph: CanonicalGraph, colours: Sequence[Hashable]) -> list[Hashable]:
    """Each part's colour with those of the parts that feed it and that it feeds, and the labels of the edges."""
    labels = graph.edges
    return [
        (
            colours[place],
            _bag((colours[other], labels[other, place]) for other in graph.before[place]),
            _bag((colours[other], labels[place, other]) for other in graph.after[place]),
        )
        for place in range(len(graph.parts))
    ]


def _bag(values: Iterable[Hashable]) -> Hashable:
    return frozenset(Counter(values).items())


def _numbered(colours: Sequence[Sequence[Hashable]]) -> list[list[int]]:
    """Colours as numbers, the same for equal ones in all graphs."""
    numbers: dict[Hashable, int] = {}
    return [[numbers.setdefault(shade, len(numbers)) for shade in each] for each in colours]


def _vf2(source: CanonicalGraph, target: CanonicalGraph, colours: Sequence[Sequence[int]]) -> dict[int, int] | None:
    import networkx as nx

    drawn: list[nx.DiGraph[int]] = []
    for graph, shades in zip((target, source), (colours[1], colours[0]), strict=True):
        dag: nx.DiGraph[int] = nx.DiGraph()
        for place, shade in enumerate(shades):
            dag.add_node(place, shade=shade)
        dag.add_edges_from(graph.edges)
        drawn.append(dag)
    found: dict[int, int] | None = nx.vf2pp_isomorphism(*drawn, node_label="shade")
    return found
