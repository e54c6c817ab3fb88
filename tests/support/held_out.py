"""What a network sees of what another sees, on real pictures that no pass is shown: an independent measurement.

Ridge regression from the target's last features to the source's, fitted on one part of the pictures and judged on the
other. Of the source's features its leading principal directions are asked for, one for every eight pictures of the fit,
since from few pictures many features cannot be learned. The strength is the one with the least leave-one-out error.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

PER_DIRECTION = 8
STRENGTHS = torch.logspace(-7, 1, 17, dtype=torch.float64)


@dataclass(frozen=True)
class Share:
    """The share of variance predicted on held-out pictures, at least 0, and each picture's part of what is missing."""

    value: float
    errors: Tensor  # [held-out pictures]; they sum to 1 - the share

    def below(self, other: Share) -> bool:
        """Whether this is less than the other by more than two standard errors of the paired difference."""
        difference = self.errors - other.errors
        noise = 2 * float(difference.std()) * len(difference) ** 0.5
        return other.value - self.value > max(noise, 0.005)


def photographs(count: int, side: int, seed: int = 0) -> Tensor:
    """Square cuts of the photographs that scikit-image and scikit-learn ship: [count, 3, side, side] in [0, 1]."""
    from PIL import Image
    from transfer_quality.photographs import files

    chance = random.Random(seed)
    pictures = [Image.open(file).convert("RGB") for file in files()]
    cuts = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        edge = round(chance.uniform(0.3, 0.9) * min(picture.size))
        x, y = (chance.randrange(length - edge + 1) for length in picture.size)
        cut = picture.resize((side, side), Image.Resampling.BILINEAR, (x, y, x + edge, y + edge))
        cuts.append(torch.from_numpy(np.asarray(cut).copy()).permute(2, 0, 1).float().div(255))
    return torch.stack(cuts)


def letters(count: int, side: int, seed: int = 0) -> Tensor:
    """Letters of fonts that are held out from training: [count, 1, side, side] in [0, 1]."""
    from netgraft.data.decode import as_array
    from netgraft.data.glyphs import open_glyphs

    pictures = [open_glyphs("glyphs", split) for split in ("test", "train")]
    items = [(one, item) for one in pictures for item in one.items][: 4 * count]
    random.Random(seed).shuffle(items)
    arrays = [as_array(one.read(item, side), (1, side, side)) for one, item in items[:count]]
    return torch.from_numpy(np.stack(arrays)).float().div(255)


def features(net: nn.Module, reader: nn.Module, images: Tensor, batch: int = 32) -> Tensor:
    """What ``reader`` is given, averaged over places: float64 [images, channels]."""
    seen: list[Tensor] = []
    handle = reader.register_forward_pre_hook(
        lambda _, given: seen.append(given[0].flatten(2).mean(2) if given[0].dim() > 2 else given[0])
    )
    try:
        with torch.no_grad():
            for part in images.split(batch):
                net.eval()(part)
    finally:
        handle.remove()
    return torch.cat(seen).double()


def share(given: Tensor, wanted: Tensor, fitted: int) -> Share:
    """How much of ``wanted`` [n, d] is predicted from ``given`` [n, c]; the first ``fitted`` rows are for the fit."""
    given = torch.nan_to_num(given, nan=0.0, posinf=0.0, neginf=0.0)
    wanted = leading(wanted, fitted)
    x, y = given[:fitted], wanted[:fitted]
    mean_x, mean_y = x.mean(0), y.mean(0)
    scale = x.std(0).clamp_min(1e-12 + 1e-6 * float(x.std()))
    left, values, right = torch.linalg.svd((x - mean_x) / scale, full_matrices=False)
    projected = left.T @ (y - mean_y)
    best, weights = float("inf"), torch.zeros(right.shape[1], y.shape[1], dtype=y.dtype)
    for strength in STRENGTHS * float(values[0].clamp_min(1e-12)) ** 2:
        shrink = values**2 / (values**2 + strength)
        rest = (y - mean_y) - left @ (shrink[:, None] * projected)
        leverage = (left**2) @ shrink + 1 / fitted
        error = float((rest / (1 - leverage).clamp_min(1e-6)[:, None]).square().sum())
        if error < best:
            best = error
            weights = right.T @ ((values / (values**2 + strength))[:, None] * projected)
    predicted = (given[fitted:] - mean_x) / scale @ weights + mean_y
    truth = wanted[fitted:]
    errors = (predicted - truth).square().sum(1) / (truth - truth.mean(0)).square().sum()
    return Share(max(0.0, 1 - float(errors.sum())), errors)


def leading(wanted: Tensor, fitted: int) -> Tensor:
    """The coordinates along the leading principal directions of the first ``fitted`` rows."""
    centre = wanted[:fitted].mean(0)
    _, _, directions = torch.linalg.svd(wanted[:fitted] - centre, full_matrices=False)
    return (wanted - centre) @ directions[: max(1, fitted // PER_DIRECTION)].T


def as_channels(images: Tensor, channels: int) -> Tensor:
    """The same pictures with another number of channels: repeated in turn, or the first ones."""
    return images[:, [k % images.shape[1] for k in range(channels)]]


def file_of(package: str, inside: str) -> Path | None:
    """A file of an installed package, or None."""
    import importlib.util

    spec = importlib.util.find_spec(package)
    folder = spec.submodule_search_locations if spec else None
    found = Path(folder[0]) / inside if folder else None
    return found if found is not None and found.exists() else None
