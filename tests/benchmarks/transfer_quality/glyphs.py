"""The source task of the domain *glyphs*: letters of installed fonts, distorted as the target's digits are."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from netgraft.data.digits import distort

SCRIPT = Path(__file__).resolve().parents[3] / "examples" / "pretrain_glyphs.py"


def stream(cache: Path, rng: torch.Generator, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images ``[size, 1, 16, 16]`` in [0, 1] of the letters a to z, upper and lower case alike, and their classes."""
    script = _script()
    drawings = _drawings(cache)
    letters = len(script.GLYPHS)
    while True:
        chosen = torch.randint(len(drawings), (size,), generator=rng)
        seed = int(torch.randint(2**31, (), generator=rng))
        images = drawings[chosen][:, None].float() / 255
        yield distort(images, np.random.default_rng(seed)), chosen % letters % script.CLASSES


@functools.cache
def _drawings(cache: Path) -> Tensor:  # uint8 [fonts * 52, 48, 48]
    """Large drawings of all letters of all fonts, kept in ``glyphs.npz``."""
    script, file = _script(), cache / "glyphs.npz"
    if not file.exists():
        print("drawing the letters of the installed fonts", flush=True)
        bank = script.make_bank(script.font_files(script.FONT_DIRS))
        if len(set(bank.families)) < 20:
            print(f"only {len(set(bank.families))} font families; {SCRIPT.name} says which packages have more")
        np.savez_compressed(file, glyphs=bank.glyphs, families=np.array(bank.families))
    with np.load(file) as stored:
        return torch.from_numpy(stored["glyphs"]).flatten(0, 1)


@functools.cache
def _script() -> ModuleType:
    """examples/pretrain_glyphs.py, which draws the letters."""
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[SCRIPT.stem] = module  # where its dataclass looks itself up
    spec.loader.exec_module(module)
    return module
