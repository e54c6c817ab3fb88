"""What ``inspect-chains`` shows of an architecture: its longest chain, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from netgraft.chain import Chain
from netgraft.graph import Layer, LayerGraph
from netgraft.report.text import safe, shape_text, table


def chain_table(name: str, graph: LayerGraph, chain: Chain) -> Iterator[str]:
    """The chain for people to read: one line a layer, then totals and warnings."""
    kernels = graph.kernels()
    ties = "" if chain.ties <= 1 else f", one of {chain.ties:,} equally long"
    yield f"{safe(name)}: the longest chain has {len(chain)} of {len(kernels)} layers{ties}"
    yield ""
    rows = []
    for i, (layer, norms) in enumerate(zip(chain.layers, chain.followers, strict=True), start=1):
        facts = graph.layers[layer]
        rows.append((str(i), layer, kind_text(facts), shape_text(facts.shape), " ".join(norms)))
    yield from table(("", "layer", "kind", "shape", "norms that follow"), rows, indent="  ")
    yield ""
    for warning in graph.warnings:
        yield f"warning: {safe(warning)}"


def chain_document(name: str, graph: LayerGraph, chain: Chain) -> dict[str, Any]:
    """The same as plain data for JSON, with every layer and the data flow between layers."""
    return {
        "model": name,
        "chain": list(chain.layers),
        "followers": [list(norms) for norms in chain.followers],
        "ties": chain.ties,
        "layers": {layer.name: layer_document(layer) for layer in graph.layers.values()},
        "edges": [list(edge) for edge in graph.layer_edges()],
        "rung": graph.rung,
        "warnings": list(graph.warnings),
    }


def layer_document(layer: Layer) -> dict[str, Any]:
    """A layer as plain data: kind, weight shape, how it slides, and its state_dict keys."""
    document: dict[str, Any] = {"kind": layer.kind, "shape": list(layer.shape)}
    if layer.kind.startswith("conv"):
        document |= {name: list(getattr(layer, name)) for name in ("stride", "padding", "dilation")}
        document["groups"] = layer.groups
    if layer.calls > 1:
        document["calls"] = layer.calls
    document["tensors"] = {role: slot.key for role, slot in layer.tensors.items()}
    return document


def kind_text(layer: Layer) -> str:
    """The kind, with what sets a convolution apart: "conv2d depthwise", "conv2d groups 32"."""
    if layer.groups == 1:
        return layer.kind
    depthwise = layer.groups == layer.out_channels and layer.shape[1] == 1
    return f"{layer.kind} {'depthwise' if depthwise else f'groups {layer.groups}'}"
