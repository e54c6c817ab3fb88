"""The few labelled pictures that a seed draws, as a folder of links that ``netgraft finetune --data`` reads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

POOLS = {"validation": ("train",), "test": ("train", "validation")}
"""The parts that pictures are drawn from, by the part that is looked at: a rate chosen, all but tests are to learn."""


def drawn(pictures: Path, judged: str, samples: int, seed: int, out: Path) -> Path:
    """``out`` with ``train``, so many pictures of each kind or as many as there are, and ``test``, all of ``judged``.

    Fewer pictures are a part of more. A folder that is there is made anew. Raises SystemExit where a kind has no
    picture.
    """
    shutil.rmtree(out, ignore_errors=True)
    for number, kind in enumerate(kinds(pictures)):
        found = sorted(file for part in POOLS[judged] for file in (pictures / part / kind).glob("*.png"))
        tests = sorted((pictures / judged / kind).glob("*.png"))
        if not found or not tests:
            raise SystemExit(f"{pictures} has no pictures of the kind {kind} in {', '.join((*POOLS[judged], judged))}.")
        order = np.random.default_rng([seed, number]).permutation(len(found))
        _link([found[i] for i in order[:samples]], out / "train" / kind)
        _link(tests, out / "test" / kind)
    return out


def kinds(pictures: Path) -> list[str]:
    """The names of the kinds, sorted. Raises SystemExit for a folder that is none of ``data.py``."""
    if not (pictures / "train").is_dir():
        raise SystemExit(f"There are no pictures in {pictures / 'train'}: make them with data.py beside this script.")
    return sorted(path.name for path in (pictures / "train").iterdir() if path.is_dir())


def _link(files: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in files:
        os.symlink(file.resolve(), folder / f"{file.parent.parent.name}-{file.name}")
