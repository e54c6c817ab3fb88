"""What initialisations are scored on, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from netgraft.models.normalisation import Normalisation

Bn = Literal["recalibrate", "as-is"]


@dataclass(frozen=True)
class ScoreSettings:
    """What is scored on, and how."""

    data: str
    samples_per_class: int | None = None
    seed: int = 0  # of the draw of few training images
    seeds: int = 3  # how many random initialisations scratch is
    bn: Bn = "recalibrate"  # running statistics of BatchNorm anew from the training images, of all networks alike
    device: str = "auto"  # "auto": cuda where there is one, else cpu
    batch: int = 128
    normalisation: Normalisation | None = None  # None: as ``choose_normalisation`` finds
    root: Path | None = None  # where data sets with a name lie
    download: bool = False
