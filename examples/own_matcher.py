"""A matcher of your own: layers go by the ends of their names.

netgraft plan netgraft:resnet20-glyphs examples/resnet8.py --recipe hmt --matcher examples/own_matcher.py
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from netgraft.architecture.graph import LayerGraph
from netgraft.matchers.longest_chain import unlike
from netgraft.plan import Pair, Pairing


@dataclass(frozen=True)
class BySuffix:
    """Each layer to the one of its kind whose name ends most like its own: encoder.block1.conv to block1.conv."""

    def __call__(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        pairs, unpaired = [], {}
        for layer in target.kernels():
            alike = [each for each in source.kernels() if not unlike(each, layer)]
            best = max(alike, key=lambda each: _common(each.name, layer.name), default=None)
            if best is not None and (count := _common(best.name, layer.name)):
                pairs.append(Pair(best.name, layer.name, f"the last {count} parts of their names are equal"))
            else:
                unpaired[layer.name] = "no name in the source ends like this one"
        return Pairing(tuple(pairs), unpaired)


def _common(one: str, other: str) -> int:
    """How many parts of two dotted names are equal, from the end."""
    parts = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], parts))
