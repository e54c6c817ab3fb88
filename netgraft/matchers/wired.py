"""Layers by stage, role and shape, such that what is paired one after the other is wired one to the other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from netgraft.architecture.graph import LayerGraph
from netgraft.architecture.wiring import Place, Wiring
from netgraft.matchers._beside import attached, beside
from netgraft.matchers._separable import join_separable
from netgraft.matchers.longest_chain import unlike
from netgraft.plan import Pair, Pairing

STAGE, DEPTH = 2.0, 0.4  # what a pair loses at opposite ends of the resolutions, and of the sequences
STREAM = 1.0  # ... where one of the two reads (or writes) the residual stream and the other does not
ATTENTION, DEPTHWISE = 1.0, 0.4  # ... where only one of the two stands in an attention block, or is depthwise
CHANNELS, KERNEL = 0.06, 0.25  # ... per factor of e between their channel counts, and their kernel sizes
OPENS = 0.5  # ... where only one of the two is the first to write its stream
ENDS = 0.1  # the least that a pair of first layers, or of heads, is worth
PART = 0.25  # entering or leaving a block in the middle that no block of the other network can match as a whole
AGAIN = 0.3  # a source layer, or block, that serves once more
NEXT = 0.2  # gained by a pair of residual layers before which nothing is left out


@dataclass(frozen=True)
class Wired:
    """A monotone alignment by stage, role and shape that follows the wiring of the source (OPERATORS part 2, 4).

    The kernels of the two longest chains (gates left out) are aligned by dynamic programming. A pair is worth 1, less
    what the two differ by: relative resolution and depth, reading or writing or opening a residual stream, attention,
    depthwise or dense, channels, kernel size. First layers go to first layers and heads to heads. A pair is worth
    ``bonus`` more if source and target layer both read the channels that the layers of the pair before write. Blocks,
    from one reading of the residual stream to the next writing, are kept or dropped as a whole: it costs ``whole``
    otherwise, or little where the other network's usual block is shorter. A layer knows the features of the layers
    before it only: in a source without residual streams a pair is worth ``intact`` more as long as nothing has been
    left out on the way to it, in either network. Along a stream, where what was left out is missed less, it is little.
    A depthwise and a pointwise convolution take one dense one's place together where the source has no depthwise ones.

    Then shortcut projections and gates are paired within paired blocks, what lies beside the chains is aligned in the
    same way, and norms, scales and raw parameters go along with the kernels they follow or precede, projections
    included (so ``with_norms`` finds nothing left to add). Time O(n_s n_t), times the layers that one layer reads from.
    """

    bonus: float = field(default=0.6, metadata={"help": "worth of a pair whose source layer reads what the last wrote"})
    whole: float = field(
        default=4.0, metadata={"help": "cost of using a block of layers in part, a pair being worth 1"}
    )
    intact: float = field(
        default=1.5, metadata={"help": "worth of a pair before which nothing is left out, in a plain source"}
    )
    reuse: bool = field(default=False, metadata={"help": "let a source layer or block serve several in a row"})

    def __post_init__(self) -> None:
        if min(self.bonus, self.whole, self.intact) < 0:
            raise ValueError("bonus, whole and intact must not be negative")

    def __call__(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        theirs, ours = Wiring(source), Wiring(target)
        pairs: dict[str, Pair] = {}
        why: dict[str, str] = {}
        self._sequence(theirs, ours, theirs.chain, ours.chain, pairs, why)
        beside(theirs, ours, pairs, why, self.reuse)
        self._sequence(theirs, ours, theirs.others, ours.others, pairs, why)
        why |= dict.fromkeys(ours.idle, "does not feed the output")
        for there, here, reason in attached(theirs, ours, [(p.source, p.target) for p in pairs.values()]):
            pairs[here] = Pair(there, here, reason)
        ordered = tuple(pairs[name] for name in target.layers if name in pairs)
        return Pairing(ordered, {name: why[name] for name in target.layers if name in why and name not in pairs})

    def _sequence(
        self,
        theirs: Wiring,
        ours: Wiring,
        there: Sequence[str],
        here: Sequence[str],
        pairs: dict[str, Pair],
        why: dict[str, str],
    ) -> None:
        """Align two sequences of layers, and add what comes of it to ``pairs`` and ``why``."""
        kinds = _kinds(theirs, there) & _kinds(ours, here)
        a = theirs.places(name for name in there if theirs.kind(name) in kinds)
        b, groups = join_separable(ours.places(name for name in here if ours.kind(name) in kinds), a)
        steps = self._align(a, b)
        for i, j, wired in steps:
            text = f"{'residual block, ' if b[j].block else ''}place {i + 1} of {len(a)} to {j + 1} of {len(b)}"
            for place in groups[j]:
                name = place.layer.name
                pairs[name] = Pair(a[i].layer.name, name, text + (", follows the wiring" if wired else ""))
        reached = {j: i for i, j, _ in steps}
        for j, group in enumerate(groups):
            if j not in reached:
                why |= dict.fromkeys((place.layer.name for place in group), _left_over(a, b, j, reached))
        for name in here:
            if ours.kind(name) not in kinds:
                why[name] = f"the source has no {ours.kind(name)[0]} in such a place"

    def _align(self, a: Sequence[Place], b: Sequence[Place]) -> list[tuple[int, int, bool]]:
        """The best pairs (i, j), and whether both are wired to the pair before."""
        starts, ends = [place.run for place in a], _ends(a)
        part, part_here = _parts(a, b, self.whole / 2), _parts(b, a, self.whole / 2)
        nothing = [(-math.inf, -1)] * len(a)
        near = nothing  # per source layer: the worth of a pair in the column before, and that column
        far = nothing  # ... in any column before, less the cost of leaving a block of the target there
        wires: dict[int, list[tuple[float, int]]] = {}  # ... in any column that writes a space of the target
        back: dict[tuple[int, int], tuple[int, int, bool] | None] = {}
        beginning = self._beginning(a, b)
        intact: set[int] = set()  # places to which nothing was left out
        best, end = 0.0, None
        for j, here in enumerate(b):
            enters = part_here[j] * (here.run != j)
            arrive = [max(x, (y[0] - enters, y[1]), key=_first) for x, y in zip(near, far, strict=True)]
            wired = near if j and reads_from(here, b[j - 1]) else nothing
            for space in here.reads:
                if space in wires:
                    wired = [
                        max(x, (y[0] - enters, y[1]), key=_first) for x, y in zip(wired, wires[space], strict=True)
                    ]
            now = nothing[:]
            anywhere, by_space = (0.0 - enters, -1), dict[int, tuple[float, int]]()
            for i, there in enumerate(a):
                worth = _worth(there, here)
                if worth > -math.inf:
                    cost = part[i] * (starts[i] != i)
                    options = [(anywhere[0] - cost, anywhere[1], False)]
                    options += [
                        (by_space[s][0] + self.bonus - cost, by_space[s][1], True) for s in there.reads if s in by_space
                    ]
                    following = [(p, part[i] * (p + 1 < i)) for p in range(starts[i], i)]
                    if self.reuse:
                        following += [(i, AGAIN)] + [(ends[i], AGAIN)] * (starts[i] == i)
                    for p, cost in following:
                        options.append((arrive[p][0] - cost, p, False))
                        if reads_from(there, a[p]):
                            options.append((wired[p][0] + self.bonus - cost, p, True))
                    value, p, follows = max(options, key=_first)
                    now[i] = (worth + value, j)
                    back[i, j] = None if p < 0 else (p, (wired if follows else arrive)[p][1], follows)
                    if i == j < len(beginning) and beginning[j] > now[i][0]:
                        now[i] = (beginning[j], j)
                        intact.add(j)
                    final = now[i][0] - part[i] * (ends[i] != i)
                    if final > best:
                        best, end = final, (i, j)
                leaves = part[i] * (ends[i] != i)
                anywhere = max(anywhere, (arrive[i][0] - leaves, i), key=_first)
                for space in there.writes:
                    by_space[space] = max(by_space.get(space, nothing[0]), (wired[i][0] - leaves, i), key=_first)
            near = now
            leaves = part_here[j] * (j + 1 < len(b) and b[j + 1].run == here.run)
            left = [(worth - leaves, column) for worth, column in now]
            far = [max(x, y, key=_first) for x, y in zip(far, left, strict=True)]
            for space in here.writes:
                wires[space] = [max(x, y, key=_first) for x, y in zip(wires.get(space, nothing), left, strict=True)]
        steps: list[tuple[int, int, bool]] = []
        while end is not None:
            if end[0] == end[1] and end[1] in intact:
                steps += [(k, k, k > 0) for k in range(end[1], -1, -1)]
                break
            before = back[end]
            steps.append((*end, before is not None and before[2]))
            end = None if before is None else (before[0], before[1])
        return steps[::-1]

    def _beginning(self, a: Sequence[Place], b: Sequence[Place]) -> list[float]:
        """What the first 1, 2, ... pairs are worth together where neither network leaves anything out."""
        found: list[float] = []
        for k, (there, here) in enumerate(zip(a, b, strict=False)):
            worth = _worth(there, here)
            streams = there.from_stream is not None
            alike = not streams or (here.from_stream is not None and (there.run == k) == (here.run == k))
            follows = reads_from(there, a[k - 1]) and reads_from(here, b[k - 1]) if k else there.stem and here.stem
            if worth == -math.inf or not alike or not follows:
                break
            before = found[-1] + self.bonus + (NEXT if streams else self.intact) if found else 0.0
            found.append(before + worth)
        return found


def _first(option: tuple[float, ...]) -> float:
    return option[0]


def _ends(places: Sequence[Place]) -> list[int]:
    """The last place in the run of each."""
    last = {place.run: i for i, place in enumerate(places)}
    return [last[place.run] for place in places]


def _parts(places: Sequence[Place], others: Sequence[Place], cost: float) -> list[float]:
    """What it costs to enter or leave the run of each place in the middle: little, if the others' runs are shorter."""
    lengths = Counter(place.run for place in places)
    usual = Counter(length for length in Counter(place.run for place in others).values() if length > 1)
    most = max(usual, key=lambda length: (usual[length], length), default=0)
    return [min(PART, cost) if 1 < most < lengths[place.run] else cost for place in places]


def reads_from(place: Place, before: Place) -> bool:
    """Whether a layer reads a channel space that another one writes."""
    return any(space in before.writes for space in place.reads)


def _worth(there: Place, here: Place) -> float:
    """What it is worth to pair two layers: 1 for equals, down to minus infinity for those that must not be paired."""
    if unlike(there.layer, here.layer):
        return -math.inf
    if there.head != here.head or (there.stem != here.stem and not here.head):
        return -math.inf
    worth = 1 - DEPTH * abs(there.depth - here.depth)
    if there.resolution is not None and here.resolution is not None:
        worth -= STAGE * abs(there.resolution - here.resolution)
    for one, other in ((there.from_stream, here.from_stream), (there.to_stream, here.to_stream)):
        worth -= STREAM * (one is not None and other is not None and one != other)
    worth -= OPENS * (there.opens is not None and here.opens is not None and there.opens != here.opens)
    worth -= ATTENTION * (there.attention != here.attention) + DEPTHWISE * (there.depthwise != here.depthwise)
    (out, into, side), (out_here, into_here, side_here) = there.sizes, here.sizes
    worth -= CHANNELS * (abs(out - out_here) + abs(into - into_here)) + KERNEL * abs(side - side_here)
    return max(worth, ENDS) if here.stem or here.head else worth


def _left_over(a: Sequence[Place], b: Sequence[Place], j: int, reached: dict[int, int]) -> str:
    """Why the alignment left place ``j`` of the target alone."""
    block = [k for k, place in enumerate(b) if place.run == b[j].run]
    before = max((k for k in reached if k < j), default=None)
    after = min((k for k in reached if k > j), default=None)
    low = -1 if before is None else reached[before]
    high = len(a) if after is None else reached[after]
    if b[j].block and not any(k in reached for k in block):
        return "its residual block has no counterpart in the source"
    names = [
        f"{'after' if k is before else 'before'} {a[reached[k]].layer.name}" for k in (before, after) if k is not None
    ]
    where = " and ".join(names)
    if high - low <= 1 and where:
        return f"no layer of the source is left {where}"
    return f"no layer of the source {where} fits its place".replace("  ", " ")


def _kinds(wiring: Wiring, names: Iterable[str]) -> set[tuple[str, bool]]:
    return {wiring.kind(name) for name in names}
