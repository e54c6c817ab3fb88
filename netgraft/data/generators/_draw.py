"""Random numbers by shape, and drawing many images in chunks of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from netgraft.errors import UsageError
from netgraft.models.running import one_thread

Size = tuple[int, int, int]  # channels, height, width

_VALUES = 2**20  # of one chunk of images; the drawing takes some ten times that in temporaries
_IMAGES = 512  # of one chunk


def uniform(low: float, high: float, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform numbers between ``low`` and ``high``."""
    numbers = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)
    return numbers * (high - low) + low


def log_uniform(low: float, high: float, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Numbers between ``low`` and ``high`` whose logarithm is uniform."""
    return uniform(math.log(low), math.log(high), shape, generator).exp()


def normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)


def draw_in_chunks(
    draw: Callable[[int, Size, Generator], Tensor], count: int, size: Size, generator: Generator
) -> Tensor:
    """``count`` images by calls ``draw(some, size, generator)``, each for as many as fit into a fixed memory."""
    images = torch.empty((count, *size), dtype=torch.float32, device=generator.device)
    step = max(1, min(_IMAGES, _VALUES // math.prod(size)))
    with one_thread():
        for start in range(0, count, step):
            images[start : start + step] = draw(min(step, count - start), size, generator)
    return images


def checked(images: object, shape: tuple[int, ...], name: str) -> Tensor:
    """The images as the generator ``name`` returned them; UsageError where they break what it promises."""
    if not isinstance(images, Tensor):
        raise UsageError(f"The generator {name} returned {type(images).__name__}, not a tensor.")
    if tuple(images.shape) != shape or images.dtype != torch.float32:
        what = f"The generator {name} returned {images.dtype} {list(images.shape)}, not torch.float32 {list(shape)}."
        raise UsageError(what)
    if images.numel():
        low, high = (float(value) for value in images.aminmax())
        if not 0 <= low <= high <= 1:  # NaN fails too
            raise UsageError(f"The generator {name} returned values from {low:g} to {high:g}, not within 0 to 1.")
    return images
