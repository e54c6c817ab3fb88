"""What the cells say: means, standard errors, differences to scratch, what was recovered, and how the probe ranks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Estimate(NamedTuple):
    """A mean and its standard error; nan where there are fewer than two."""

    mean: float
    error: float


@dataclass(frozen=True)
class Line:
    """One initialisation over pairs, in shares (0 to 1)."""

    init: str
    pairs: int
    cells: int
    accuracy: Estimate  # the error is over seeds, each the mean over pairs: of these pairs
    difference: Estimate  # to scratch of the same target, draw and head
    over_pairs: float  # standard error of the difference over pairs: of pairs like these
    better: int  # pairs whose mean difference is positive
    recovered: float  # (accuracy - scratch) / (upper - scratch), of the means
    probe: float
    transfer_seconds: float


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each cell: an initialisation that has changed was run again. Refusals are left out."""
    found = {}
    for row in rows:
        if "accuracy" in row:
            found[(*pair_of(row), row["init"], row["samples"], row["seed"])] = row
    return list(found.values())


def refusals(rows: Iterable[Row]) -> list[Row]:
    """Pairs that a recipe has refused, unless it took them later."""
    found = {}
    for row in rows:
        key = (*pair_of(row), row["init"])
        if "refused" in row:
            found[key] = row
        else:
            found.pop(key, None)
    return list(found.values())


def pair_of(row: Row) -> tuple[str, str, str]:
    return row["domain"], row["source"], row["target"]


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of independent values."""
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan)
    mean = sum(values) / n
    if n == 1:
        return Estimate(mean, math.nan)
    return Estimate(mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n))


def by_seed(values: Iterable[tuple[int, float]]) -> Estimate:
    """Mean over seeds of each seed's mean. Seeds that fewer pairs have than others are left out."""
    groups = defaultdict(list)
    for seed, value in values:
        groups[seed].append(value)
    most = max(map(len, groups.values()), default=0)
    return estimate([sum(group) / most for group in groups.values() if len(group) == most])


def lines(rows: Sequence[Row]) -> list[Line]:
    """All initialisations of rows of one domain and count of images, in the order of ``rows``."""
    scratch = reference(rows, "scratch")
    upper = reference(rows, "upper")
    return [_line(init, [row for row in rows if row["init"] == init], scratch, upper) for init in inits(rows)]


def in_common(rows: Sequence[Row]) -> list[Row]:
    """The rows of pairs that every initialisation with a source has, and of their targets."""
    pairs = defaultdict(set)
    for row in rows:
        if row["source"] != "-":
            pairs[row["init"]].add(pair_of(row))
    shared = set.intersection(*pairs.values()) if pairs else set()
    targets = {target for _, _, target in shared}
    return [row for row in rows if (pair_of(row) in shared if row["source"] != "-" else row["target"] in targets)]


def inits(rows: Iterable[Row]) -> list[str]:
    """Scratch first, the upper bound last."""
    found = dict.fromkeys(row["init"] for row in rows)
    return sorted(found, key=lambda init: (init != "scratch") + (init == "upper"))


def reference(rows: Iterable[Row], init: str) -> dict[tuple[str, str, int, int], float]:
    """Accuracies of ``scratch`` or ``upper`` by domain, target, count and seed."""
    return {cell_of(row): row["accuracy"] for row in rows if row["init"] == init}


def cell_of(row: Row) -> tuple[str, str, int, int]:
    return row["domain"], row["target"], row["samples"], row["seed"]


def _line(init: str, rows: Sequence[Row], scratch: Mapping, upper: Mapping) -> Line:
    differences = [
        (pair_of(row), row["seed"], row["accuracy"] - scratch[cell_of(row)]) for row in rows if cell_of(row) in scratch
    ]
    per_pair = defaultdict(list)
    for pair, _, difference in differences:
        per_pair[pair].append(difference)
    means = [sum(values) / len(values) for values in per_pair.values()]
    bounded = [row for row in rows if cell_of(row) in scratch and cell_of(row) in upper]
    gained = sum(row["accuracy"] - scratch[cell_of(row)] for row in bounded)
    possible = sum(upper[cell_of(row)] - scratch[cell_of(row)] for row in bounded)
    return Line(
        init=init,
        pairs=len({pair_of(row) for row in rows}),
        cells=len(rows),
        accuracy=by_seed((row["seed"], row["accuracy"]) for row in rows),
        difference=by_seed((seed, difference) for _, seed, difference in differences),
        over_pairs=estimate(means).error,
        better=sum(mean > 0 for mean in means),
        recovered=gained / possible if possible > 0 else math.nan,
        probe=sum(row["probe"] for row in rows) / len(rows),
        transfer_seconds=sum(row["transfer_seconds"] for row in rows) / len(rows),
    )


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Rank correlation; nan for fewer than three, or where one side is constant."""
    if len(pairs) < 3:
        return math.nan
    one, other = (_ranks([pair[side] for pair in pairs]) for side in (0, 1))
    middle = (len(pairs) + 1) / 2
    product = sum((a - middle) * (b - middle) for a, b in zip(one, other, strict=True))
    norms = [math.sqrt(sum((rank - middle) ** 2 for rank in ranks)) for ranks in (one, other)]
    return product / (norms[0] * norms[1]) if all(norms) else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    """1 for the least; equal values share their mean rank."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for position in range(start, stop):
            ranks[order[position]] = (start + stop + 1) / 2
        start = stop
    return ranks


def probe_ranking(rows: Sequence[Row]) -> tuple[float, float]:
    """Spearman of probe against final accuracy: over all (pair, initialisation), and the mean of it within targets.

    Each (pair, initialisation) counts once, with its means over seeds.
    """
    groups = defaultdict(list)
    for row in rows:
        groups[(*pair_of(row), row["init"])].append((row["probe"], row["accuracy"]))
    points = {key: tuple(sum(side) / len(side) for side in zip(*group, strict=True)) for key, group in groups.items()}
    within = defaultdict(list)
    for key, point in points.items():
        within[key[2]].append(point)
    ranked = [rho for rho in map(spearman, within.values()) if not math.isnan(rho)]
    return spearman(list(points.values())), sum(ranked) / len(ranked) if ranked else math.nan
