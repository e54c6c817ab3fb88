"""A target that contains the source: block by block, with the target's extra blocks found and named."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from netgraft.architecture.graph import Layer, LayerGraph
from netgraft.architecture.layout import convertible
from netgraft.architecture.spine import (
    Unit,
    is_identity_when_dirac,
    is_identity_when_zero,
    layer_signature,
    repeated_norms,
    signature,
    spine,
)
from netgraft.plan import Pair, Pairing

DROP_KERNEL = 1.0  # cost of a source layer without a partner; one that stands in a residual block costs less
OTHER_LAYOUT = 0.5  # worth of a match between layers of other groups, or a linear one and a convolution
REPEATED = 0.01  # cost of a norm without a partner that only repeats what the next one does
EXTRA_KERNEL = 1.0  # cost of a target layer without a partner that cannot pass its input through


@dataclass(frozen=True)
class Contained:
    """Units of equal structure in order, the most layers first; extra residual blocks pass their input through.

    Both networks are cut into units (``architecture.spine``); a monotone alignment by dynamic programming pairs units
    of equal structure, preferring equal shapes and resolutions, and says which target units are left over. A left-over
    residual unit takes the weights of a neighbour of equal structure, with the end of its branch set to zero; a
    left-over step of a plain chain becomes a Dirac kernel. Both compute the identity (depth growth as in Net2Net,
    arXiv:1511.05641).
    """

    def __call__(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        source_units, target_units = spine(source), spine(target)
        steps = _align(source, target, source_units, target_units)
        pairs: list[Pair] = []
        inserted: list[str] = []
        zeroed: dict[str, str] = {}
        diracs: list[str] = []
        notes: list[str] = []
        taken: set[str] = set()

        def pair_up(a: Unit, b: Unit, why: str) -> None:
            for source_layer, target_layer in zip(a.layers, b.layers, strict=True):
                if target_layer not in taken:
                    taken.add(target_layer)
                    pairs.append(Pair(source_layer, target_layer, why))

        for i, j in steps:
            if i is not None and j is not None:
                pair_up(source_units[i], target_units[j], "same place")
        matched = [(i, j) for i, j in steps if i is not None and j is not None]
        extra = {j for i, j in steps if i is None and j is not None}
        bare = _bare_norms(target, target_units, extra)
        for i, j in steps:
            if i is None and j is not None and target_units[j].layers:
                ends = is_identity_when_zero(target, target_units[j])
                like = signature(target, target_units[j])
                gains = {
                    a: _gain(source, target, source_units[a], target_units[j])
                    for a, _ in matched
                    if signature(source, source_units[a]) == like
                }
                donors = [(-gains[a], abs(j - b), b > j, a) for a, b in matched if gains.get(a, -math.inf) > -math.inf]
                name = target_units[j].layers[0]
                if not ends and (is_identity_when_dirac(target, target_units[j]) or j in bare):
                    inserted += target_units[j].layers
                    diracs += target_units[j].layers
                    continue
                if not ends:
                    notes.append(f"{name} and what follows it has no counterpart and cannot pass its input through")
                    continue
                inserted += target_units[j].layers
                zeroed |= dict.fromkeys(ends, "end of an inserted block: zero makes the block the identity")
                if donors:
                    pair_up(source_units[min(donors)[-1]], target_units[j], "inserted block, weights of its neighbour")
            elif j is None and i is not None and source_units[i].layers:
                notes.append(f"{source_units[i].layers[0]} of the source has no place in the target")
        pairs.sort(key=lambda pair: list(target.layers).index(pair.target))
        unpaired = {layer.name: "no counterpart in the source" for layer in target.kernels() if layer.name not in taken}
        return Pairing(tuple(pairs), unpaired, tuple(inserted), zeroed, tuple(diracs), tuple(notes))


def _align(
    source: LayerGraph, target: LayerGraph, source_units: tuple[Unit, ...], target_units: tuple[Unit, ...]
) -> list[tuple[int | None, int | None]]:
    """The best monotone alignment: (i, j) a match, (None, j) an extra target unit, (i, None) a dropped source unit."""
    kinds = [
        [signature(graph, unit) for unit in units] for graph, units in ((source, source_units), (target, target_units))
    ]
    m, n = len(source_units), len(target_units)
    drop = [_drop_cost(source, unit) for unit in source_units]
    repeated = repeated_norms(target, target_units)
    extra = [REPEATED if j in repeated else _extra_cost(target, unit) for j, unit in enumerate(target_units)]
    best = [[0.0] * (n + 1) for _ in range(m + 1)]
    for i in range(m):
        best[i + 1][0] = best[i][0] - drop[i]
    for j in range(n):
        best[0][j + 1] = best[0][j] - extra[j]
    gains: dict[tuple[int, int], float] = {}
    for i in range(m):
        for j in range(n):
            score = max(best[i][j + 1] - drop[i], best[i + 1][j] - extra[j])
            if kinds[0][i] == kinds[1][j]:
                gains[i, j] = _gain(source, target, source_units[i], target_units[j])
                score = max(score, best[i][j] + gains[i, j])
            best[i + 1][j + 1] = score
    # From the end back: an extra unit is preferred over a match of equal score, so matches come early in a stage.
    steps: list[tuple[int | None, int | None]] = []
    i, j = m, n
    while i or j:
        if j and math.isclose(best[i][j], best[i][j - 1] - extra[j - 1], abs_tol=1e-9):
            j -= 1
            steps.append((None, j))
        elif (
            i
            and j
            and (i - 1, j - 1) in gains
            and math.isclose(best[i][j], best[i - 1][j - 1] + gains[i - 1, j - 1], abs_tol=1e-9)
        ):
            i, j = i - 1, j - 1
            steps.append((i, j))
        else:
            i -= 1
            steps.append((i, None))
    return steps[::-1]


def _bare_norms(target: LayerGraph, units: tuple[Unit, ...], extra: set[int]) -> set[int]:
    """Of the left-over norms those with nothing but left-over blocks up to the next one."""
    found = set()
    for j in repeated_norms(target, units) & extra:
        between = itertools.takewhile(lambda k: is_identity_when_zero(target, units[k]), range(j + 1, len(units)))
        if extra.issuperset(between):
            found.add(j)
    return found


def _kernels(graph: LayerGraph, unit: Unit) -> int:
    return sum(graph.layers[name].is_kernel for name in unit.layers)


def _drop_cost(graph: LayerGraph, unit: Unit) -> float:
    if not unit.layers:
        return 0.02
    residual = bool(is_identity_when_zero(graph, unit))
    return (0.3 if residual else DROP_KERNEL) * (0.2 + _kernels(graph, unit))


def _extra_cost(graph: LayerGraph, unit: Unit) -> float:
    if not unit.layers:
        return 0.02
    if is_identity_when_zero(graph, unit) or is_identity_when_dirac(graph, unit):
        return 0.0
    return EXTRA_KERNEL * (0.2 + _kernels(graph, unit))


def _gain(source: LayerGraph, target: LayerGraph, a: Unit, b: Unit) -> float:
    """The layers gained by matching two units of equal structure, less what their sizes differ by."""
    value = 0.2 + _kernels(source, a)
    if not a.layers:
        return 0.1 - (0.05 if a.exit.shape[2:] != b.exit.shape[2:] else 0.0)
    resolution = 0.0 if a.exit.shape[2:] == b.exit.shape[2:] else 0.2
    ratios = []
    for source_layer, target_layer in zip(a.layers, b.layers, strict=True):
        shapes = source.layers[source_layer].shape, target.layers[target_layer].shape
        if layer_signature(source.layers[source_layer]) != layer_signature(target.layers[target_layer]):
            return -math.inf
        value *= _worth(source.layers[source_layer], target.layers[target_layer])
        ratios += [abs(math.log(x / y)) for x, y in zip(*shapes, strict=False) if x and y]
    if not value:
        return -math.inf
    size = sum(ratios) / len(ratios) if ratios else 0.0
    return value - value * min(0.3, 0.1 * size) - resolution


def _worth(source: Layer, target: Layer) -> float:
    """What is left of a match between layers that are written in other ways: nothing where no operator helps."""
    if source.rules.exchanges_as != target.rules.exchanges_as:
        return OTHER_LAYOUT if convertible(source, target) else 0.0
    if not source.is_conv or source.groups == target.groups or (source.is_depthwise and target.is_depthwise):
        return 1.0
    return 0.0 if target.is_depthwise else OTHER_LAYOUT  # a dense kernel says nothing of a depthwise one
