"""The alignment of two sequences against all paths, one by one, for up to six layers."""

import itertools
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.drawn import Drawing

from netgraft.architecture.graph import Layer
from netgraft.architecture.wiring import Place, Wiring
from netgraft.matchers._align import NOWHERE, WiredWays, _beginning, _parts, best_path
from netgraft.matchers._worth import PAIR_SCORES, PairScores, reads_from, worth_of

thorough = settings(deadline=None, derandomize=True, database=None, max_examples=150)


def rising(rows, columns, again=False):
    """Every sequence of cells whose columns rise, and whose rows do too unless a row may come again."""
    for length in range(min(rows, columns) + 1 if not again else columns + 1):
        for some in itertools.combinations(range(columns), length):
            choices = (
                itertools.product(range(rows), repeat=length) if again else itertools.combinations(range(rows), length)
            )
            for chosen in choices:
                yield list(zip(chosen, some, strict=True))


# ------------------------------------------------------------------------------------------ any ways between two cells


class GivenWays:
    """Ways that gain what a table says, from any cell to any later one."""

    def __init__(self, gain, leave):
        self.gain, self.leave = gain, leave
        self.columns = []

    def open(self, column):
        self.column = column

    def to(self, row):
        yield self.gain[None, (row, self.column)], None, False
        for column, reached in enumerate(self.columns):
            for before in range(row):
                score, path = reached[before]
                yield score + self.gain[(before, column), (row, self.column)], path, True

    def passed(self, row):
        pass

    def close(self, column, reached):
        assert column == len(self.columns)
        self.columns.append(reached)

    def leaving(self, row):
        return self.leave[row]


@thorough
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**16))
def test_the_best_path_is_the_best_of_all(rows, columns, seed):
    chance = random.Random(seed)
    cells = [(i, j) for i in range(rows) for j in range(columns)]
    worth = {cell: chance.choice([-math.inf, chance.uniform(-1, 1)]) for cell in cells}
    gain = {(a, b): chance.uniform(-1, 0.5) for a in [None, *cells] for b in cells}
    leave = [chance.uniform(0, 0.3) for _ in range(rows)]

    def earned(path):
        steps = zip([None, *path], path, strict=False)
        return sum(worth[b] + gain[a, b] for a, b in steps) - (leave[path[-1][0]] if path else 0)

    score, path = best_path(rows, columns, lambda i, j: worth[i, j], GivenWays(gain, leave))
    assert score == pytest.approx(max(map(earned, rising(rows, columns))))
    assert earned([(i, j) for i, j, _ in path.cells()] if path else []) == pytest.approx(score)


def test_no_cell_no_path():
    assert best_path(3, 3, lambda *_: -math.inf, GivenWays({}, [0] * 3)) == (0.0, None)
    assert NOWHERE[0] == -math.inf


# ------------------------------------------------------------------------------------------------- the ways of wired


def places(chance, count):
    """Places with wiring, blocks and facts drawn at random."""
    found, run = [], 0
    streams = chance.random() < 0.5
    for i in range(count):
        run = i if chance.random() < 0.4 else run
        found.append(
            Place(
                layer=Layer(f"l{i}", chance.choice(["conv2d"] * 4 + ["linear"]), (8, 8)),
                reads=tuple(chance.sample(range(3), chance.choice([0, 1, 1, 2]))),
                writes=tuple(chance.sample(range(3), chance.choice([1, 1, 2]))),
                stem=i == 0 and chance.random() < 0.9,
                head=i == count - 1 and chance.random() < 0.5,
                from_stream=chance.random() < 0.5 if streams else None,
                to_stream=chance.random() < 0.5 if streams else None,
                depthwise=chance.random() < 0.2,
                attention=False,
                resolution=chance.choice([None, 0.0, 0.2]),
                depth=i / max(count - 1, 1),
                block=None,
                opens=None,
                run=run,
                sizes=(chance.random(), chance.random(), chance.random()),
            )
        )
    return found


def spec(source, target, bonus, whole, intact, reuse, path):
    """What a path earns, said cell by cell; None for one that takes a way that there is not."""

    def edges(side, other):
        part = _parts(side, other, whole / 2, PAIR_SCORES)
        last = {place.run: i for i, place in enumerate(side)}
        enters = [cost if place.run != i else 0.0 for i, (place, cost) in enumerate(zip(side, part, strict=True))]
        leaves = [cost if last[place.run] != i else 0.0 for i, (place, cost) in enumerate(zip(side, part, strict=True))]
        return part, enters, leaves, last

    part, enters, leaves, last = edges(source, target)
    _, column_enters, column_leaves, _ = edges(target, source)
    totals = [0.0]  # by number of cells
    for k, (i, j) in enumerate(path):
        worth = worth_of(source[i], target[j])
        if k == 0:
            totals.append(worth - enters[i] - column_enters[j])
            continue
        p, c = path[k - 1]
        rows = []
        if p < i:
            rows.append(leaves[p] + enters[i])
            if source[p].run == source[i].run:
                rows.append(part[i] * (p + 1 < i))
        if reuse and (p == i or (source[i].run == i and p == last[i])):
            rows.append(PAIR_SCORES.again)
        if not rows:
            return None
        columns = 0.0 if c + 1 == j else column_leaves[c] + column_enters[j]
        wired = reads_from(source[i], source[p]) and reads_from(target[j], target[c])
        totals.append(totals[-1] + worth - min(rows) - columns + bonus * wired)
    best = totals[-1]
    for k, (before, _, _) in enumerate(_beginning(source, target, bonus, intact, PAIR_SCORES)):
        if path[: k + 1] == [(n, n) for n in range(k + 1)]:
            earned = before + worth_of(source[k], target[k])
            best = max(best, totals[-1] - totals[k + 1] + earned)
    return best - (leaves[path[-1][0]] if path else 0.0)


@thorough
@given(st.booleans(), st.integers(0, 2**16))
def test_wired_finds_the_best_of_all_paths(reuse, seed):
    chance = random.Random(seed)
    rows, columns = chance.choice([(3, 4), (2, 4)] if reuse else [(0, 3), (1, 4), (5, 3), (4, 4), (5, 5)])
    source, target = places(chance, rows), places(chance, columns)
    options = {"bonus": chance.uniform(0, 1), "whole": chance.choice([0.1, 0.5, 2.0]), "intact": chance.uniform(0, 1)}
    ways = WiredWays(source, target, **options, reuse=reuse)
    score, path = best_path(rows, columns, lambda i, j: worth_of(source[i], target[j]), ways)
    found = [spec(source, target, **options, reuse=reuse, path=some) for some in rising(rows, columns, reuse)]
    assert score == pytest.approx(max(each for each in found if each is not None))
    taken = [(i, j) for i, j, _ in path.cells()] if path else []
    assert spec(source, target, **options, reuse=reuse, path=taken) == pytest.approx(score)


def test_six_layers():
    """Three blocks of two against two: the middle one is left out as a whole."""

    def chain(blocks):
        d = Drawing()
        x = d.conv(d.input(), shape=(8, 3, 3, 3))
        for _ in range(blocks):
            x = d.add(x, d.conv(d.conv(x, shape=(4, 8, 1, 1)), shape=(8, 4, 3, 3)))
        d.output(d.linear(x, shape=(5, 8)))
        wiring = Wiring(d.graph())
        inner = wiring.places(wiring.chain)[1:-1]
        return [replace(place, run=place.run - 1) for place in inner]

    source, target = chain(3), chain(2)
    options = {"bonus": 0.6, "whole": 4.0, "intact": 1.5, "reuse": False}
    score, path = best_path(6, 4, lambda i, j: worth_of(source[i], target[j]), WiredWays(source, target, **options))
    assert [(i, j) for i, j, _ in path.cells()] == [(0, 0), (1, 1), (4, 2), (5, 3)]
    assert score == pytest.approx(max(spec(source, target, **options, path=some) for some in rising(6, 4)))


# ---------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize(
    ("score", "changes"),
    [
        ("stage", {"resolution": 1.0}),
        ("depth", {"depth": 1.0}),
        ("stream", {"from_stream": True}),
        ("stream", {"to_stream": True}),
        ("attention", {"attention": True}),
        ("depthwise", {"depthwise": True}),
        ("opens", {"opens": True}),
        ("channels", {"sizes": (1.0, 0.0, 0.0)}),
        ("channels", {"sizes": (0.0, 1.0, 0.0)}),
        ("kernel", {"sizes": (0.0, 0.0, 1.0)}),
    ],
)
def test_each_score_is_what_one_difference_costs(score, changes):
    facts = {
        "layer": Layer("l", "conv2d", (8, 8, 3, 3)),
        "reads": (),
        "writes": (),
        "stem": False,
        "head": False,
        "block": None,
        "run": 0,
        "depth": 0.0,
        "from_stream": False,
        "to_stream": False,
        "opens": False,
        "depthwise": False,
        "attention": False,
        "resolution": 0.0,
        "sizes": (0.0, 0.0, 0.0),
    }
    one, other = Place(**facts), Place(**(facts | changes))
    assert worth_of(one, one) == 1
    assert worth_of(one, other) == pytest.approx(1 - getattr(PAIR_SCORES, score))
    assert worth_of(one, other, PairScores(**{score: 0.0})) == 1
    assert worth_of(Place(**(facts | {"layer": Layer("l", "linear", (8, 8))})), one) == -math.inf
