"""What source and target share as it is, and whether that is so much that nothing may be fitted over it."""

from __future__ import annotations

from collections.abc import Iterable

from netgraft import plugins
from netgraft.architecture.graph import Layer, LayerGraph
from netgraft.plan import Move
from netgraft.recipes._layout import INFLATED
from netgraft.recipes.almost_equal import seams
from netgraft.recipes.run import Fates, run_recipe

CLOSED = frozenset({"fill", "in-chans", "regroup-norm", "transpose", "flatten", "unflatten"})
"""Operators that leave nothing to fit: what they make does what it can do."""
COPIED = 0.9
"""Where this share of what the source has can be copied as it is, nothing is fitted over the copy."""
NEARLY = {"source": 0.6, "target": 0.5}
"""Where these shares of the kernels of both are copied as they are, only the others are fitted."""


def drafted(name: str, head: str, source: LayerGraph, target: LayerGraph) -> Fates:
    """What a recipe would make of the two, without the user's word on single layers."""
    return run_recipe(plugins.create("recipes", name, {"head": head}), source, target)


def is_whole(fates: Fates, target: LayerGraph) -> bool:
    """Whether the recipe has a place for everything but the head, and nothing to note but that kernels gain an axis."""
    last = keys_of(target.heads())
    return all(note.startswith(INFLATED) for note in fates.pairing.notes) and all(
        fate.key in last for fate in fates.kept
    )


def copied_in_words(source: LayerGraph, target: LayerGraph, moves: Iterable[Move]) -> str:
    """Which part of the source is copied as it is, in words; empty where that is less than ``COPIED`` of it.

    Counted are the tensors of the source's layers without its head. So a decoder, a second head or an inserted block of
    the target takes nothing away, and a source layer without a place does. Those behind the last layer that is copied
    do not, if next to nothing of the target is left over: it then ends where the source goes on.
    """
    plain = {move.source_key: move.key for move in moves if move.is_copy}
    layers = [layer for layer in source.layers.values() if layer not in source.heads()]
    gives = keys_of(layers)
    wanted = keys_of(target.layers.values()) - keys_of(target.heads())
    if len(wanted & set(plain.values())) >= COPIED * len(wanted):
        ends = [place for place, layer in enumerate(layers) if keys_of([layer]) & plain.keys()]
        gives = keys_of(layers[: max(ends, default=-1) + 1])
    taken = len(gives & plain.keys())
    if not taken or taken < COPIED * len(gives):
        return ""
    return f"{taken} of the {len(gives)} tensors that the source has for the target"


def inner(target: LayerGraph) -> list[Layer]:
    """The target's kernels without its heads."""
    return [layer for layer in target.kernels() if layer.name not in target.head_names]


def keys_of(layers: Iterable[Layer]) -> set[str]:
    return {slot.key for layer in layers for slot in layer.tensors.values()}


def is_nearly(fates: Fates, source: LayerGraph, target: LayerGraph) -> bool:
    """Whether most of both networks is one and the same, heads apart, as ``almost-equal`` finds it."""
    plain = [move for move in fates.moves if move.is_copy]
    shares = {
        "source": (source, {move.source_key for move in plain}),
        "target": (target, {move.key for move in plain}),
    }
    return all(
        len([layer for layer in inner(graph) if keys_of([layer]) & copied]) >= NEARLY[role] * len(inner(graph)) > 0
        for role, (graph, copied) in shares.items()
    )


def has_rest(fates: Fates, source: LayerGraph, target: LayerGraph) -> bool:
    """Whether anything but the head has no numbers of the source's, lost some, or stands behind a gap."""
    made = {move.key for move in fates.moves if CLOSED.issuperset(step.operator for step in move.steps)}
    body = [layer for layer in target.layers.values() if layer.name not in target.head_names]
    new = any(not slot.buffer and slot.key not in made for layer in body for slot in layer.tensors.values())
    return new or any(seams(source, target))
