"""The structure of a tensor's axes when it is laid out anew as another layer's (``architecture.layout``)."""

from __future__ import annotations

from math import prod

from netgraft.architecture.graph import Layer, Slot
from netgraft.architecture.layout import PLAIN, Rewriting, layout_between
from netgraft.channels.groups.axes import Axis, Fixed, Product, normal
from netgraft.channels.groups.find import Groups

Axes = tuple[Axis, ...]


def axes_of(groups: Groups, slot: Slot) -> Axes:
    """The structure of each axis of a tensor; a tensor that no rule placed has positions of their own."""
    return groups.axes.get(slot.key) or tuple(Fixed(size) for size in slot.shape)


def paired_axes(
    source: Groups, target: Groups, source_layer: Layer, target_layer: Layer, partner: Slot, slot: Slot
) -> tuple[Axes, Axes] | None:
    """The axes of two tensors in the same role, one to one, as many of both.

    Those of ``partner`` are laid out as those of ``slot``; a kernel in groups stands as the dense one it is equal to,
    where only one of the two has them. None if the two are not made alike.
    """
    layout = layout_between(source_layer, target_layer, partner, slot)
    if layout is None:
        return None
    before, after = axes_of(source, partner), axes_of(target, slot)
    return (before, after) if layout == PLAIN else (_laid(before, layout), _dense(after, layout.groups))


def _laid(axes: Axes, layout: Rewriting) -> Axes:
    """The axes when all but the groups is done, as ``Rewriting.shape`` has their sizes."""
    rows, columns, *taps = _dense(axes, layout.dense)
    if layout.merged:
        columns, taps = normal(Product((columns, *taps))), []
    if layout.transposed:
        rows, columns = columns, rows
    if layout.split:
        kernel = layout.split[1:]
        columns, taps = _outer(columns, columns.size // prod(kernel)), [Fixed(size) for size in kernel]
    return (rows, columns, *map(Fixed, layout.added), *taps[layout.dropped :])


def _dense(axes: Axes, groups: int) -> Axes:
    """[g x out, in, *kernel] as [g x out, g x in, *kernel]."""
    if groups == 1:
        return axes
    return (axes[0], normal(Product((_outer(axes[0], groups), axes[1]))), *axes[2:])


def _outer(axis: Axis, size: int) -> Axis:
    """The ``size`` outermost positions of a flattened axis; with a meaning of their own where it is not built so."""
    axis = normal(axis)
    if axis.size == size:
        return axis
    taken: list[Axis] = []
    for part in axis.parts if isinstance(axis, Product) else ():
        taken.append(part)
        if prod(each.size for each in taken) == size:
            return normal(Product(tuple(taken)))
    return Fixed(size)
