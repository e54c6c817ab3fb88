"""``--format mermaid``: the layers as a flowchart for Markdown, the chain in bold; one subgraph each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from netgraft.lock.inspection import Inspected, Result
from netgraft.report.chains.layers import chain_edges, headline, kind_text
from netgraft.report.text import safe, shape_text


def report(results: Sequence[Result], lock: Path | None) -> Iterator[str]:  # noqa: ARG001
    """One flowchart."""
    yield "flowchart TD"
    yield "  classDef chain fill:#ffd700,stroke:#333,stroke-width:3px,color:#000"
    drawn, bold = 0, []
    for i, result in enumerate(results):
        if not isinstance(result, Inspected):
            continue
        graph, chosen = result.graph, chain_edges(result)
        ids = {name: f"m{i}n{j}" for j, name in enumerate(graph.layers)}
        on_chain = set(result.chain.layers)
        yield f"  subgraph m{i}[{quoted(f'{result.model}: {headline(result)}')}]"
        for name, layer in graph.layers.items():
            label = quoted(name, f"{kind_text(layer)} {shape_text(layer.shape)}")
            yield f"    {ids[name]}[{label}]{':::chain' if name in on_chain else ''}"
        for edge in graph.layer_edges():
            yield f"    {ids[edge[0]]} --> {ids[edge[1]]}"
            bold += [str(drawn)] if edge in chosen else []
            drawn += 1
        yield "  end"
    if bold:
        yield f"  linkStyle {','.join(bold)} stroke:#d00,stroke-width:4px"


def quoted(*lines: str) -> str:
    """A Mermaid string of these lines; what could end it, or be taken for markup or Markdown, as a character number."""
    return '"' + "<br/>".join(re.sub(r"[^\w .,:()/@=+-]", _number, safe(line)) for line in lines) + '"'


def _number(match: re.Match[str]) -> str:
    return f"#{ord(match[0])};"
