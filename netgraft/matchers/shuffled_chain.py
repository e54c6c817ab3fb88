"""Ablation of the chain principle: the source's chain in random order (HMT 3.4, Table 1)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import ClassVar

from netgraft.architecture.chain import longest_chain
from netgraft.architecture.graph import LayerGraph
from netgraft.matchers.longest_chain import pair_along
from netgraft.plan import Pairing


@dataclass(frozen=True)
class ShuffledChain:
    """The source's chain shuffled, then paired in order: the paper's "shuffled HMT" ablation (HMT 3.4)."""

    ablation: ClassVar[bool] = True
    seed: int = field(default=0, metadata={"help": "which permutation"})

    def __call__(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        source_chain, target_chain = longest_chain(source), longest_chain(target)
        order = list(range(len(source_chain)))
        random.Random(self.seed).shuffle(order)
        return pair_along(source, target, source_chain, target_chain, order[: len(target_chain)])
