"""How the weight of one layer is laid out anew so that it has the axes that another layer's has.

The same layer is written in several ways: a convolution over an image or a volume, dense or in groups, a linear layer
[out, in] or [in, out], a linear layer or a convolution with a single tap. What differs between two of them is a
``Rewriting``; sizes of channels and kernels are left to others. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from netgraft.architecture.graph import Layer, Shape, Slot


@dataclass(frozen=True)
class Rewriting:
    """What happens to the axes of a source tensor, in the order of the fields; ``groups`` last of all.

    ``groups`` comes after the channels have been resized: until then the kernel is dense, as the target's would be.
    """

    dense: int = 1  # groups that are written as one, zeros between them
    merged: int = 0  # axes from 1 on that become one: a kernel that sees all of its input becomes a linear layer
    transposed: bool = False  # axes 0 and 1 change places
    split: Shape = ()  # what axis 1 becomes: the reverse of ``merged``
    dropped: int = 0  # kernel axes that are summed over, from axis 2 on
    added: Shape = ()  # lengths of new kernel axes, at axis 2
    groups: int = 1  # of which only the blocks on the diagonal are kept

    def shape(self, before: Shape) -> Shape:
        """Of the tensor when all but ``groups`` is done."""
        rows, columns, *taps = before
        columns *= self.dense
        if self.merged:
            columns, taps = prod((columns, *taps)), []
        if self.transposed:
            rows, columns = columns, rows
        if self.split:
            columns, *taps = self.split
        return (rows, columns, *self.added, *taps[self.dropped :])

    def dense_shape(self, after: Shape) -> Shape:
        """The target's shape before ``groups``."""
        return (after[0], after[1] * self.groups, *after[2:]) if self.groups > 1 else after


PLAIN = Rewriting()
"""Nothing has to be laid out anew."""


def layout_between(source: Layer, target: Layer, partner: Slot, slot: Slot) -> Rewriting | None:
    """What makes the axes of ``partner``, a tensor of ``source``, those of ``slot``; None where nothing does.

    Only the main weight of a kernel is ever laid out anew; other tensors must have as many axes.
    """
    main = partner.shape == source.shape and slot.shape == target.shape
    if not (source.is_kernel and target.is_kernel and main):
        return PLAIN if len(partner.shape) == len(slot.shape) else None
    if _slides(source) and _slides(target) and source.rules.exchanges_as == target.rules.exchanges_as:
        more = len(target.shape) - len(source.shape)
        alike = not _other_groups(source, target)
        return Rewriting(
            dense=1 if alike else source.groups,
            dropped=max(-more, 0),
            added=target.shape[2 : 2 + max(more, 0)],
            groups=1 if alike else target.groups,
        )
    if _is_matrix(source) and _is_matrix(target):
        return Rewriting(transposed=source.transposed != target.transposed)
    if _is_matrix(source) and _sees_all(target, source.flattened):
        taps = target.shape[2:]
        return Rewriting(transposed=source.transposed, split=(source_inputs(source) // prod(taps), *taps))
    if _sees_all(source, target.flattened) and _is_matrix(target):
        return Rewriting(merged=len(source.shape) - 1, transposed=target.transposed)
    return PLAIN if source.kind == target.kind and len(source.shape) == len(target.shape) else None


def convertible(source: Layer, target: Layer) -> bool:
    """Whether a linear layer and a convolution are one layer written in two ways, sizes aside."""
    partner, slot = source.tensors.get("weight"), target.tensors.get("weight")
    if partner is None or slot is None or source.is_linear == target.is_linear:
        return False
    return layout_between(source, target, partner, slot) not in (None, PLAIN)


def regrouped(source: Layer, target: Layer) -> bool:
    """Whether two convolutions hold the same channels in other groups, of which both have several."""
    both = "weight" in target.tensors and _slides(source) and _slides(target) and min(source.groups, target.groups) > 1
    return both and _other_groups(source, target)


def source_inputs(layer: Layer) -> int:
    """How many numbers a linear layer reads."""
    return layer.shape[0 if layer.transposed else 1]


def _slides(layer: Layer) -> bool:
    return layer.is_conv and len(layer.shape) > 2 and bool(layer.rules.family)


def _other_groups(source: Layer, target: Layer) -> bool:
    """Whether the same channels stand in other groups; more groups of the same size are no other groups."""
    if source.groups == target.groups:
        return False
    return 1 in (source.groups, target.groups) or _channels(source) == _channels(target)


def _channels(layer: Layer) -> tuple[int, int]:
    sides = layer.shape[0], layer.shape[1] * layer.groups
    return sides if layer.in_axis else sides[::-1]


def _is_matrix(layer: Layer) -> bool:
    return layer.is_linear and len(layer.shape) == 2


def _sees_all(layer: Layer, flattened: Shape) -> bool:
    """Whether a convolution is a linear layer on what it reads: one tap, or as many as the map has pixels."""
    if not _slides(layer) or layer.groups > 1 or layer.in_axis != 1:
        return False
    taps = layer.shape[2:]
    return taps == flattened[1:] if flattened else prod(taps) == 1
