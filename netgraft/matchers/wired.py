"""Layers by stage, role and shape, such that what is paired one after the other is wired one to the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from netgraft.architecture.graph import LayerGraph
from netgraft.architecture.wiring import Place, Wiring
from netgraft.matchers._align import WiredWays, best_path
from netgraft.matchers._beside import Matches, attached, beside
from netgraft.matchers._separable import join_separable
from netgraft.matchers._worth import worth_of
from netgraft.plan import Pair, Pairing


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
        wirings = Wiring(source), Wiring(target)
        found = Matches()
        self._sequence(*wirings, wirings[0].chain, wirings[1].chain, found)
        beside(*wirings, found, reuse=self.reuse)
        self._sequence(*wirings, wirings[0].others, wirings[1].others, found)
        found.why |= dict.fromkeys(wirings[1].idle, "does not feed the output")
        for partner, name, reason in attached(*wirings, [(p.source, p.target) for p in found.pairs.values()]):
            found.pairs[name] = Pair(partner, name, reason)
        return found.pairing(target)

    def _sequence(
        self,
        source: Wiring,
        target: Wiring,
        source_names: Sequence[str],
        target_names: Sequence[str],
        found: Matches,
    ) -> None:
        """Align two sequences of layers, and add what comes of it to ``found``."""
        kinds = _kinds(source, source_names) & _kinds(target, target_names)
        rows = source.places(name for name in source_names if source.kind(name) in kinds)
        places = target.places(name for name in target_names if target.kind(name) in kinds)
        columns, groups = join_separable(places, rows)
        cells = self._align(rows, columns)
        for row, column, follows in cells:
            text = f"place {row + 1} of {len(rows)} to {column + 1} of {len(columns)}"
            text = f"residual block, {text}" if columns[column].block else text
            for place in groups[column]:
                name = place.layer.name
                found.pairs[name] = Pair(rows[row].layer.name, name, f"{text}, follows the wiring" if follows else text)
        reached = {column: row for row, column, _ in cells}
        for column, group in enumerate(groups):
            if column not in reached:
                reason = _left_over(rows, columns, column, reached)
                found.why |= dict.fromkeys((place.layer.name for place in group), reason)
        for name in target_names:
            if target.kind(name) not in kinds:
                found.why[name] = f"the source has no {target.graph.layers[name].kind} in such a place"

    def _align(self, rows: Sequence[Place], columns: Sequence[Place]) -> list[tuple[int, int, bool]]:
        """The best pairs (row, column), and whether both are wired to the pair before."""
        ways = WiredWays(rows, columns, bonus=self.bonus, whole=self.whole, intact=self.intact, reuse=self.reuse)
        _, path = best_path(len(rows), len(columns), lambda i, j: worth_of(rows[i], columns[j]), ways)
        return path.cells() if path is not None else []


def _left_over(rows: Sequence[Place], columns: Sequence[Place], column: int, reached: Mapping[int, int]) -> str:
    """Why the alignment left a place of the target alone; ``reached`` is the row of each column that has one."""
    block = [k for k, place in enumerate(columns) if place.run == columns[column].run]
    before = max((k for k in reached if k < column), default=None)
    after = min((k for k in reached if k > column), default=None)
    low = -1 if before is None else reached[before]
    high = len(rows) if after is None else reached[after]
    if columns[column].block and not any(k in reached for k in block):
        return "its residual block has no counterpart in the source"
    names = [
        f"{'after' if k is before else 'before'} {rows[reached[k]].layer.name}"
        for k in (before, after)
        if k is not None
    ]
    where = " and ".join(names)
    if high - low <= 1 and where:
        return f"no layer of the source is left {where}"
    return f"no layer of the source {where} fits its place".replace("  ", " ")


def _kinds(wiring: Wiring, names: Iterable[str]) -> set[tuple[str, bool]]:
    return {wiring.kind(name) for name in names}
