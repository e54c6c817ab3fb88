"""Canonical forms without parts that only one of two networks has, although both compute the same.

A network that was made ready for use has no batch norms, one that was trained has: with them as parts of the kernels
before them, both have one form. So it is with layer scales, and with a table that one network learns, while the other
computes it, or has it as a buffer. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import replace

from netgraft.architecture.canonical import BATCH_NORM, CanonicalGraph


def folded(graph: CanonicalGraph) -> CanonicalGraph:
    """The graph with each batch norm and layer scale as a part of the kernel right before it.

    Left as they are: norms behind a kernel that something else reads too, and those behind a part of a layer.
    """
    parts, edges = list(graph.parts), dict(graph.edges)
    gone: set[int] = set()
    for place, part in enumerate(graph.parts):
        before = graph.before[place]
        if part.kind != BATCH_NORM or len(before) != 1 or graph.edges[before[0], place]:
            continue
        kernel = parts[before[0]]
        if kernel.is_kernel and kernel.rows is None and graph.after[before[0]] == [place]:
            parts[before[0]] = replace(kernel, norm=part.layer)
            edges |= {(before[0], after): graph.edges[place, after] for after in graph.after[place]}
            gone.add(place)
    for place, scale in graph.scales.items():
        kernel = parts[place]
        if kernel.rows is None and not kernel.norm:
            parts[place] = replace(kernel, scale=graph.parts[scale].layer)
            for after in graph.after[place]:
                edges[place, after] = edges[place, after] - {"mul"}
            gone.add(scale)
    return CanonicalGraph(tuple(parts), edges, graph.scales).without(gone)


def without_lone_tables(one: CanonicalGraph, other: CanonicalGraph) -> tuple[CanonicalGraph, CanonicalGraph]:
    """Both without the tables of sizes that only one of them learns."""
    sizes = [{part.label for part in graph.parts if part.kind == "table"} for graph in (one, other)]
    kept = []
    for graph, others in ((one, sizes[1]), (other, sizes[0])):
        lone = [place for place, part in enumerate(graph.parts) if part.kind == "table" and part.label not in others]
        kept.append(graph.without(lone))
    return kept[0], kept[1]
