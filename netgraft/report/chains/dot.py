"""``--format dot``: the layers as a graph for Graphviz, the chain in bold; several architectures as clusters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from netgraft.lock.inspection import Inspected, Result
from netgraft.report.chains.layers import chain_edges, headline, kind_text
from netgraft.report.text import safe, shape_text


def report(results: Sequence[Result], lock: Path | None) -> Iterator[str]:  # noqa: ARG001
    """One directed graph."""
    yield "digraph netgraft {"
    yield "  node [shape=box, fontname=Helvetica];"
    for i, result in enumerate(results):
        if isinstance(result, Inspected):
            yield from (f"  {line}" for line in _cluster(i, result))
    yield "}"


def _cluster(number: int, result: Inspected) -> Iterator[str]:
    graph = result.graph
    ids = {name: f"m{number}_{i}" for i, name in enumerate(graph.layers)}
    on_chain, chosen = set(result.chain.layers), chain_edges(result)
    yield f"subgraph cluster_{number} {{"
    yield f"  label={quoted(result.model, headline(result))};"
    for name, layer in graph.layers.items():
        look = ", style=filled, fillcolor=gold, penwidth=2" if name in on_chain else ""
        yield f"  {ids[name]} [label={quoted(name, f'{kind_text(layer)} {shape_text(layer.shape)}')}{look}];"
    for edge in graph.layer_edges():
        look = " [color=red, penwidth=3]" if edge in chosen else ""
        yield f"  {ids[edge[0]]} -> {ids[edge[1]]}{look};"
    yield "}"


def quoted(*lines: str) -> str:
    r"""A DOT string of these lines. A backslash would start an escape such as \N, the node's name."""
    escaped = (safe(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'
