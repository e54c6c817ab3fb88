"""What several formats say of an architecture and of a layer in the same words."""

from __future__ import annotations

from netgraft.architecture.graph import Layer
from netgraft.lock.inspection import Inspected


def headline(result: Inspected) -> str:
    """How long the chain is: "the longest chain has 50 of 54 layers, one of 4 equally long"."""
    chain = result.chain
    settings = result.entry.settings
    by = " by parameters" if settings.weight == "params" else ""
    gates = "" if settings.gates else " without gates"
    ties = "" if chain.ties <= 1 else f", one of {chain.ties:,} equally long"
    return f"the longest chain{by}{gates} has {len(chain)} of {len(result.graph.kernels())} layers{ties}"


def kind_text(layer: Layer) -> str:
    """The kind, with what sets a convolution apart: "conv2d depthwise", "conv2d groups 32"."""
    if layer.groups == 1:
        return layer.kind
    depthwise = layer.is_depthwise and layer.shape[1] == 1
    return f"{layer.kind} {'depthwise' if depthwise else f'groups {layer.groups}'}"


def chain_edges(result: Inspected) -> set[tuple[str, str]]:
    """The edges between layers that lie on the chain, norms between two layers of the chain included."""
    chain = result.chain
    ends = [*chain.layers[1:], None]
    found: set[tuple[str, str]] = set()
    edges = result.graph.layer_edges()
    for layer, norms, end in zip(chain.layers, chain.followers, ends, strict=True):
        sources, targets = {layer, *norms}, {*norms, end}
        found.update(edge for edge in edges if edge[0] in sources and edge[1] in targets and edge[0] != edge[1])
    return found
