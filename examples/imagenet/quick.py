"""Pictures for the tiny version: ten kinds of patterns in grey, drawn anew each time the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = {"train": 3, "validation": 2, "test": 4}


def draw(out: Path, side: int = 16) -> None:
    """Stripes of ten directions, in noise, as a folder like those of ``data.py``."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    for kind in range(10):
        angle = np.pi * kind / 10
        for part, count in COUNTS.items():
            folder = out / part / f"stripes{kind}"
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                waves = np.sin(1.2 * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(0, 2 * np.pi))
                values = 128 + 80 * waves + 20 * rng.standard_normal((side, side))
                Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
