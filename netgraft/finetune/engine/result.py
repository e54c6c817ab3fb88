"""What a training came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from netgraft.finetune.engine.diverged import Diverged


class Row(NamedTuple):
    """What one training came to, after its last epoch."""

    lam: float
    fold: int  # 0, 1, ...
    top1: float | None  # percent of the held-out fold; None where the training diverged


@dataclass(frozen=True)
class LambdaChoice:
    """The table of all trainings, and what it says."""

    lambdas: tuple[float, ...]
    folds: int
    rows: tuple[Row, ...]

    def of(self, lam: float) -> list[float | None]:
        """The accuracies in the folds, in percent."""
        return [row.top1 for row in self.rows if row.lam == lam]

    def mean(self, lam: float) -> float | None:
        """Their mean; None where one of the trainings diverged."""
        found = [top1 for top1 in self.of(lam) if top1 is not None]
        return sum(found) / self.folds if len(found) == self.folds else None

    @property
    def best(self) -> float:
        """The lambda of the largest mean, the smaller one of two that are equal. Raises Diverged if there is none."""
        means = {lam: mean for lam in self.lambdas if (mean := self.mean(lam)) is not None}
        if not means:
            what = "Every lambda has a fold in which the training diverged."
            raise Diverged(what, where=f"--lambda {','.join(map(str, self.lambdas))}", hint="Take a smaller --lr.")
        return max(means, key=lambda lam: (means[lam], -lam))


@dataclass
class Result:
    """What came of a training."""

    folder: Path
    history: list[dict[str, Any]]  # one record for each epoch
    best: dict[str, Any]  # the record of the best epoch
    chosen_on: str  # "validation" or "test": the images by which it is the best
    resumed: bool = False
    first: bool = True  # whether this is the process that reports
    choice: LambdaChoice | None = None  # of lambda, by cross-validation
    pictures: tuple[Path, ...] = ()  # of the epochs that have any
