"""Which source layer's activations each target layer is to reproduce.

Weights want partners of like kind and shape; activations do not: what counts is how far a layer has come. So the last
layer of a resolution follows the last of the source's at that resolution, whatever stands between (OPERATORS part 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netgraft.architecture.blocks import Block
from netgraft.architecture.endings import Ending, find_endings
from netgraft.architecture.graph import LayerGraph
from netgraft.architecture.resolution import levels
from netgraft.architecture.wiring import Wiring


class _Way:
    """A network as a way from input to output: its points, the layers whose value everything passes through.

    A residual block whose end cannot be told counts as a point, by its last layer. Nothing follows it, and it follows
    nothing (``blind``), but it takes its part of the way: what stands before it is not the last.
    """

    def __init__(self, graph: LayerGraph) -> None:
        self.graph, self.wiring = graph, Wiring(graph)
        self.endings: dict[str, Ending] = find_endings(graph)
        self.level = {name: round(value, 1) for name, value in levels(graph).items()}
        kernels = [name for name in self.wiring.chain if name in self.endings and name not in self.wiring.heads]
        points = [name for name in kernels if self._is_point(name)]
        self.blind = self._blind_blocks(points)
        self.points = [name for name in self.wiring.chain if name in points or name in self.blind]
        self.stages: dict[float, list[str]] = {}
        for name in self.points:
            self.stages.setdefault(self.level[name], []).append(name)

    def _is_point(self, name: str) -> bool:
        """Outside of residual blocks, or the end of one; a depthwise layer is half of what its pointwise one ends."""
        if self.wiring.block_of.get(name) is not None:
            return self.endings[name].add is not None and self.endings[name].main
        return not self.graph.layers[name].is_depthwise

    def _blind_blocks(self, points: Sequence[str]) -> frozenset[str]:
        """The last layer on the way of each block that holds no point."""
        seen = {id(self.wiring.block_of.get(name)) for name in points}
        last: dict[int, str] = {}
        for name in self.wiring.chain:
            block = self.wiring.block_of.get(name)
            if block is not None and id(block) not in seen and name not in self.wiring.heads:
                last[id(block)] = name
        return frozenset(last.values())

    def interior(self, block: Block) -> list[str]:
        """The kernels of a residual block before its end, shortcuts and gates left out."""
        return [
            name
            for name in block.kernels
            if name in self.endings and name in self.wiring.position and self.endings[name].add is None
        ]


def follow(source: LayerGraph, target: LayerGraph) -> list[tuple[str, str]]:
    """(source layer, target layer) in the target's execution order; layers that follow nothing are left out.

    Of the n points of the source at a resolution the k-th of m target points follows number ceil(k n / m): the last the
    last. A resolution that the other network lacks joins the nearest that it has; a target of one resolution spreads
    over the whole source. Inside a residual block layers follow those in the same place of the source's block if both
    blocks are built alike, else, where they are convolutions, the point that the block's end follows, or those on the
    way to it if the source is plain there. A projection on a shortcut follows the source's, or the block's end. A
    depthwise layer follows what the layer after it does.
    """
    source_way, target_way = _Way(source), _Way(target)
    chosen = _points(source_way, target_way)
    inside: dict[str, str] = {}
    for block in target_way.wiring.blocks:
        end = next(
            (name for name in block.kernels if name in chosen and target_way.endings[name].add is not None), None
        )
        if end is not None:
            before = [chosen[name] for name in target_way.points[: target_way.points.index(end)] if name in chosen]
            inside |= _within(source_way, target_way, block, end, chosen[end], before[-1] if before else None)
    chosen |= {name: partner for name, partner in inside.items() if name not in chosen}
    for name in reversed(target_way.wiring.chain):  # a depthwise layer outside of any block
        if name not in chosen and name in target_way.endings and target.layers[name].is_depthwise:
            after = target_way.wiring.chain[target_way.wiring.position[name] + 1 :][:1]
            if after and after[0] in chosen:
                chosen[name] = chosen[after[0]]
    return [(chosen[name], name) for name in target.layers if name in chosen]


def follow_points(source: LayerGraph, target: LayerGraph) -> list[tuple[str, str]]:
    """Of what ``follow`` says only the points: layers outside of residual blocks, and the ends of blocks."""
    chosen = _points(_Way(source), _Way(target))
    return [(chosen[name], name) for name in target.layers if name in chosen]


def _points(source: _Way, target: _Way) -> dict[str, str]:
    if not source.points or not target.points:
        return {}
    chosen: dict[str, str] = {}
    for candidates, points in _clusters(source, target):
        for k, point in enumerate(points, start=1):
            partner = _at(candidates, k, len(points))
            if point not in target.blind and partner not in source.blind:
                chosen[point] = partner
    return chosen


def _at(candidates: Sequence[str], k: int, count: int) -> str:
    """What the k-th of ``count`` follows, k from 1: number ceil(k n / count) of n candidates, the last for the last."""
    return candidates[-(-k * len(candidates) // count) - 1]


def _clusters(source: _Way, target: _Way) -> list[tuple[list[str], list[str]]]:
    """Points of the source and points of the target that go together: every point of either is in one cluster."""
    if len(target.stages) == 1 or len(source.stages) == 1:
        return [(source.points, target.points)]
    image = {level: _nearest(source.stages, level) for level in target.stages}
    owner = {level: _nearest(set(image.values()), level) for level in source.stages}
    return [
        (
            [name for name in source.points if owner[source.level[name]] == cluster],
            [name for name in target.points if image[target.level[name]] == cluster],
        )
        for cluster in sorted(set(image.values()))
    ]


def _nearest(levels: Iterable[float], level: float) -> float:
    """The nearest level, of two equally near ones the deeper."""
    return min(levels, key=lambda other: (abs(other - level), -other))


def _within(source: _Way, target: _Way, block: Block, end: str, partner: str, before: str | None) -> dict[str, str]:
    """The layers of one residual block of the target: its end follows ``partner``, the point before it ``before``."""
    other = source.wiring.block_of.get(partner)
    found: dict[str, str] = {}
    names, partners = target.interior(block), source.interior(other) if other else []
    if other and _built_alike(source, target, partners, names):
        found |= dict(zip(names, partners, strict=True))
    else:
        convs = [name for name in names if target.graph.layers[name].is_conv]
        start = source.points.index(before) + 1 if before else 0
        way = source.points[start : source.points.index(partner) + 1] if other is None else []
        way = [name for name in way if name not in source.blind]
        found |= {name: _at(way or [partner], k, len(convs) + 1) for k, name in enumerate(convs, start=1)}
    projections = [n for n in block.kernels if n in target.endings and n != end and target.endings[n].add is not None]
    shortcuts = [n for n in (other.kernels if other else ()) if n in source.wiring.shortcuts and n in source.endings]
    for i, name in enumerate(projections):
        found[name] = shortcuts[i] if i < len(shortcuts) else partner
    return found


def _built_alike(source: _Way, target: _Way, partners: Sequence[str], names: Sequence[str]) -> bool:
    def kinds(way: _Way, names: Sequence[str]) -> list[tuple[str, bool]]:
        return [(way.graph.layers[name].kind, way.graph.layers[name].is_depthwise) for name in names]

    return kinds(source, partners) == kinds(target, names)
