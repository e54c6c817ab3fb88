"""Axes that are not channels: kernels, image channels, tables of positions, classes."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from typing import NamedTuple

from netgraft.architecture.graph import Layer, LayerGraph, Shape, Slot
from netgraft.architecture.resolution import MOST_EXTRA_TOKENS
from netgraft.channels import index_map
from netgraft.errors import UsageError
from netgraft.plan import Step


class Resized(NamedTuple):
    """Steps for some axes of a tensor, which axes they took care of, and what is not exact about them."""

    steps: tuple[Step, ...] = ()
    dims: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    last: tuple[Step, ...] = ()  # after all axes have been resized


def rows(
    graph: LayerGraph, layer: Layer, partner: Slot, slot: Slot, vocabulary: tuple[int, ...] | None
) -> Resized | str:
    """The rows of a table of tokens, positions or types; a reason to keep it where they cannot be told apart.

    Tokens go by ``vocabulary``, the source's number of each of the target's tokens. One that the source does not know
    begins at the mean of the source's rows: the target's own initialisation may have another scale, and the mean is
    what a token looks like of which nothing is known. Without a map tables of one size are taken to be of one
    vocabulary, and others are kept. Positions and types, which do not come from the input, go by their number; those
    that the source has not keep the target's own initialisation.
    """
    before, after = partner.shape[0], slot.shape[0]
    if reads_tokens(graph, layer):
        if vocabulary is not None and fits(vocabulary, before, after):
            return Resized(
                (token_rows(vocabulary, after),),
                (0,),
                (f"{slot.key}: tokens are matched by their strings, so that their numbers differ",),
            )
        if before == after:
            return Resized((), (0,))
        known = f"which of its {after} tokens are which of the source's {before} is not known"
        return f"{known}: say so with --recipe grow --vocab-map"
    if after < before:
        note = f"{slot.key}: {after} rows cannot hold the source's {before}"
        return Resized((Step("gather", {"dim": 0, "index": [[0, after]]}),), (0,), (note,))
    new = [[index_map.NEW, after - before]]
    return Resized((), (0,), (), (Step("overlay", {"rows": [[0, before], *new]}),) if after > before else ())


def reads_tokens(graph: LayerGraph, layer: Layer) -> bool:
    """Whether an embedding is read by numbers that come from the input, as tokens do."""
    calls = (node for node in graph.nodes if node.layer == layer.name and node.op == "layer")
    return any(set(node.inputs) & graph.from_input for node in calls)


def fits(vocabulary: tuple[int, ...], before: int, after: int) -> bool:
    """Whether a map of tokens is one from a table of ``before`` rows to one of ``after``, which may have some spare."""
    return len(vocabulary) <= after and max(vocabulary, default=-1) < before


def token_rows(vocabulary: tuple[int, ...], after: int) -> Step:
    """One row per token of the target along axis 0, the mean for new ones."""
    index = [*vocabulary, *[index_map.NEW] * (after - len(vocabulary))]
    return Step("labels", {"index": [list(run) for run in index_map.runs(index)], "fill": "mean"})


def resize(
    source: LayerGraph, target: LayerGraph, source_layer: Layer, target_layer: Layer, partner: Slot, slot: Slot
) -> Resized:
    """What to do about the axes of a tensor that hold positions; nothing where they agree.

    ``partner`` and ``slot`` as they stand when the one is laid out as the other (``_layout``).
    """
    if target_layer.kind == "parameter":
        return _positions(partner, slot)
    if not target_layer.is_conv or len(slot.shape) < 3 or slot.shape[2:] != target_layer.shape[2:]:
        return Resized()
    steps: list[Step] = []
    dims: tuple[int, ...] = ()
    notes: list[str] = []
    if partner.shape[2:] != slot.shape[2:]:
        patches = target_layer.stride == target_layer.shape[2:] and source_layer.stride == source_layer.shape[2:]
        if patches:
            steps.append(Step("pi-resize", {"size": list(slot.shape[2:])}))
        elif all(size == 1 for size in slot.shape[2:]):  # one tap for all: their sum answers a constant as they did
            steps.append(Step("tap-sum", {"axes": len(slot.shape) - 2}))
        else:
            steps += _some_taps(partner.shape, slot.shape)
        if patches:
            notes.append(f"{slot.key}: patches of {list(partner.shape[2:])} become patches of {list(slot.shape[2:])}")
        elif not _padding_grows(source_layer, target_layer, partner.shape, slot.shape):
            sizes = f"from {list(partner.shape[2:])} to {list(slot.shape[2:])}"
            notes.append(f"{target_layer.name}: the padding does not grow with the kernel {sizes}")
    if (
        target_layer.groups == 1
        and partner.shape[1] != slot.shape[1]
        and _reads_input(target, target_layer)
        and _reads_input(source, source_layer)
    ):
        steps.append(Step("in-chans", {"size": slot.shape[1]}))
        notes.append(f"{slot.key}: images of {partner.shape[1]} channels become images of {slot.shape[1]}")
        dims = (1,)
    return Resized(tuple(steps), dims, tuple(notes))


def labels(index: tuple[int, ...], partner: Slot, slot: Slot) -> Step:
    """The head's rows by label. Raises UsageError unless ``index`` has an entry per class, -1 or a source class."""
    if len(index) != slot.shape[0] or not all(-1 <= label < partner.shape[0] for label in index):
        raise UsageError(
            f"The label map has {len(index)} entries from {min(index, default=-1)} to {max(index, default=-1)}.",
            where=f"the target has {slot.shape[0]} classes, the source's head {partner.shape[0]}",
            hint="Give one source class, or -1, for each class of the target.",
        )
    return Step("labels", {"index": [list(run) for run in index_map.runs(index)]})


def _positions(partner: Slot, slot: Slot) -> Resized:
    """A table of absolute positions [1, prefix + h w, width], or of relative ones [(2h - 1)(2w - 1), heads]."""
    if len(slot.shape) == 3 and slot.shape[0] == partner.shape[0] == 1 and partner.shape[1] != slot.shape[1]:
        before, after = partner.shape[1], slot.shape[1]
        for prefix in range(min(before, after, MOST_EXTRA_TOKENS)):
            old, new = isqrt(before - prefix), isqrt(after - prefix)
            if old**2 == before - prefix and new**2 == after - prefix:
                grids = {"size_from": [old, old], "size_to": [new, new], "prefix": prefix}
                note = f"{slot.key}: positions of a {old} x {old} grid become those of {new} x {new}"
                return Resized((Step("positions", grids),), (1,), (note,))
    if len(slot.shape) == 2 and partner.shape[0] != slot.shape[0]:
        old, new = isqrt(partner.shape[0]), isqrt(slot.shape[0])
        if old**2 == partner.shape[0] and new**2 == slot.shape[0] and old % 2 and new % 2:
            window = (new + 1) // 2
            note = f"{slot.key}: relative positions of a window of {(old + 1) // 2} become those of {window}"
            return Resized((Step("relative-table", {"size": [window, window]}),), (0,), (note,))
    return Resized()


def _some_taps(before: Shape, after: Shape) -> Iterator[Step]:
    """Kernel axes that end with one tap take the sum of theirs, as if the input were constant along them."""
    taps = list(before)
    for dim in range(2, len(after)):
        if after[dim] == 1 < before[dim]:
            yield Step("deflate", {"dim": dim})
            yield Step("inflate", {"dim": dim, "size": 1})
            taps[dim] = 1
    if tuple(taps[2:]) != after[2:]:
        yield Step("centre", {"size": list(after[2:])})


def _padding_grows(source_layer: Layer, target_layer: Layer, before: Shape, after: Shape) -> bool:
    """Whether a kernel padded with zeros reads the same pixels: its padding grows by dilation * (k_t - k_s) / 2.

    ``before`` and ``after`` are the shapes of the weights; axes that the source's kernel gained are not looked at.
    """
    taps, shared = len(after) - 2, len(source_layer.padding)
    if shared == 0:  # a linear layer: one tap, at the output's own place
        padding, dilation = (0,) * taps, target_layer.dilation
    else:
        padding, dilation = source_layer.padding[-taps:], source_layer.dilation[-taps:]
    count = len(padding)
    return dilation == target_layer.dilation[-count:] and all(
        2 * (new - old) == d * (b - a)
        for new, old, d, a, b in zip(
            target_layer.padding[-count:], padding, dilation, before[-count:], after[-count:], strict=True
        )
    )


def _reads_input(graph: LayerGraph, layer: Layer) -> bool:
    images = {node.id for node in graph.nodes if node.op == "input"}
    return any(node.layer == layer.name and set(node.inputs) & images for node in graph.nodes)
