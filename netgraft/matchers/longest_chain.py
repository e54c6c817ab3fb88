"""The l-th layer of the source's longest chain to the l-th of the target's (HMT 2.3.1-2.3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from netgraft.architecture.chain import Chain, longest_chain
from netgraft.architecture.graph import Layer, LayerGraph
from netgraft.architecture.kinds import Exchange
from netgraft.plan import Pair, Pairing


@dataclass(frozen=True)
class LongestChain:
    """The l-th layer of one longest chain to the l-th of the other, l <= min(m, n) (HMT 2.3.2)."""

    def __call__(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        source_chain, target_chain = longest_chain(source), longest_chain(target)
        return pair_along(source, target, source_chain, target_chain, range(min(len(source_chain), len(target_chain))))


def pair_along(
    source: LayerGraph, target: LayerGraph, source_chain: Chain, target_chain: Chain, positions: Sequence[int | None]
) -> Pairing:
    """Pair place i of the target's chain with place ``positions[i]`` of the source's.

    None, or a list that ends early, leaves a target layer alone. Departs from the paper: layers of unlike kind are not
    paired, and a layer that stands on the chain twice (shared weights) is paired once.
    """
    pairs: list[Pair] = []
    unpaired: dict[str, str] = {}
    for i, name in enumerate(target_chain.layers):
        position = positions[i] if i < len(positions) else None
        if any(pair.target == name for pair in pairs):
            continue
        if position is None:
            unpaired[name] = f"layer {i + 1} of the chain has no partner on the source's chain of {len(source_chain)}"
            continue
        partner = source.layers[source_chain.layers[position]]
        if reason := unlike(partner, target.layers[name]):
            unpaired[name] = f"layer {i + 1} of the chain: {reason}"
        else:
            unpaired.pop(name, None)
            pairs.append(Pair(partner.name, name, f"layers {position + 1} and {i + 1} of the longest chains"))
    for layer in target.kernels():
        if layer.name not in target_chain.layers:
            unpaired[layer.name] = "not on the longest chain"
    return Pairing(tuple(pairs), unpaired)


def unlike(source: Layer, target: Layer) -> str:
    """Why the weights of these two layers cannot be turned into one another; empty if they can."""
    if source.rules.exchanges_as != target.rules.exchanges_as:
        return f"{source.kind} {source.name} does not fit {target.kind}"
    if source.gates != target.gates:
        return f"{source.kind} {source.name} has {source.gates} gates, not {target.gates}"
    if source.rules.exchange is Exchange.SAME_SHAPE and source.shape != target.shape:
        return f"{source.kind} {source.name} has another shape"
    return ""
