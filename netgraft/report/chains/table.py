"""``--format table``: the longest chain for people, one line a layer; against a lock, what changed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from netgraft.architecture.chain import Chain
from netgraft.lock.inspection import Broken, Inspected, Result
from netgraft.report.chains.changes import problems
from netgraft.report.chains.layers import headline, kind_text
from netgraft.report.text import safe, shape_text, table


def report(results: Sequence[Result], lock: Path | None) -> Iterator[str]:
    """A table for each architecture; against a lock one line, and what changed."""
    for i, result in enumerate(results):
        if isinstance(result, Broken):
            continue
        if lock is not None:
            yield from _comparison(result)
            continue
        yield from [""] if i else []
        yield from _chain_table(result)


def _comparison(result: Inspected) -> Iterator[str]:
    lines = problems(result)
    if not lines:
        yield f"{safe(result.model)}: unchanged, {headline(result)}"
        return
    yield f"{safe(result.model)}: {'not in the lock' if result.missing else 'changed' if result.changes else 'short'}"
    yield from (f"  {line}" for line in lines)


def _chain_table(result: Inspected) -> Iterator[str]:
    graph, chain = result.graph, result.chain
    yield f"{safe(result.model)}: {headline(result)}"
    yield ""
    rows = []
    for i, (layer, norms) in enumerate(zip(chain.layers, chain.followers, strict=True), start=1):
        facts = graph.layers[layer]
        rows.append((str(i), layer, kind_text(facts), shape_text(facts.shape), " ".join(norms)))
    yield from table(("", "layer", "kind", "shape", "norms that follow"), rows, indent="  ")
    yield ""
    if result.tied:
        yield from _tied(chain, result.tied)
    for warning in graph.warnings:
        yield f"warning: {safe(warning)}"
    for line in problems(result):
        yield f"check failed: {line}"


def _tied(chain: Chain, tied: Sequence[Chain]) -> Iterator[str]:
    """The other longest chains, by the layers in which they differ from the first."""
    if len(tied) == 1:
        yield "No other chain is as long."
        yield ""
        return
    shown = "all" if len(tied) == chain.ties else f"the first {len(tied)} of {chain.ties:,}"
    yield f"The longest chains, {shown}, by the layers in which they differ from the one above:"
    for i, other in enumerate(tied[1:], start=2):
        matcher = difflib.SequenceMatcher(None, chain.layers, other.layers, autojunk=False)
        steps = [
            f"{' '.join(chain.layers[a:b]) or '(nothing)'} -> {' '.join(other.layers[c:d]) or '(nothing)'}"
            for tag, a, b, c, d in matcher.get_opcodes()
            if tag != "equal"
        ]
        yield safe(f"  {i}: {'; '.join(steps)}")
    yield ""
