"""Ablation of the chain principle: the layers that are transferred, in random order (HMT 3.4, Table 1)."""

from __future__ import annotations

import random
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import ClassVar

from netgraft.architecture.chain import longest_chain
from netgraft.architecture.graph import LayerGraph
from netgraft.architecture.kinds import Exchange
from netgraft.matchers.longest_chain import pair_along, unlike
from netgraft.plan import Pairing


@dataclass(frozen=True)
class ShuffledChain:
    """The source layers that HMT transfers, shuffled: the paper's "shuffled HMT" ablation (HMT 3.4).

    Layers change places only with those that fit there too, so that as many move as without it.
    """

    ablation: ClassVar[bool] = True
    seed: int = field(default=0, metadata={"help": "which permutation"})

    def __call__(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        source_chain, target_chain = longest_chain(source), longest_chain(target)
        positions = list(range(min(len(source_chain), len(target_chain))))
        alike: dict[Hashable, list[int]] = {}
        for place in positions:
            one, other = source.layers[source_chain.layers[place]], target.layers[target_chain.layers[place]]
            if not unlike(one, other):
                same_shape = one.rules.exchange is Exchange.SAME_SHAPE
                kind = one.rules.exchanges_as, one.gates, one.shape if same_shape else ()
                alike.setdefault(kind, []).append(place)
        chance = random.Random(self.seed)
        for places in alike.values():
            shuffled = places[:]
            chance.shuffle(shuffled)
            for place, other_place in zip(places, shuffled, strict=True):
                positions[place] = other_place
        return pair_along(source, target, source_chain, target_chain, positions)
