"""Reads the runs of a folder: which rate was chosen, what came of it, and when a row was where scratch ended."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import SCRATCH
from training import best_rate

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Tuned:
    """The runs of one row with one optimiser at the rate that was chosen for it."""

    optimiser: str
    rate: float
    edge: bool  # whether the rate is the smallest or the largest of those tried
    validation: float  # accuracy there, in percent, the mean over draws
    finals: Mapping[int, Line]  # by seed; never empty

    @property
    def accuracies(self) -> dict[int, float]:
        return {seed: line["accuracy"] for seed, line in self.finals.items()}

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Steps and the mean accuracy over seeds, where all have been measured."""
        by_step: dict[int, list[float]] = defaultdict(list)
        for line in self.finals.values():
            for step, accuracy, _ in line["curve"]:
                by_step[step].append(accuracy)
        return [(s, statistics.mean(v)) for s, v in sorted(by_step.items()) if len(v) == len(self.finals)]

    @property
    def gflops_of_step(self) -> float:
        return float(next(iter(self.finals.values()))["gflops_of_step"])


class Results:
    """All runs and transfers of a folder."""

    def __init__(self, lines: Sequence[Line], transfers: Sequence[Line] = ()) -> None:
        self.lines = lines
        self.transfers = {(each["cell"], each["row"]): each for each in transfers}

    @classmethod
    def of(cls, folder: Path) -> Results:
        """What lies in a study's folder."""
        lines, transfers = (
            [json.loads(file.read_text()) for file in sorted((folder / name).glob("*.json"))]
            for name in ("runs", "transfers")
        )
        return cls(lines, transfers)

    def values(self, name: str) -> list[Any]:
        """The different values of a field of the runs, sorted."""
        return sorted({line[name] for line in self.lines})

    def of_optimiser(self, data: str, cell: str, row: str, samples: int, optimiser: str) -> Tuned | None:
        """None where a rate has not been chosen yet, or no result is there with it."""
        wanted = {"data": data, "cell": cell, "row": row, "samples": samples, "optimiser": optimiser}
        mine = [line for line in self.lines if wanted.items() <= line.items()]
        tried: dict[float, list[Line]] = defaultdict(list)
        for line in mine:
            if line["judged"] == "validation":
                tried[line["rate"]].append(line)
        if not tried:
            return None
        rate = best_rate(tried)
        finals = {line["seed"]: line for line in mine if line["judged"] == "test" and line["rate"] == rate}
        if not finals:
            return None
        found = statistics.mean(line["accuracy"] for line in tried[rate])
        return Tuned(optimiser, rate, rate in (min(tried), max(tried)), found, finals)

    def tuned(self, data: str, cell: str, row: str, samples: int) -> Tuned | None:
        """With the optimiser that is better on validation pictures; the first by name in a tie."""
        names = self.values("optimiser")
        found = [each for name in names if (each := self.of_optimiser(data, cell, row, samples, name))]
        return max(found, key=lambda each: each.validation, default=None)

    def price(self, cell: str, row: str) -> float:
        """GFLOPs of the transfer."""
        return 0.0 if row == SCRATCH else float(self.transfers.get((cell, row), {}).get("gflops", 0.0))

    def refused(self, cell: str, row: str) -> str:
        """Why netgraft makes no such initialisation; empty if it does, or has not been asked."""
        return str(self.transfers.get((cell, row), {}).get("refused", ""))


def steps_to(tuned: Tuned, goal: float) -> int | None:
    """The first measured step at which the mean accuracy is the goal or more; None if there is none."""
    return next((step for step, accuracy in tuned.curve if accuracy >= goal), None)


def mean_and_error(values: Sequence[float], sign: str = "") -> str:
    """The mean, and its standard error where there are two values or more."""
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{error}"


def differences(one: Tuned, other: Tuned) -> dict[int, float]:
    """One less the other, of the seeds that both have."""
    mine, others = one.accuracies, other.accuracies
    return {seed: mine[seed] - others[seed] for seed in sorted(mine.keys() & others.keys())}
