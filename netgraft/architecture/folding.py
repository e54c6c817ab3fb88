"""Canonical forms with what can be multiplied into the weights before it: batch norms and layer scales.

A network that was made ready for use has no batch norms, one that was trained has: with them as parts of the kernels
before them, both have one form. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import replace

from netgraft.architecture.canonical import BATCH_NORM, CanonicalGraph


def folded(graph: CanonicalGraph) -> CanonicalGraph:
    """The graph with each batch norm and layer scale as a part of the kernel right before it .

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
