"""From the target's map to a hint's: a convolution whose kernel makes them fit, and a norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from netgraft.errors import UsageError
from netgraft.finetune.protocol import FeaturePair
from netgraft.finetune.toolbox.adapters import adapter, width

EPS = 1e-5
"""Beside the variance, as in BatchNorm."""


class Regressor(nn.Module):
    """The regressor of FitNets (``fitting`` says which kernel), with BatchNorm, and with ReLU where it is asked for.

    ``rectified`` is whether the result is to be behind a ReLU. Vectors and tokens get a linear layer without a norm.
    Raises UsageError where one side of a map is larger than the hint's and the other smaller.
    """

    rectified: Tensor

    def __init__(self, pair: FeaturePair) -> None:
        super().__init__()
        channels = width(pair.source_shape)
        self.maps = len(pair.target_shape) == 3
        self.linear = fitting(pair) if self.maps else adapter(pair.target_shape, channels)
        self.scale = nn.Parameter(torch.ones(channels)) if self.maps else None
        self.shift = nn.Parameter(torch.zeros(channels)) if self.maps else None
        self.register_buffer("rectified", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
        """A hint from the target's features. ``gather`` is ``run.gather``: BatchNorm takes all processes' samples."""
        out: Tensor = self.linear(x).float()
        if self.scale is not None and self.shift is not None:
            out = normalised(out, gather) * self.scale.view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1)
        return torch.where(self.rectified, out.relu(), out)


def normalised(x: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:  # [B, C, H, W]
    """Channels of mean 0 and variance 1 over the samples of all processes, which hold as many each."""
    axes = (0, 2, 3)
    centred = x - gather(x.mean(axes)[None]).mean(0).view(1, -1, 1, 1)
    variance = gather(centred.square().mean(axes)[None]).mean(0).view(1, -1, 1, 1)
    return centred * torch.rsqrt(variance + EPS)


def fitting(pair: FeaturePair) -> nn.Module:
    """A convolution from the target's map (C, H, W) to the size and the channels of the source's.

    Where one size divides the other n times the stride is n, with a kernel of 2n - 1, or transposed of 2n (2n - 1 for
    odd n): 1x1 for equal sizes, 3x3 or 4x4 for a factor of two. Else the stride is 1 and the kernel is one more than
    the sizes differ, without padding, as in the paper.
    """
    channels = width(pair.target_shape), width(pair.source_shape)
    sides = list(zip(pair.target_shape[1:], pair.source_shape[1:], strict=True))
    if all(of_target >= of_source for of_target, of_source in sides):
        kernel, stride, padding = zip(*(_shrinking(a, b) for a, b in sides), strict=True)
        return nn.Conv2d(*channels, kernel, stride, padding)
    if all(of_target <= of_source for of_target, of_source in sides):
        kernel, stride, padding = zip(*(_growing(a, b) for a, b in sides), strict=True)
        return nn.ConvTranspose2d(*channels, kernel, stride, padding)
    where = f"{pair.source} {pair.source_shape}, {pair.target} {pair.target_shape}"
    what = "No convolution maps one to the other: one side shrinks and one grows."
    raise UsageError(what, where=where, hint="Name another pair: --pairs SOURCE:TARGET")


def _shrinking(large: int, small: int) -> tuple[int, int, int]:
    n = large // small
    return (2 * n - 1, n, n - 1) if large % small == 0 else (large - small + 1, 1, 0)


def _growing(small: int, large: int) -> tuple[int, int, int]:
    n = large // small
    return (n + 2 * (n // 2), n, n // 2) if large % small == 0 else (large - small + 1, 1, 0)
