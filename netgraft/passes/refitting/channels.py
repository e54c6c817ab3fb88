"""Which channel of the source each output channel of a target layer is to follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netgraft.architecture.graph import Layer, LayerGraph
from netgraft.channels import index_map
from netgraft.channels.correspondence import Correspondence, Norms, axes_of
from netgraft.channels.groups.find import find_groups


class OutputChannels:
    """One map per channel group, as in the grafted weights: what a residual block adds up must mean the same."""

    def __init__(
        self, source: LayerGraph, target: LayerGraph, pairs: Iterable[tuple[Layer, Layer]], norms: Norms | None
    ) -> None:
        self.norms = norms
        self.maps = Correspondence(find_groups(source), find_groups(target), pairs, "importance", norms, fresh=True)

    def __call__(self, there: Layer, here: Layer) -> Sequence[int]:
        """The source channel of each output channel of ``here``; -1 for those that follow none."""
        theirs, ours = there.tensors.get("weight"), here.tensors.get("weight")
        if theirs is not None and ours is not None and not (there.transposed or here.transposed):
            a, b = axes_of(self.maps.theirs, theirs)[0], axes_of(self.maps.ours, ours)[0]
            index = self.maps.index(a, b)
            if index is not None and a.size == there.out_channels and b.size == here.out_channels:
                return index
        return self._by_itself(there, here.out_channels)

    def _by_itself(self, there: Layer, wanted: int) -> list[int]:
        """Without a group in common: the most important channels of this layer, or all of them and new ones."""
        have = there.out_channels
        if wanted >= have:
            return [*range(have), *[index_map.NEW] * (wanted - have)]
        weight = there.tensors.get("weight")
        if self.norms is None or weight is None or weight.shape[0] != have:
            return index_map.indices(index_map.uniform(have, wanted))
        scores = self.norms(weight.key, 0)
        return sorted(sorted(range(have), key=lambda channel: (-scores[channel], channel))[:wanted])
