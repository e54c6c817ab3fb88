"""A source tensor laid out as the target's: axes for kernels, groups, linear layers written the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import NamedTuple

from netgraft.architecture.graph import Layer, Slot
from netgraft.architecture.layout import PLAIN, Rewriting, layout_between
from netgraft.plan import Step

INFLATED = "kernels gain or lose an axis"
"""How the note begins that nothing but a change of dimension takes exactness away: on still inputs there is none."""


class Laid(NamedTuple):
    """Steps before and after the channels are resized, with the two tensors as they stand between."""

    before: tuple[Step, ...]
    after: tuple[Step, ...]
    partner: Slot
    slot: Slot
    notes: tuple[str, ...]


def lay(source: Layer, target: Layer, partner: Slot, slot: Slot) -> Laid | None:
    """How ``partner``, a tensor of ``source``, comes to have the axes of ``slot``; None where no operator does it."""
    layout = layout_between(source, target, partner, slot)
    if layout is None:
        return None
    if layout == PLAIN:
        return Laid((), (), partner, slot, ())
    after = (Step("to-grouped", {"groups": layout.groups}),) if layout.groups > 1 else ()
    notes: list[str] = []
    if any(size > 1 for size in (*layout.added, *partner.shape[2 : 2 + layout.dropped])):
        notes.append(f"{INFLATED}: exact where the input does not change along it, away from padding there")
    if layout.groups > 1 and layout.dense % layout.groups:
        notes.append(f"{slot.key}: of {partner.key} what stays within {layout.groups} groups")
    shapes = layout.shape(partner.shape), layout.dense_shape(slot.shape)
    between = replace(partner, shape=shapes[0]), replace(slot, shape=shapes[1])
    return Laid(tuple(_steps(layout)), after, *between, tuple(notes))


def _steps(layout: Rewriting) -> Iterator[Step]:
    if layout.dense > 1:
        yield Step("to-dense", {"groups": layout.dense})
    if layout.merged:
        yield Step("flatten", {"dim": 1, "ndim": layout.merged})
    if layout.transposed:
        yield Step("transpose")
    if layout.split:
        yield Step("unflatten", {"dim": 1, "shape": list(layout.split)})
    for _ in range(layout.dropped):
        yield Step("deflate", {"dim": 2})
    for size in reversed(layout.added):
        yield Step("inflate", {"size": size, "dim": 2})


def same_strides(source: Layer, target: Layer) -> bool:
    """Whether two layers step alike along the axes that both have; what is no convolution steps by one."""
    if not (source.stride and target.stride):
        return prod(source.stride or target.stride or (1,)) == 1
    common = min(len(source.stride), len(target.stride))
    return source.stride[-common:] == target.stride[-common:]
