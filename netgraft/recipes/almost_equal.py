"""A target that is nearly the source: what the two have in common is copied, what is new starts as nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from netgraft.architecture.alignment import align
from netgraft.architecture.canonical import BATCH_NORM, canonical
from netgraft.architecture.graph import Layer, LayerGraph
from netgraft.architecture.neutral import Neutral, neutral_ends
from netgraft.architecture.spine import Unit, is_identity_when_dirac, signature, spine
from netgraft.plan import Move, Pair, Pairing, Step, moves_to
from netgraft.recipes._roles import roles_of
from netgraft.recipes._translation import WHY, Meeting, loose_moves, meetings, moves_of
from netgraft.recipes.grow import Grow
from netgraft.recipes.protocol import Draft, LayerOptions, Task

CHANGED = "the same place, another size"
NEIGHBOUR = "new: weights of its neighbour, and an end that does nothing"
ALONE = "new in the target: it has no counterpart in the source"


@dataclass(frozen=True)
class AlmostEqual(LayerOptions):
    """The largest part that source and target share, bit for bit; what is new starts so that the rest goes on.

    For networks that differ by a block more or less, another head, other input channels, a norm of another kind, an
    added gate, adapter or decoder. Layers of equal place and size are copied, statistics included. Those of another
    size grow or shrink by index maps (the recipe ``grow``). A new residual branch ends in zero, a new gate starts open;
    a part without a counterpart, such as a decoder, keeps its own initialisation. Nothing is rescaled or refitted.
    """

    def pair(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        """Layers in the same place of the two, by the alignment of their canonical forms."""
        pairs: list[Pair] = []
        for name, parts in _aligned(source, target).items():
            whole = all(meeting.source.size == meeting.target.size for meeting in parts)
            pairs.append(Pair(parts[0].source.layer, name, WHY if whole else CHANGED))
        order = {name: place for place, name in enumerate(target.layers)}
        known = {pair.target for pair in pairs}
        ends = {end.layer: end.why for end in neutral_ends(target, known) if _fits(target.layers[end.layer], end)}
        pairs += _neighbours(target, pairs)
        pairs.sort(key=lambda pair: order[pair.target])
        diracs = tuple(_passing(target, known))
        unpaired = {layer.name: ALONE for layer in target.kernels() if layer.name not in known}
        inserted = tuple(pair.target for pair in pairs if pair.why == NEIGHBOUR)
        return Pairing(tuple(pairs), unpaired, inserted, ends, diracs)

    def plan(self, task: Task) -> Draft:
        """Copies where sizes agree, moves of ``grow`` where they do not, neutral ends of what is new."""
        aligned = _aligned(task.source, task.target)
        changed = _grown(task)
        moves: list[Move] = []
        reasons: dict[str, str] = dict(changed.reasons)
        said = {pair.target: pair for pair in task.pairing.pairs}
        known = {name for name, pair in said.items() if pair.why != NEIGHBOUR}
        ends = {end.layer: end for end in neutral_ends(task.target, known)}
        for name in task.pairing.zeroed:  # before all others: of two moves to one key the first counts
            if name in ends:
                moves += _neutral(task.target.layers[name], ends[name])
        for name, pair in said.items():
            parts = aligned.get(name, [])
            if pair.why == WHY and parts and parts[0].source.layer == pair.source:
                moves += moves_of(task.source, task.target, parts)
        moves += loose_moves(task.source, task.target)
        moves += changed.moves
        return Draft(moves, reasons, ALONE, ())


def _aligned(source: LayerGraph, target: LayerGraph) -> dict[str, list[Meeting]]:
    """By the target's layer its parts, with those of the source that they are, or are nearly."""
    one, other = canonical(source).loosely(), canonical(target).loosely()
    found = meetings(one, other, align(one, other))
    counts: dict[str, int] = {}
    for part in other.parts:
        counts[part.layer] = counts.get(part.layer, 0) + 1
    return {name: parts for name, parts in found.items() if len(parts) == counts[name]}


def seams(source: LayerGraph, target: LayerGraph) -> Iterator[str]:
    """The kernels of the target right behind a place where steps of a plain chain were taken out, and their norms.

    They read what others put out in the source. Where a shortcut leads around what is gone, there is no such place.
    """
    one, other = canonical(source).loosely(), canonical(target).loosely()
    same = align(one, other)
    for place, part in enumerate(other.parts):
        before = other.before[place]
        if place not in same or not part.is_kernel or len(before) != 1 or before[0] not in same:
            continue
        if one.before[same[place]] not in ([same[before[0]]], []) and len(one.before[same[place]]) == 1:
            yield part.layer
            yield from (other.parts[n].layer for n in other.after[place] if other.parts[n].kind == BATCH_NORM)


def _neighbours(target: LayerGraph, pairs: list[Pair]) -> Iterator[Pair]:
    """Weights for new steps of the spine: those of the nearest step of the target that is built alike and is copied."""
    copied = {pair.target: pair.source for pair in pairs if pair.why == WHY}
    units = spine(target)
    known = {i: [copied[name] for name in unit.layers if name in copied] for i, unit in enumerate(units)}
    for i, unit in enumerate(units):
        if known[i] or not any(target.layers[name].is_kernel for name in unit.layers):
            continue
        alike = [
            j
            for j, other in enumerate(units)
            if len(known[j]) == len(other.layers) == len(unit.layers) and _same_build(target, unit, other)
        ]
        if alike:
            nearest = min(alike, key=lambda j: (abs(j - i), j > i))
            for name, donor in zip(unit.layers, known[nearest], strict=True):
                yield Pair(donor, name, NEIGHBOUR)


def _same_build(graph: LayerGraph, one: Unit, other: Unit) -> bool:
    shapes = [[graph.layers[name].shape for name in unit.layers] for unit in (one, other)]
    return shapes[0] == shapes[1] and signature(graph, one) == signature(graph, other)


def _grown(task: Task) -> Draft:
    """What ``grow`` makes of the pairs: index maps for what has another size, plain copies for the rest."""
    pairing = replace(task.pairing, zeroed={}, notes=())
    return Grow().plan(replace(task, pairing=pairing))


def _passing(target: LayerGraph, known: set[str]) -> Iterator[str]:
    """The layers of new steps of a plain chain that can pass their input through."""
    for unit in spine(target):
        if unit.layers and known.isdisjoint(unit.layers) and is_identity_when_dirac(target, unit):
            yield from unit.layers


def _fits(layer: Layer, end: Neutral) -> bool:
    """Whether the layer can be that end: a gate is opened by a bias."""
    return "bias" in roles_of(layer) or end.bias == 0


def _neutral(layer: Layer, end: Neutral) -> Iterator[Move]:
    roles = roles_of(layer)
    bias = roles.get("bias")
    for role in ("weight", "value", "magnitude"):
        if role in roles:
            slot = roles[role]
            yield from moves_to(slot, "", slot.shape, (Step("fill", {"value": end.weight}),), end.why)
    if bias is not None:
        yield from moves_to(bias, "", bias.shape, (Step("fill", {"value": end.bias}),), end.why)
