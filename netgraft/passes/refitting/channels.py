"""Which channel of the source each output channel of a target layer is to follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netgraft.architecture.graph import Layer, LayerGraph
from netgraft.channels import index_map
from netgraft.channels.correspondence import Correspondence, Norms
from netgraft.channels.groups.find import find_groups
from netgraft.channels.layout import axes_of


class OutputChannels:
    """One map per channel group, as in the grafted weights: what a residual block adds up must mean the same."""

    def __init__(
        self, source: LayerGraph, target: LayerGraph, pairs: Iterable[tuple[Layer, Layer]], norms: Norms | None
    ) -> None:
        self.norms = norms
        self.maps = Correspondence(find_groups(source), find_groups(target), pairs, "importance", norms, fresh=True)

    def __call__(self, source_layer: Layer, target_layer: Layer) -> Sequence[int]:
        """The source channel of each output channel of ``target_layer``; -1 for those that follow none."""
        source_slot, target_slot = source_layer.tensors.get("weight"), target_layer.tensors.get("weight")
        if (
            source_slot is not None
            and target_slot is not None
            and not (source_layer.transposed or target_layer.transposed)
        ):
            a, b = axes_of(self.maps.source, source_slot)[0], axes_of(self.maps.target, target_slot)[0]
            index = self.maps.index(a, b)
            if index is not None and a.size == source_layer.out_channels and b.size == target_layer.out_channels:
                return index
        return self._by_itself(source_layer, target_layer.out_channels)

    def _by_itself(self, source_layer: Layer, wanted: int) -> list[int]:
        """Without a group in common: the most important channels of this layer, or all of them and new ones."""
        have = source_layer.out_channels
        if wanted >= have:
            return [*range(have), *[index_map.NEW] * (wanted - have)]
        weight = source_layer.tensors.get("weight")
        if self.norms is None or weight is None or weight.shape[0] != have:
            return index_map.indices(index_map.uniform(have, wanted))
        scores = self.norms(weight.key, 0)
        return sorted(sorted(range(have), key=lambda channel: (-scores[channel], channel))[:wanted])
