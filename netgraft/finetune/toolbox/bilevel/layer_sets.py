"""Sets of paired layers, by what L2T-GAN says of them: general, middle and fully connected layers, or by their paths.

The paper: low convolutions are general, fully connected layers are specific. It speaks of middle layers too, and does
not say where they begin. Here the target's layers that are paired, in the order of the pairs, are general in their
first half (the larger one, if the number is odd) and middle in the other; those that put out vectors are "fc".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from netgraft.errors import UsageError
from netgraft.finetune.protocol import FeaturePair
from netgraft.finetune.toolbox.bilevel.matching import pooled

ALL, GENERAL, MIDDLE, FC, LOGITS = "all", "general", "middle", "fc", "logits"


def layers_of(pairs: Sequence[FeaturePair], text: str, option: str, *, more: Sequence[str] = ()) -> tuple[str, ...]:
    """The target's layers in ``general,middle,fc``, ``all`` or ``PATH,PATH``; names in ``more`` are left as they are.

    Raises UsageError, with the ``option``'s name, for a layer that is not paired, and where there is none at all.
    """
    shapes = {pair.target: pair.target_shape for pair in pairs}
    maps = [layer for layer, shape in shapes.items() if len(shape) > 1]
    half = (len(maps) + 1) // 2
    sets = {
        ALL: tuple(shapes),
        GENERAL: tuple(maps[:half]),
        MIDDLE: tuple(maps[half:]),
        FC: (*(layer for layer in shapes if layer not in maps), *more),
    }
    found: list[str] = []
    for name in (part.strip() for part in text.split(",") if part.strip()):
        if name not in sets and name not in shapes and name not in more:
            hint = f"Paired are {', '.join(shapes)}; or name {', '.join((*sets, *more))}."
            raise UsageError("A layer is not paired.", where=f"{option}: {name}", hint=hint)
        found.extend(sets.get(name, (name,)))
    if not found:
        what = "The set has no layer."
        raise UsageError(what, where=f"{option}={text!r}", hint="Pair such layers: --pairs SOURCE:TARGET; or name all.")
    return tuple(dict.fromkeys(found))


def numbers_of(pairs: Sequence[FeaturePair], text: str, option: str) -> tuple[int, ...]:
    """The numbers of the pairs whose target layers are in this set. Raises UsageError as ``layers_of`` does."""
    layers = layers_of(pairs, text, option)
    return tuple(number for number, pair in enumerate(pairs) if pair.target in layers)


def compared(
    pairs: Sequence[FeaturePair],
    layers: Sequence[str],  # of the target, or logits
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    through_target: bool,  # whether ``source`` is by the target's layers too
) -> list[tuple[Tensor, Tensor]]:
    """Features of both sides in each layer, averaged over places, ``[B, width]``; ``logits`` is a key of both.

    A layer with several pairs is compared in each. Raises UsageError where widths differ.
    """
    found = []
    for layer in layers:
        partners = [layer] if layer == LOGITS or through_target else [p.source for p in pairs if p.target == layer]
        for partner in partners:
            one, other = pooled(source[partner]), pooled(target[layer])
            if one.shape[1] != other.shape[1]:
                where = f"{partner}: {one.shape[1]}, {layer}: {other.shape[1]}"
                hint = "Name other layers: --set mmd_layers=...; or --set mmd_mode=ddc, or gamma=0."
                what = "The MMD needs a source of the target's classes, and layers of equal widths."
                raise UsageError(what, where=where, hint=hint)
            found.append((one, other))
    return found
