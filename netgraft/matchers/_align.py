"""The best monotone alignment of two sequences of layers, by dynamic programming. Nothing here imports torch.

Rows are the places of the source, columns those of the target; a cell (row, column) pairs the two. A path is a sequence
of cells whose columns rise. ``best_path`` finds the best one, whatever the ways between cells are worth: it goes by
columns and asks ``Ways`` for the best ways to each cell. ``WiredWays`` are those of the matcher ``wired``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from netgraft.architecture.wiring import Place
from netgraft.matchers._worth import PAIR_SCORES, PairScores, reads_from, worth_of


@dataclass(frozen=True)
class Path:
    """Cells, told from the last one back."""

    row: int
    column: int
    follows: bool  # whether both layers are wired to those of the cell before
    before: Path | None = None

    def cells(self) -> list[tuple[int, int, bool]]:
        """(row, column, follows) from the first cell on."""
        found: list[tuple[int, int, bool]] = []
        step: Path | None = self
        while step is not None:
            found.append((step.row, step.column, step.follows))
            step = step.before
        return found[::-1]


Reached = tuple[float, Path | None]
"""What a path has earned so far, and the path; None is the empty one."""
NOWHERE: Reached = (-math.inf, None)


class Ways(Protocol):
    """The ways from one cell to the next. Called in this order: per column open, per row to and passed, then close."""

    def open(self, column: int) -> None:
        """Go on to a column."""

    def to(self, row: int) -> Iterator[tuple[float, Path | None, bool]]:
        """The ways to a cell of the open column: earned before the cell, the path so far, whether the cell follows."""

    def passed(self, row: int) -> None:
        """The next cells asked for are in rows after this one."""

    def close(self, column: int, reached: Sequence[Reached]) -> None:
        """What the best paths to the cells of the column have earned."""

    def leaving(self, row: int) -> float:
        """What it costs to end in a row."""


def best_path(rows: int, columns: int, worth: Callable[[int, int], float], ways: Ways) -> Reached:
    """The path that earns most: the worth of its cells, plus what ``ways`` gives from each to the next.

    A cell of worth minus infinity is never on it. Of equally good ways the first counts, of equally good ends too; the
    empty path earns 0.
    """
    best: Reached = (0.0, None)
    for column in range(columns):
        ways.open(column)
        reached = [NOWHERE] * rows
        for row in range(rows):
            own = worth(row, column)
            if own > -math.inf:
                score, before, follows = max(ways.to(row), key=_score)
                reached[row] = (own + score, Path(row, column, follows, before))
                if reached[row][0] - ways.leaving(row) > best[0]:
                    best = (reached[row][0] - ways.leaving(row), reached[row][1])
            ways.passed(row)
        ways.close(column, reached)
    return best


class WiredWays:
    """The ways of the matcher ``wired``: blocks as a whole, and a bonus for what is wired alike.

    Between two cells nothing is lost where they are neighbours in both networks. Whatever is left out between them is
    free, but for entering a block (``Place.run``) in the middle, and leaving one there. Kept for that are the best
    paths to each row, over all columns before, by how they may go on; so a cell is reached in constant time, times the
    number of layers that one layer reads from, or that are in its block.
    """

    def __init__(
        self,
        source: Sequence[Place],
        target: Sequence[Place],
        *,
        bonus: float,  # gained where both layers read what those of the cell before write
        whole: float,  # cost of using a block in part
        intact: float,  # gained by a cell before which nothing is left out in either network, without a stream
        reuse: bool,  # whether a row may come again
        scores: PairScores = PAIR_SCORES,
    ) -> None:
        self.source, self.target, self.bonus, self.reuse, self.scores = source, target, bonus, reuse, scores
        self.first, self.last = [place.run for place in source], _ends(source)
        self.part = _parts(source, target, whole / 2, scores)
        self.enters = [cost * (first != i) for i, (cost, first) in enumerate(zip(self.part, self.first, strict=True))]
        self.leaves = [cost * (last != i) for i, (cost, last) in enumerate(zip(self.part, self.last, strict=True))]
        part, last = _parts(target, source, whole / 2, scores), _ends(target)
        self.column_enters = [cost * (place.run != j) for j, (cost, place) in enumerate(zip(part, target, strict=True))]
        self.column_leaves = [cost * (last[j] != j) for j, cost in enumerate(part)]
        self.beginning = _beginning(source, target, bonus, intact, scores)
        self.column = -1
        self.near = [NOWHERE] * len(source)  # by row: the best path that ends there in the column before
        self.far = [NOWHERE] * len(source)  # ... in any column before, and has left its block
        self.wires: dict[int, list[Reached]] = {}  # ... in any that writes a space of the target, and has left

    def open(self, column: int) -> None:
        enters = self.column_enters[column]
        place = self.target[column]
        self.arrive = [_better(x, _less(y, enters)) for x, y in zip(self.near, self.far, strict=True)]
        follows = column > 0 and reads_from(place, self.target[column - 1])
        self.wired = self.near if follows else [NOWHERE] * len(self.source)
        for space in place.reads:
            if space in self.wires:
                self.wired = [_better(x, _less(y, enters)) for x, y in zip(self.wired, self.wires[space], strict=True)]
        self.column = column
        self.anywhere: Reached = (0.0 - enters, None)  # the best over the rows passed, or a beginning here
        self.by_space: dict[int, Reached] = {}  # ... over those that write a space of the source, by wires

    def to(self, row: int) -> Iterator[tuple[float, Path | None, bool]]:
        place, enters = self.source[row], self.enters[row]
        yield self.anywhere[0] - enters, self.anywhere[1], False
        for space in place.reads:
            if space in self.by_space:
                score, path = self.by_space[space]
                yield score + self.bonus - enters, path, True
        for before, cost in self._in_block(row):
            score, path = self.arrive[before]
            yield score - cost, path, False
            if reads_from(place, self.source[before]):
                score, path = self.wired[before]
                yield score + self.bonus - cost, path, True
        if row == self.column < len(self.beginning):
            yield self.beginning[row]

    def _in_block(self, row: int) -> Iterator[tuple[int, float]]:
        """Rows of the same block from which to come, and what it costs; those that come again too."""
        for before in range(self.first[row], row):
            yield before, self.part[row] * (before + 1 < row)
        if self.reuse:
            yield row, self.scores.again
            if self.first[row] == row:
                yield self.last[row], self.scores.again

    def passed(self, row: int) -> None:
        self.anywhere = _better(self.anywhere, _less(self.arrive[row], self.leaves[row]))
        for space in self.source[row].writes:
            known = self.by_space.get(space, NOWHERE)
            self.by_space[space] = _better(known, _less(self.wired[row], self.leaves[row]))

    def close(self, column: int, reached: Sequence[Reached]) -> None:
        self.near = list(reached)
        left = [_less(each, self.column_leaves[column]) for each in reached]
        self.far = [_better(x, y) for x, y in zip(self.far, left, strict=True)]
        for space in self.target[column].writes:
            known = self.wires.get(space, [NOWHERE] * len(reached))
            self.wires[space] = [_better(x, y) for x, y in zip(known, left, strict=True)]

    def leaving(self, row: int) -> float:
        return self.leaves[row]


def _score(option: tuple[float, Path | None, bool]) -> float:
    return option[0]


def _better(first: Reached, second: Reached) -> Reached:
    """The first, unless the second has earned more."""
    return second if second[0] > first[0] else first


def _less(reached: Reached, cost: float) -> Reached:
    return (reached[0] - cost, reached[1])


def _ends(places: Sequence[Place]) -> list[int]:
    """The last place in the block of each."""
    last = {place.run: i for i, place in enumerate(places)}
    return [last[place.run] for place in places]


def _parts(places: Sequence[Place], others: Sequence[Place], cost: float, scores: PairScores) -> list[float]:
    """What it costs to enter or leave the block of each place in the middle: little, if the others' are shorter."""
    lengths = Counter(place.run for place in places)
    usual = Counter(length for length in Counter(place.run for place in others).values() if length > 1)
    most = max(usual, key=lambda length: (usual[length], length), default=0)
    return [min(scores.part, cost) if 1 < most < lengths[place.run] else cost for place in places]


def _beginning(
    source: Sequence[Place], target: Sequence[Place], bonus: float, intact: float, scores: PairScores
) -> list[tuple[float, Path | None, bool]]:
    """Ways to the cells (0, 0), (1, 1), ... along which neither network leaves anything out."""
    found: list[tuple[float, Path | None, bool]] = []
    earned, path = 0.0, None
    for k, (row, column) in enumerate(zip(source, target, strict=False)):
        worth = worth_of(row, column, scores)
        streams = row.from_stream is not None
        alike = not streams or (column.from_stream is not None and (row.run == k) == (column.run == k))
        if k:
            follows = reads_from(row, source[k - 1]) and reads_from(column, target[k - 1])
        else:
            follows = row.stem and column.stem
        if worth == -math.inf or not alike or not follows:
            break
        before = earned + bonus + (scores.next if streams else intact) if found else 0.0
        found.append((before, path, k > 0))
        earned, path = before + worth, Path(k, k, k > 0, path)
    return found
