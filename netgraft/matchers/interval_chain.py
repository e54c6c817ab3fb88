"""Ablation of the chain principle: every second layer of the source's chain (HMT 3.4, Table 1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from netgraft.architecture.chain import longest_chain
from netgraft.architecture.graph import LayerGraph
from netgraft.matchers.longest_chain import pair_along
from netgraft.plan import Pairing


@dataclass(frozen=True)
class IntervalChain:
    """Every ``every``-th layer of the source's chain, in order: the paper's "interval HMT" ablation (HMT 3.4).

    Layers 1, 3, 5, ... of the source go with layers 1, 2, 3, ... of the target: what the paper calls a transfer "every
    two layers". Where the source's chain runs out, the rest of the target's chain has no partner.
    """

    ablation: ClassVar[bool] = True
    every: int = field(default=2, metadata={"help": "distance between the source layers used"})

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError("every must be at least 1")

    def __call__(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        source_chain, target_chain = longest_chain(source), longest_chain(target)
        return pair_along(source, target, source_chain, target_chain, range(0, len(source_chain), self.every))
