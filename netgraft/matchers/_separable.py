"""Depthwise-separable convolutions, for sources that have dense ones in their place. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod

from netgraft.architecture.wiring import Place

Units = tuple[list[Place], list[tuple[Place, ...]]]


def join_separable(places: Sequence[Place], others: Sequence[Place]) -> Units:
    """Places to align with those of the other network, and the layers that each of them stands for.

    A depthwise convolution and the pointwise one behind it do together what a dense one does (MobileNet,
    arXiv:1704.04861). Where a network is made of such pairs, outside residual blocks, and the other has
    dense kernels only, each pair is one place. A pointwise convolution that widens the map before the depthwise one
    (MobileNetV2's blocks) has a dense counterpart of its own: there every layer stays by itself.
    """
    alone: Units = (list(places), [(place,) for place in places])
    if any(place.depthwise for place in others) or not any(place.depthwise for place in places):
        return alone
    groups: list[tuple[Place, ...]] = []
    for place in places:
        if groups and len(groups[-1]) == 1 and groups[-1][0].depthwise and _pointwise(place):
            groups[-1] += (place,)
        else:
            groups.append((place,))
    in_runs = len({place.run for place in places}) < len(places)
    lone = any(len(group) == 1 and (_pointwise(group[0]) or group[0].depthwise) for group in groups)
    split = any(place.reads != before.writes for group in groups for before, place in pairwise(group))
    if in_runs or lone or split:
        return alone
    last = max(len(groups) - 1, 1)
    return [replace(_whole(group), depth=i / last, run=i) for i, group in enumerate(groups)], groups


def _pointwise(place: Place) -> bool:
    layer = place.layer
    return layer.is_conv and layer.groups == 1 and prod(layer.shape[2:]) == 1


def _whole(group: tuple[Place, ...]) -> Place:
    """The dense convolution that a pair stands for."""
    first, last = group[0], group[-1]
    if first is last:
        return first
    sizes = (last.sizes[0], *first.sizes[1:])
    return replace(last, reads=first.reads, from_stream=first.from_stream, stem=first.stem, sizes=sizes)
