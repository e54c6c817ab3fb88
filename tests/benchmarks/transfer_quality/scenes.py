"""The source task of the domain *scenes*: which shape with which texture, in rendered 32x32 RGB scenes.

Eight textures on three shapes make 24 classes. Colours, lighting, texture scale and direction, the background's own
texture and gradient, a shadow, small clutter in front, blur and noise are random and say nothing about the class.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE, FINE = 32, 64  # of an image, and of the canvas it is averaged from
SHAPES, TEXTURES = 3, 8
CLASSES = SHAPES * TEXTURES
POOL = 24_000  # scenes; rendering new ones for every batch would take longer than training


def stream(cache: Path, rng: torch.Generator, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images ``[size, 3, 32, 32]`` in [0, 1] and their classes: of POOL scenes, mirrored both ways at random."""
    images, labels = _pool(cache)
    while True:
        chosen = torch.randint(len(images), (size,), generator=rng)
        batch = images[chosen].float() / 255
        for axis in (2, 3):
            flip = torch.rand((size, 1, 1, 1), generator=rng) < 0.5
            batch = torch.where(flip, batch.flip(axis), batch)
        yield batch, labels[chosen]


@functools.cache
def _pool(cache: Path) -> tuple[Tensor, Tensor]:  # uint8 [POOL, 3, 32, 32], int64 [POOL]
    """The scenes, kept in ``scenes.safetensors``."""
    file = cache / "scenes.safetensors"
    if not file.exists():
        print("rendering scenes", flush=True)
        rng = torch.Generator().manual_seed(0)
        labels = torch.arange(POOL) % CLASSES
        images = torch.cat([(render(part, rng) * 255).round().to(torch.uint8) for part in labels.split(100)])
        safetensors.torch.save_file({"images": images, "labels": labels}, file)
    stored = safetensors.torch.load_file(file)
    return stored["images"], stored["labels"]


def render(labels: Tensor, rng: torch.Generator) -> Tensor:  # [n] -> [n, 3, 32, 32]
    """One random scene of each class."""
    n = len(labels)
    x, y = _plane(n, rng, zoom=(0.65, 1.1), shift=0.2)
    distance = _shape(labels % SHAPES, x, y)
    body = _texture(labels // SHAPES, n, rng)
    ground = _texture(torch.randint(TEXTURES, (n,), generator=rng), n, rng)
    object_ = _paint(body, rng) * _light(x, y, distance, rng)
    scene = _paint(0.5 + _spread(n, 0, 0.5, rng) * (ground - 0.5), rng)
    shadow = torch.sigmoid(-12 * torch.roll(distance, (3, 3), (1, 2))) * _spread(n, 0, 0.5, rng)
    scene = scene * (1 - shadow)[:, None]
    inside = torch.sigmoid(-20 * distance)[:, None]
    scene = inside * object_ + (1 - inside) * scene
    for _ in range(2):
        scene = _clutter(scene, rng)
    scene = F.avg_pool2d(scene, FINE // SIDE)
    soft = F.avg_pool2d(F.pad(scene, (1, 1, 1, 1), mode="replicate"), 3, 1)
    scene = torch.lerp(scene, soft, _spread(n, 0, 0.4, rng)[:, None])
    scene = _spread(n, -0.15, 0.15, rng)[:, None] + _spread(n, 0.6, 1.1, rng)[:, None] * scene
    return (scene + 0.03 * torch.randn(scene.shape, generator=rng)).clamp(0, 1)


def _spread(n: int, low: float, high: float, rng: torch.Generator) -> Tensor:  # [n, 1, 1]
    return low + (high - low) * torch.rand((n, 1, 1), generator=rng)


def _plane(n: int, rng: torch.Generator, *, zoom: tuple[float, float], shift: float) -> tuple[Tensor, Tensor]:
    """Coordinates ``[n, 64, 64]`` of the canvas, turned, scaled and moved at random; the canvas is about -1 to 1."""
    axis = torch.linspace(-1, 1, FINE)
    across, down = axis + _spread(n, -shift, shift, rng), axis[:, None] + _spread(n, -shift, shift, rng)
    angle, scale = _spread(n, 0, 2 * math.pi, rng), _spread(n, *zoom, rng)
    return scale * (angle.cos() * across - angle.sin() * down), scale * (angle.sin() * across + angle.cos() * down)


def _shape(kind: Tensor, x: Tensor, y: Tensor) -> Tensor:  # [n, 64, 64]
    """How far outside a disc, a square or a ring each place is; negative inside."""
    radius = (x * x + y * y).sqrt()
    shapes = torch.stack([radius - 0.75, torch.maximum(x.abs(), y.abs()) - 0.65, (radius - 0.6).abs() - 0.22])
    return shapes[kind, torch.arange(len(kind))]


def _texture(kind: Tensor, n: int, rng: torch.Generator) -> Tensor:  # [n, 64, 64] in [0, 1]
    """Fields of the eight textures."""
    x, y = _plane(n, rng, zoom=(0.9, 1.5), shift=0.5)
    clouds = _clouds(n, 8, rng)
    fields: tuple[Callable[[], Tensor], ...] = (
        lambda: torch.full_like(x, 0.5),  # plain
        lambda: _wave(9 * x),  # stripes
        lambda: _wave(8 * x) * _wave(8 * y) + (1 - _wave(8 * x)) * (1 - _wave(8 * y)),  # checks
        lambda: torch.sigmoid(9 * (_wave(9 * x, 1) * _wave(9 * y, 1) - 0.45)),  # dots
        lambda: _wave(7 * x + 4 * clouds),  # wood
        lambda: torch.sigmoid(8 * clouds),  # blobs
        lambda: 0.5 + 0.35 * _clouds(n, 32, rng),  # grain
        lambda: _wave(10 * (x * x + y * y).sqrt()),  # circles
    )
    return torch.stack([field() for field in fields])[kind, torch.arange(n)].clamp(0, 1)


def _wave(phase: Tensor, sharpness: float = 3) -> Tensor:
    return torch.sigmoid(sharpness * phase.sin()) if sharpness != 1 else 0.5 + 0.5 * phase.sin()


def _clouds(n: int, cells: int, rng: torch.Generator) -> Tensor:  # [n, 64, 64], about standard normal
    coarse = torch.randn((n, 1, cells, cells), generator=rng)
    return 1.4 * F.interpolate(coarse, size=FINE, mode="bilinear", align_corners=False)[:, 0]


def _paint(field: Tensor, rng: torch.Generator) -> Tensor:  # [n, 64, 64] -> [n, 3, 64, 64]
    """Between two random colours, of which one is much lighter."""
    n = len(field)
    one, other = torch.rand((2, n, 3, 1, 1), generator=rng)
    lighter = torch.rand((n, 1, 1, 1), generator=rng) < 0.5
    one, other = 0.6 * one, 0.4 + 0.6 * other
    return torch.where(lighter, one, other) + torch.where(lighter, other - one, one - other) * field[:, None]


def _light(x: Tensor, y: Tensor, distance: Tensor, rng: torch.Generator) -> Tensor:  # [n, 1, 64, 64]
    """Shading: brighter towards a side, darker towards the rim."""
    side = _spread(len(x), -0.5, 0.5, rng) * x + _spread(len(x), -0.5, 0.5, rng) * y
    rim = _spread(len(x), 0, 0.5, rng) * torch.exp(4 * distance.clamp(max=0))
    return (1 + side - rim).clamp(0.2, 1.6)[:, None]


def _clutter(scene: Tensor, rng: torch.Generator) -> Tensor:
    """A small bar of one colour in front, in half of the scenes."""
    n = len(scene)
    x, y = _plane(n, rng, zoom=(1, 1), shift=0.8)
    bar = (x.abs() < _spread(n, 0.05, 0.15, rng)) & (y.abs() < 0.7) & (torch.rand((n, 1, 1), generator=rng) < 0.5)
    return torch.where(bar[:, None], torch.rand((n, 3, 1, 1), generator=rng), scene)
