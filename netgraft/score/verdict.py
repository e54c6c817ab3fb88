"""What is said of an initialisation: its accuracy, its difference from scratch, better or worse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from netgraft.errors import CheckFailed
from netgraft.models.normalisation import Normalisation
from netgraft.score.interval import Interval, wilson
from netgraft.score.settings import ScoreSettings

Verdict = Literal["better", "no difference", "worse"]


@dataclass(frozen=True)
class Probe:
    """What the ridge classifier on a frozen network's features says of the test images."""

    right: Tensor  # [T] bool
    penalty: float

    @property
    def accuracy(self) -> float:
        return float(self.right.double().mean())

    @property
    def interval(self) -> Interval:
        return wilson(int(self.right.sum()), len(self.right))


@dataclass(frozen=True)
class Scored:
    """One initialisation against scratch."""

    name: str  # a file or a recipe
    probe: Probe
    difference: float
    interval: Interval  # of the difference
    sha256: str = ""

    @property
    def verdict(self) -> Verdict:
        """Better or worse where the whole interval of the difference is."""
        return "better" if self.interval.low > 0 else "worse" if self.interval.high < 0 else "no difference"


@dataclass(frozen=True)
class Verdicts:
    """All initialisations of a target, and what they were scored on."""

    target: str
    heads: tuple[str, ...]
    features: int
    norms: int  # BatchNorm layers whose statistics were re-estimated
    size: tuple[int, ...]
    normalisation: Normalisation
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    settings: ScoreSettings
    scratch: tuple[Probe, ...]  # by seed
    scored: tuple[Scored, ...]
    refused: Mapping[str, str] = field(default_factory=dict)  # recipe -> why
    source: str = ""  # of the recipes


def check_scratch(scores: Verdicts) -> None:
    """Raise CheckFailed if an initialisation is significantly worse than scratch; no difference is no failure."""
    worse = [scored.name for scored in scores.scored if scored.verdict == "worse"]
    if worse:
        hint = "Another recipe or source may do better: netgraft compare SOURCE TARGET --data ..."
        raise CheckFailed(f"Worse than scratch: {', '.join(worse)}.", hint=hint)
