"""Which part of one network is which of a nearly equal one: the largest part that the two have in common, in order.

Two parts go together the better, the more of what surrounds them is equal. How far around is counted in rounds of
colouring (``isomorphism.around``): a part's colour after r rounds tells all that lies at most r edges before it, or
behind it. The parts of both networks in execution order are then aligned, as two texts are (Needleman and Wunsch 1970):
inserted blocks are gaps on one side, missing ones on the other. What runs in another order, such as a shortcut before
the branch instead of behind it, is found in a second pass by its neighbours. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

from netgraft.architecture.canonical import BATCH_NORM, CanonicalGraph, Piece

ROUNDS = 8
"""How far around a part is looked."""
CONTEXT = 1.0
"""What equal surroundings are worth, beside being the same layer."""
OTHER_SIZE = 0.35
"""What a layer of the same kind and another size is worth."""
OTHER_KIND = 0.7
"""What a layer of the same size and nearly the same kind is worth: another norm, another stride or dilation."""
SAME_NAME = 0.5

AT_BORDER, INSIDE = 0.05, 0.4
"""What it costs to leave something out, from the border of a block on or from its middle."""

Colours = Sequence[Sequence[int]]
"""By round, by part."""


def align(source: CanonicalGraph, target: CanonicalGraph) -> dict[int, int]:
    """Parts of the source by part of the target; parts without a counterpart are in neither."""
    worth = _Worth(source, target)
    found = _in_order(worth)
    _by_neighbours(worth, found)
    return found


class _Worth:
    """What it is worth to take a part of the source for one of the target."""

    def __init__(self, source: CanonicalGraph, target: CanonicalGraph) -> None:
        self.source, self.target = source, target
        graphs = (source, target)
        self.sizes = [_colours(graphs, forwards, sizes=True) for forwards in (False, True)]
        self.kinds = [_colours(graphs, forwards, sizes=False) for forwards in (False, True)]

    def __call__(self, a: int, b: int) -> float:
        """At most about 1 + CONTEXT; 0 for what cannot be one."""
        one, other = self.source.parts[a], self.target.parts[b]
        base = _alike(one, other)
        if not base:
            return 0.0
        near = 0.0
        for colours, share in ((self.sizes, 0.7), (self.kinds, 0.3)):
            for direction in colours:
                near += share / 2 * _agreement(direction, a, b) / ROUNDS
        named = SAME_NAME if one.layer == other.layer else 0.0
        return base * (1 + CONTEXT * near + named)


def _alike(one: Piece, other: Piece) -> float:
    """1 for layers of one kind and size, less for those that are nearly so."""
    if one.label == other.label:
        return 1.0
    if _family(one) != _family(other) or not one.layer:
        return 0.0
    if one.size == other.size:
        return OTHER_KIND
    if one.kind != other.kind or len(one.size) != len(other.size):
        return 0.0
    ratios = [abs(math.log(x / y)) for x, y in zip(one.size, other.size, strict=True) if x and y]
    return OTHER_SIZE / (1 + sum(ratios) / max(len(ratios), 1))


def _agreement(rounds: tuple[Colours, Colours], a: int, b: int) -> int:
    """The number of rounds after which two parts still have one colour."""
    for count, (one, other) in enumerate(zip(*rounds, strict=True)):
        if one[a] != other[b]:
            return count
    return len(rounds[0])


def _colours(
    graphs: tuple[CanonicalGraph, CanonicalGraph], forwards: bool, *, sizes: bool
) -> tuple[list[list[int]], list[list[int]]]:
    """For both graphs the colours of their parts by round, looking ahead or back."""
    current: list[list[Hashable]] = [[part.label if sizes else part.kind for part in graph.parts] for graph in graphs]
    found: tuple[list[list[int]], list[list[int]]] = ([], [])
    for _ in range(ROUNDS):
        numbers: dict[Hashable, int] = {}
        for shades, graph, kept in zip(current, graphs, found, strict=True):
            kept.append([numbers.setdefault(shade, len(numbers)) for shade in shades])
            reach = graph.after if forwards else graph.before
            last = kept[-1]
            shades[:] = [
                (
                    last[place],
                    frozenset((last[other], _labels(graph, place, other, forwards)) for other in reach[place]),
                )
                for place in range(len(graph.parts))
            ]
    return found


def _labels(graph: CanonicalGraph, place: int, other: int, forwards: bool) -> Hashable:
    return graph.edges[(place, other) if forwards else (other, place)]


def _in_order(worth: _Worth) -> dict[int, int]:
    """The alignment in execution order that is worth most; of equal ones that whose matches come early.

    Gotoh (1982): a gap costs something where it opens, more where that is in the middle of a block, so that whole
    blocks are left out, and not the end of one with the beginning of the next.
    """
    source, target = worth.source.parts, worth.target.parts
    m, n = len(source), len(target)
    candidates: dict[Hashable, list[int]] = defaultdict(list)
    for b, part in enumerate(target):
        candidates[_family(part)].append(b)
    opens = [_opening(target, b) for b in range(n + 1)]
    # Three tables: the last step was a match, a part of the target left over, a part of the source left over.
    match, extra, missing = ([[-math.inf] * (n + 1) for _ in range(m + 1)] for _ in range(3))
    match[0][0] = 0.0
    for a in range(m + 1):
        cost = _opening(source, a - 1)
        gain = {b: worth(a - 1, b) for b in candidates[_family(source[a - 1])]} if a else {}
        for b in range(n + 1):
            if b:
                left = match[a][b - 1], extra[a][b - 1], missing[a][b - 1]
                extra[a][b] = max(max(left[0], left[2]) - opens[b - 1], left[1])
            if a:
                above = match[a - 1][b], extra[a - 1][b], missing[a - 1][b]
                missing[a][b] = max(max(above[0], above[1]) - cost, above[2])
            if a and b and gain.get(b - 1):
                match[a][b] = max(match[a - 1][b - 1], extra[a - 1][b - 1], missing[a - 1][b - 1]) + gain[b - 1]
    return _traced_back(source, target, opens, match, extra, missing)


def _traced_back(
    source: Sequence[Piece],
    target: Sequence[Piece],
    opens: Sequence[float],
    match: Sequence[Sequence[float]],
    extra: Sequence[Sequence[float]],
    missing: Sequence[Sequence[float]],
) -> dict[int, int]:
    """The steps of the best alignment, from the end; of equal ones the target's extra parts come last."""
    a, b = len(source), len(target)
    found: dict[int, int] = {}
    tables = {"extra": extra, "missing": missing, "match": match}
    table = max(tables, key=lambda name: tables[name][a][b])
    while a or b:
        if table == "match" and (a == 0 or b == 0):
            break
        if table == "extra":
            b -= 1
            costs = {"extra": 0.0, "missing": opens[b], "match": opens[b]}
        elif table == "missing":
            a -= 1
            cost = _opening(source, a)
            costs = {"missing": 0.0, "extra": cost, "match": cost}
        else:
            a, b = a - 1, b - 1
            found[b] = a
            costs = {"extra": 0.0, "missing": 0.0, "match": 0.0}
        table = max(costs, key=lambda name: tables[name][a][b] - costs[name])
    return found


def _opening(parts: Sequence[Piece], place: int) -> float:
    """What it costs to leave out parts from ``place`` on."""
    if not 0 < place < len(parts):
        return AT_BORDER
    return AT_BORDER if parts[place].unit != parts[place - 1].unit else INSIDE


def _family(part: Piece) -> Hashable:
    """Parts of different families are never the same."""
    if part.is_kernel:
        return "kernel"
    return "norm" if part.kind in ("norm", BATCH_NORM) else part.kind


def _by_neighbours(worth: _Worth, found: dict[int, int]) -> None:
    """Add pairs of left-over parts of equal kind and size that have paired neighbours on the same side."""
    taken = set(found.values())
    left: dict[Hashable, list[int]] = defaultdict(list)
    for a, part in enumerate(worth.source.parts):
        if a not in taken:
            left[part.label].append(a)
    changed = True
    while changed:
        changed = False
        for b, part in enumerate(worth.target.parts):
            free = [a for a in left.get(part.label, ()) if a not in taken] if b not in found else []
            scored = [(_shared(worth, found, a, b), worth(a, b), -a) for a in free]
            scored = [each for each in scored if each[0]]
            if scored:
                found[b] = -max(scored)[2]
                taken.add(found[b])
                changed = True


def _shared(worth: _Worth, found: dict[int, int], a: int, b: int) -> int:
    """How many neighbours of the two are paired with one another, on the same side."""
    return sum(found.get(other) in near for other, near in _sides(worth, a, b))


def _sides(worth: _Worth, a: int, b: int) -> Iterator[tuple[int, set[int]]]:
    for mine, others in ((worth.target.before, worth.source.before), (worth.target.after, worth.source.after)):
        near = set(others[a])
        for other in mine[b]:
            yield other, near
