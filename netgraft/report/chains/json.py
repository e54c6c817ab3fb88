"""``--format json``: one list, an object per architecture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from netgraft.architecture.graph import Layer
from netgraft.lock.inspection import Inspected, Result
from netgraft.report.chains.changes import change_document


def report(results: Sequence[Result], lock: Path | None) -> Iterator[str]:
    """The document; lone surrogates and control characters are escaped as JSON has it."""
    documents = [
        chain_document(result, compared=lock is not None) for result in results if isinstance(result, Inspected)
    ]
    yield json.dumps(documents, indent=2)


def chain_document(result: Inspected, *, compared: bool) -> dict[str, Any]:
    """An architecture as plain data, with every layer and the data flow between layers."""
    graph, chain = result.graph, result.chain
    document = {
        "model": result.model,
        "chain": list(chain.layers),
        "followers": [list(norms) for norms in chain.followers],
        "ties": chain.ties,
        "layers": {layer.name: layer_document(layer) for layer in graph.layers.values()},
        "edges": [list(edge) for edge in graph.layer_edges()],
        "rung": graph.rung,
        "warnings": list(graph.warnings),
    }
    if result.tied:
        document["chains"] = [list(tied.layers) for tied in result.tied]
    if compared:
        document["locked"] = not result.missing
        document["changes"] = [change_document(change) for change in result.changes or ()]
    if result.wanted:
        document["wanted"] = result.wanted
    return document


def layer_document(layer: Layer) -> dict[str, Any]:
    """A layer as plain data: kind, weight shape, how it slides, and its state_dict keys."""
    document: dict[str, Any] = {"kind": layer.kind, "shape": list(layer.shape)}
    if layer.is_conv:
        document |= {name: list(getattr(layer, name)) for name in ("stride", "padding", "dilation")}
        document["groups"] = layer.groups
    if layer.calls > 1:
        document["calls"] = layer.calls
    document["tensors"] = {role: slot.key for role, slot in layer.tensors.items()}
    return document
