"""Stage by stage, the first layers of the source to those of the target, one to one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from netgraft.architecture.graph import LayerGraph
from netgraft.architecture.wiring import Place, Wiring
from netgraft.matchers._beside import Matches, attached, beside
from netgraft.matchers.longest_chain import unlike
from netgraft.plan import Pair, Pairing


@dataclass(frozen=True)
class FirstOfStage:
    """The N layers of a stage to the first N of the source's stage: first-N layer selection (arXiv:2311.18823).

    For networks of one family. A stage is what has one resolution, relative to the lowest in its network; in a stage,
    the j-th layer goes to the j-th of its sort: kind, reading or writing a residual stream, attention, depthwise or
    dense; heads and first layers by themselves. So whole blocks follow one another. What the source's stage does not
    have is left. Shortcuts, gates, norms, scales and raw parameters go along with the layers they belong to.
    """

    def __call__(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        wirings = Wiring(source), Wiring(target)
        found = Matches()
        for ours, theirs in ((wirings[0].chain, wirings[1].chain), (wirings[0].others, wirings[1].others)):
            _in_order(_sorts(wirings[0], ours), _sorts(wirings[1], theirs), wirings, found)
            if ours is wirings[0].chain:
                beside(*wirings, found, reuse=False)
        found.why |= dict.fromkeys(wirings[1].idle, "does not feed the output")
        for partner, name, reason in attached(*wirings, [(p.source, p.target) for p in found.pairs.values()]):
            found.pairs[name] = Pair(partner, name, reason)
        return found.pairing(target)


def _in_order(
    source: dict[Hashable, list[str]],
    target: dict[Hashable, list[str]],
    wirings: tuple[Wiring, Wiring],
    found: Matches,
) -> None:
    for sort, names in target.items():
        partners = source.get(sort, [])
        for i, name in enumerate(names):
            if i >= len(partners):
                found.why[name] = f"layer {i + 1} of its sort in its stage, of which the source has {len(partners)}"
            elif reason := unlike(wirings[0].graph.layers[partners[i]], wirings[1].graph.layers[name]):
                found.why[name] = reason
            else:
                found.pairs[name] = Pair(partners[i], name, f"layer {i + 1} of its sort in its stage")


def _sorts(wiring: Wiring, names: Sequence[str]) -> dict[Hashable, list[str]]:
    """Layers by stage and sort, in order."""
    found: dict[Hashable, list[str]] = {}
    for name, place in zip(names, wiring.places(names), strict=True):
        found.setdefault((wiring.kind(name), *_sort(place)), []).append(name)
    return found


def _sort(place: Place) -> tuple[Hashable, ...]:
    stage = None if place.resolution is None or place.head else round(place.resolution, 2)
    return place.stem, place.head, stage, place.depthwise, place.attention, place.from_stream, place.to_stream
