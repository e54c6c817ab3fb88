"""Norms carried along with the layers they follow."""

from __future__ import annotations

from dataclasses import replace

from netgraft.architecture.chain import Chain, longest_chain
from netgraft.architecture.graph import LayerGraph
from netgraft.plan import Pair, Pairing


def with_norms(pairing: Pairing, source: LayerGraph, target: LayerGraph, left_out: str = "") -> Pairing:
    """``pairing``, plus the norms that follow both layers of a pair on the longest chains.

    A norm behind a concatenation has channels that its layer did not write; it stays. Which of them are whose, the
    chain does not say.
    With ``left_out``, the reason for it, no norm is added and those of the target get this reason.
    """
    source_followers, target_followers = (_followers(longest_chain(graph)) for graph in (source, target))
    taken = {pair.target for pair in pairing.pairs}
    pairs, unpaired = [], dict(pairing.unpaired)
    for pair in pairing.pairs:
        pairs.append(pair)
        followers = source_followers.get(pair.source, ())
        for i, name in enumerate(target_followers.get(pair.target, ())):
            if name in taken:
                continue
            if left_out:
                unpaired[name] = left_out
            elif i >= len(followers):
                unpaired[name] = f"no norm follows {pair.source} in the source"
            elif foreign := _foreign(source, pair.source, followers[i]) or _foreign(target, pair.target, name):
                unpaired[name] = foreign
            elif source.layers[followers[i]].kind != target.layers[name].kind:
                kind = source.layers[followers[i]].kind
                unpaired[name] = f"{kind} {followers[i]} does not fit {target.layers[name].kind}"
            else:
                taken.add(name)
                unpaired.pop(name, None)
                pairs.append(Pair(followers[i], name, f"norm that follows {pair.target}"))
    return replace(pairing, pairs=tuple(pairs), unpaired=unpaired)


def _foreign(graph: LayerGraph, layer: str, norm: str) -> str:
    """Why a norm is not that of the layer before it on the chain; empty if it is."""
    wrote, normed = graph.layers[layer].out_channels, graph.layers[norm].out_channels
    return "" if wrote == normed else f"{norm} normalises {normed} channels, of which {layer} wrote {wrote}"


def _followers(chain: Chain) -> dict[str, tuple[str, ...]]:
    followers: dict[str, tuple[str, ...]] = {}
    for name, norms in zip(chain.layers, chain.followers, strict=True):
        followers.setdefault(name, norms)
    return followers
