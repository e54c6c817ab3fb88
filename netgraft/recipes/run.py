"""Asks a recipe, and sees to what holds for all of them: the user's word on single layers, one fate for every key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from netgraft.architecture.graph import LayerGraph, Slot
from netgraft.channels.correspondence import Norms
from netgraft.errors import UsageError
from netgraft.matchers._overrides import override
from netgraft.plan import Kept, Move, Pairing
from netgraft.recipes.protocol import Draft, LayerOptions, Recipe, Task


class Fates(NamedTuple):
    """The part of a plan that a recipe decides: every key of the target stands in ``moves`` or in ``kept``, once."""

    pairing: Pairing
    moves: tuple[Move, ...]
    kept: tuple[Kept, ...]


def run_recipe(recipe: Recipe, source: LayerGraph, target: LayerGraph, norms: Norms | None = None) -> Fates:
    """What the recipe makes of the two, with the options that every recipe may have (``LayerOptions``) applied.

    ``norms`` rank the source's channels by its weights, for a recipe that asks for them. Raises what the recipe raises,
    and UsageError for layers of ``--map`` and ``--skip`` that do not exist or do not fit.
    """
    pairing = recipe.pair(source, target)
    stays: dict[str, str] = {}
    if isinstance(recipe, LayerOptions):
        pairing = override(pairing, source, target, recipe.maps, recipe.skip)
        stays = _staying_heads(recipe, source, target, pairing)
    draft = recipe.plan(Task(source, target, pairing, stays, norms))
    if not isinstance(draft, Draft):
        what = f"The recipe {type(recipe).__name__} does not answer with a Draft, but with {type(draft).__name__}."
        raise UsageError(what, hint="See netgraft.recipes.protocol and examples/own_recipe.py.")
    untouched = _untouched(target, stays.keys() | pairing.skipped)
    moves: dict[str, Move] = {}
    for move in draft.moves:
        if move.key not in untouched:
            moves.setdefault(move.key, move)
    reasons = {**pairing.unpaired, **stays, **draft.reasons}
    kept = _keep_rest(target, moves.values(), reasons, draft.otherwise)
    notes = tuple(dict.fromkeys((*pairing.notes, *draft.notes)))
    return Fates(replace(pairing, notes=notes), tuple(moves.values()), tuple(kept))


def _staying_heads(options: LayerOptions, source: LayerGraph, target: LayerGraph, pairing: Pairing) -> dict[str, str]:
    """The heads of the target that are paired and still keep their own initialisation, and why."""
    found = {}
    for pair in pairing.pairs:
        if pair.target in target.head_names:
            layers = source.layers[pair.source], target.layers[pair.target]
            found[pair.target] = options.head_stays(*layers, from_head=pair.source in source.head_names)
    return {name: why for name, why in found.items() if why}


def _untouched(target: LayerGraph, names: Iterable[str]) -> frozenset[str]:
    """The keys of these layers, but for tensors that they share with others."""
    left = frozenset(names)
    if not left:
        return left
    own, others = (
        {key for layer in target.layers.values() if (layer.name in left) is wanted for key in _keys(layer.tensors)}
        for wanted in (True, False)
    )
    return frozenset(own - others)


def _keys(tensors: Mapping[str, Slot]) -> list[str]:
    return [key for slot in tensors.values() for key in slot.keys]


def _keep_rest(graph: LayerGraph, moves: Iterable[Move], reasons: Mapping[str, str], otherwise: str) -> list[Kept]:
    """Every key of ``graph`` without a move, once, with the reason given for it, for its layer, or ``otherwise``."""
    decided = {move.key for move in moves}
    kept: list[Kept] = []
    slots: list[tuple[Slot, str]] = []
    for name, layer in graph.layers.items():
        slots += [(slot, name) for slot in layer.tensors.values()]
    for slot, name in [*slots, *((slot, "") for slot in graph.loose.values())]:
        if slot.key in decided:
            continue
        decided.update(slot.keys)
        if not name:
            default = "a buffer outside any layer" if slot.buffer else "never used in the forward pass"
        elif graph.layers[name].kind == "parameter":
            default = "used directly by the model's code, not a layer"
        else:
            default = otherwise
        why = reasons.get(slot.key) or reasons.get(name) or default
        kept += [Kept(key, slot.shape, why) for key in slot.keys]
    return kept
