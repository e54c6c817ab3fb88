"""Stage by stage, each layer of the target to the source layer at the same share of the way through the stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from netgraft.architecture.chain import longest_chain
from netgraft.architecture.graph import LayerGraph
from netgraft.architecture.resolution import levels
from netgraft.matchers.longest_chain import pair_along
from netgraft.plan import Pairing

Stage = tuple[str, bool, float]  # kind, whether it is a head, halvings of the input's side rounded to tenths


@dataclass(frozen=True)
class Proportional:
    """Layer j of the n_t in a stage to layer floor(j n_s / n_t) of the n_s in the source's stage (OPERATORS D10).

    A stage is what has one resolution on the longest chain, gates left out: the input's side over the layer's, by the
    shapes recorded. A stage whose resolution the source lacks goes to the nearest that it has. Counted among layers of
    like kind only, heads by themselves, so positions rise within a kind; a source layer may serve several targets.
    """

    def __call__(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        source_chain, target_chain = (longest_chain(graph, gates=False) for graph in (source, target))
        source_stages = _stages(_places(source, source_chain.layers))
        known: dict[tuple[str, bool], list[float]] = {}
        for kind, head, level in source_stages:
            known.setdefault((kind, head), []).append(level)
        places: list[Stage | None] = []
        for kind, head, level in _places(target, target_chain.layers):
            near = min(known.get((kind, head), ()), key=lambda other: (abs(other - level), other), default=None)
            places.append(None if near is None else (kind, head, near))
        positions: list[int | None] = [None] * len(places)
        for place, columns in _stages(places).items():
            rows = source_stages[place]
            for j, i in enumerate(columns):
                positions[i] = rows[j * len(rows) // len(columns)]
        return pair_along(source, target, source_chain, target_chain, positions)


def _places(graph: LayerGraph, chain: Sequence[str]) -> list[Stage]:
    level, heads = levels(graph), graph.head_names
    return [(graph.layers[name].kind, name in heads, round(level[name], 1)) for name in chain]


def _stages(places: Sequence[Stage | None]) -> dict[Stage, list[int]]:
    """Positions by place; of a layer that stands on the chain twice each counts."""
    found: dict[Stage, list[int]] = {}
    for i, place in enumerate(places):
        if place is not None:
            found.setdefault(place, []).append(i)
    return found
