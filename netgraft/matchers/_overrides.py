"""What the user says about single layers, over what a matcher found. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from netgraft.architecture.graph import Layer, LayerGraph
from netgraft.architecture.layout import convertible
from netgraft.architecture.wiring import Wiring
from netgraft.errors import UnknownName, UsageError
from netgraft.matchers._beside import attached
from netgraft.matchers.longest_chain import unlike
from netgraft.plan import MAPPED, SKIPPED, Pair, Pairing

Maps = Sequence[tuple[str, str]]
"""(source layer, target layer), as ``--map SOURCE=TARGET`` says it."""


def override(pairing: Pairing, source: LayerGraph, target: LayerGraph, maps: Maps, skips: Sequence[str]) -> Pairing:
    """``pairing`` with the pairs of ``maps``, and without the target layers that a glob of ``skips`` matches.

    The norms beside a kernel go along with it: those of a mapped layer take the place of what was paired with them
    before, those of a skipped layer keep their own initialisation too, unless named themselves. Every other layer stays
    as it is, another partner of a mapped source layer included. What is named is no longer part of an inserted block
    that must pass its input through.

    This is the last word: nothing should be paired after it. Raises UsageError for a layer that does not exist, for a
    target with two partners or one that is skipped too, for kinds that no operator turns into one another, and for a
    glob that matches nothing.
    """
    if not maps and not skips:
        return pairing
    mapped = _mapped(source, target, maps)
    skipped = _skipped(target, skips)
    for name in mapped:
        if name in skipped:
            where = f"--map {mapped[name]}={name} and --skip {skipped[name]}"
            raise UsageError(f"The layer {name} of the target is both mapped and skipped.", where=where)
    found = {name: Pair(partner, name, f"{MAPPED} {partner}={name}") for name, partner in mapped.items()}
    left = {name: f"{SKIPPED} {glob}" for name, glob in skipped.items()}
    source_wiring, target_wiring = Wiring(source), Wiring(target)
    for name in (*mapped, *skipped):
        if not target.layers[name].is_kernel:
            continue
        partners: dict[str, Pair] = {}
        if name in mapped:
            beside = attached(source_wiring, target_wiring, [(mapped[name], name)])
            partners = {norm: Pair(partner, norm, f"{why}, as mapped") for partner, norm, why in beside}
        for _, norm, why in attached(target_wiring, target_wiring, [(name, name)]):
            if not target.layers[norm].is_norm or norm in mapped or norm in skipped:
                continue
            if norm in partners:
                found[norm] = partners[norm]
            elif name in skipped:
                left[norm] = f"{left[name]}: {why}"
            else:
                left[norm] = f"{why}: {mapped[name]} of the source has no such norm"
    pairs = {pair.target: pair for pair in pairing.pairs if pair.target not in left} | found
    unpaired = {name: why for name, why in pairing.unpaired.items() if name not in found} | left
    named = found.keys() | left.keys()
    return replace(
        pairing,
        pairs=tuple(pairs[name] for name in target.layers if name in pairs),
        unpaired={name: unpaired[name] for name in target.layers if name in unpaired},
        inserted=tuple(name for name in pairing.inserted if name not in named),
        zeroed={name: why for name, why in pairing.zeroed.items() if name not in named},
        diracs=tuple(name for name in pairing.diracs if name not in named),
    )


def _mapped(source: LayerGraph, target: LayerGraph, maps: Maps) -> dict[str, str]:
    """The source layer of every mapped target layer, checked."""
    found: dict[str, str] = {}
    for partner, name in maps:
        where = f"--map {partner}={name}"
        for role, graph, layer in (("source", source, partner), ("target", target, name)):
            if layer not in graph.layers:
                raise _unknown(role, graph, layer, where)
        if found.setdefault(name, partner) != partner:
            where = f"--map {found[name]}={name} and {where}"
            raise UsageError(f"The layer {name} of the target is mapped twice.", where=where)
        source_layer, target_layer = source.layers[partner], target.layers[name]
        reason = unlike(source_layer, target_layer)
        if reason and not convertible(source_layer, target_layer):
            raise UsageError(
                f"The weights of {partner} cannot be turned into those of {name}: {reason}.",
                where=f"{where}: {_brief(source_layer)} and {_brief(target_layer)}",
                hint=f"Map a {target_layer.kind} layer of the source, or leave {name} as it is with --skip {name}.",
            )
    return found


def _brief(layer: Layer) -> str:
    return f"{layer.kind} {list(layer.shape)}"


def _skipped(target: LayerGraph, skips: Sequence[str]) -> dict[str, str]:
    """The glob that skips it, for every skipped target layer."""
    found: dict[str, str] = {}
    for glob in skips:
        names = [name for name in target.layers if fnmatchcase(name, glob)]
        if not names:
            error = _unknown("target", target, glob, f"--skip {glob}")
            raise UsageError(f"--skip {glob} matches no layer of the target.", where=error.where, hint=error.hint)
        for name in names:
            found.setdefault(name, glob)
    return found


def _unknown(role: str, graph: LayerGraph, name: str, where: str) -> UnknownName:
    inside = [layer for layer in graph.layers if layer.startswith(f"{name}.")]
    hint = ""
    if inside:
        more = " and so on" if len(inside) > 3 else ""
        hint = f"{name} holds layers: {', '.join(inside[:3])}{more}."
        hint += f" All of them: --skip '{name}.*'" if where.startswith("--skip") else " Map each of them."
    error = UnknownName(f"layer of the {role}", name, graph.layers, where=where, hint=hint)
    error.hint = error.hint or "netgraft inspect-chains MODEL names the layers."
    return error
