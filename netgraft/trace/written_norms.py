"""Batch norms that are written out: torchvision's FrozenBatchNorm2d, and those of people's own.

No list of names tells them. A module without children that owns four vectors of one length is tried out: a copy with
random vectors is run, and is a batch norm if y = (x - mean) / sqrt(var + eps) * weight + bias holds for one assignment
of the four, with one eps. An activation at its end does not matter: the numbers are chosen so that it passes them on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

ROLES = ("weight", "bias", "running_mean", "running_var")
CLOSE = 1e-8
"""Relative error, in double precision."""
MOST_EPS = 0.01
"""A larger eps than anybody's."""
EXTENTS = ((5, 4), (5,), ())
"""Of the inputs that are tried: [batch, channels, *extent]."""


@dataclass(frozen=True)
class WrittenNorm:
    """Which of a module's tensors are what of a batch norm, by their names, and its eps."""

    roles: Mapping[str, str]
    eps: float


_known: WeakKeyDictionary[nn.Module, WrittenNorm | None] = WeakKeyDictionary()  # trying one out takes a millisecond


def written_norm(module: nn.Module) -> WrittenNorm | None:
    """What a module is as a batch norm in evaluation mode; None for any other, and for PyTorch's own."""
    vectors = _vectors(module)
    if vectors is None:
        return None
    if module not in _known:
        try:
            with torch.device("cpu"), torch.no_grad(), torch.random.fork_rng(devices=[]):
                _known[module] = _identified(module, vectors)
        except Exception:  # a stranger's code on inputs that it may not be for
            _known[module] = None
    return _known[module]


def _vectors(module: nn.Module) -> dict[str, Tensor] | None:
    """The four vectors of one length that a module owns, if it has these and no children; lengths of 1 do not count."""
    if isinstance(module, _NormBase) or module._modules or len(module._buffers) + len(module._parameters) < len(ROLES):
        return None
    own = {**module._parameters, **module._buffers}
    found = {name: t for name, t in own.items() if t is not None and t.is_floating_point() and t.dim() > 0}
    sizes = {t.numel() for t in found.values()} | {max(t.shape) for t in found.values()}
    return found if len(found) == len(ROLES) and len(sizes) == 1 and sizes != {1} else None


def _identified(module: nn.Module, vectors: Mapping[str, Tensor]) -> WrittenNorm | None:
    chance = torch.Generator().manual_seed(0)
    net = copy.deepcopy(module).eval()
    values = {
        name: torch.rand(t.shape, generator=chance, dtype=torch.float64) + 0.5  # between 0.5 and 1.5
        for name, t in vectors.items()
    }
    for name, value in values.items():
        if name in net._parameters:
            net._parameters[name] = nn.Parameter(value)
        else:
            net._buffers[name] = value
    channels = next(iter(values.values())).numel()
    for extent in EXTENTS:
        line = _line(net, channels, extent, chance)
        if line is not None:
            return next(_assignments(*line, {name: value.flatten() for name, value in values.items()}), None)
    return None


def _line(
    net: nn.Module, channels: int, extent: tuple[int, ...], chance: torch.Generator
) -> tuple[Tensor, Tensor] | None:
    """Slope and intercept of each channel, [channels] each; None if the output is no straight line of the input."""
    x = 40 + 20 * torch.rand((3, channels, *extent), generator=chance, dtype=torch.float64)
    try:
        y = net(x.clone())
    except (RuntimeError, IndexError, ValueError):  # it takes inputs of another rank
        return None
    if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
        return None
    at, seen = (t.transpose(0, 1).flatten(1) for t in (x, y))
    slope = (seen[:, 1] - seen[:, 0]) / (at[:, 1] - at[:, 0])
    intercept = seen[:, 0] - slope * at[:, 0]
    error = (slope[:, None] * at + intercept[:, None] - seen).norm()
    return (slope, intercept) if float(error) <= CLOSE * float(seen.norm()) else None


def _assignments(slope: Tensor, intercept: Tensor, values: Mapping[str, Tensor]) -> Iterator[WrittenNorm]:
    for names in permutations(values):
        weight, bias, mean, variance = (values[name] for name in names)
        eps = (weight / slope).square() - variance
        steady = float((eps - eps.mean()).abs().max()) <= CLOSE
        fits = float((bias - mean * slope - intercept).norm()) <= CLOSE * float(intercept.norm())
        if steady and fits and -CLOSE <= float(eps.mean()) <= MOST_EPS:
            found = float(eps.mean())
            yield WrittenNorm(dict(zip(ROLES, names, strict=True)), float(f"{found:.3g}") if found > CLOSE else 0.0)
