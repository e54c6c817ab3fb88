"""The target task of the domain *scenes*: which of ten real photographs a 32x32 RGB patch was cut from.

The photographs are those that scikit-learn and scikit-image ship. Each is divided into 4x4 tiles; the tiles of one
colour of the chessboard are for training, the others for tests. Patches differ in place, size, rotation, reflection,
brightness, contrast, hue, saturation and noise. The patches are drawn once, with a fixed seed, into a folder of PNG
files, which netgraft reads as it reads any user's.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

SIDE, TILES, SEED = 32, 4, 0
CANDIDATES = 3  # patches of which the one with the most contrast is taken, so that few are empty
PATCHES = {"train": 100, "test": 100}  # of each photograph
PHOTOGRAPHS = {
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
    "skimage/data": (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "motorcycle_left.png",
        "retina.jpg",
        "rocket.jpg",
    ),
}


def folder(cache: Path) -> str:
    """The folder of patches below ``cache``: ``train/CLASS/*.png`` and ``test/CLASS/*.png``; drawn if need be."""
    done = cache / "photographs"
    if not done.exists():
        unfinished = cache / "photographs.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        rng = np.random.default_rng(SEED)
        for file in files():
            draw(Image.open(file).convert("RGB"), unfinished, file.stem, rng)
        unfinished.rename(done)
    return str(done)


def files() -> list[Path]:
    """The photographs. Raises SystemExit naming the package that is missing."""
    found = []
    for folder_, names in PHOTOGRAPHS.items():
        package, _, inside = folder_.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            missing = {"sklearn": "scikit-learn", "skimage": "scikit-image"}[package]
            raise SystemExit(f"The domain scenes needs the photographs of {missing}: pip install {missing}")
        found += [Path(spec.origin).parent / inside / name for name in names]
    return found


def draw(photograph: Image.Image, out: Path, name: str, rng: np.random.Generator) -> None:
    """Writes all patches of a photograph."""
    for parity, (split, count) in enumerate(PATCHES.items()):
        into = out / split / name
        into.mkdir(parents=True)
        tiles = [(i, j) for i in range(TILES) for j in range(TILES) if (i + j) % 2 == parity]
        for number in range(count):
            candidates = [patch(photograph, tiles[number % len(tiles)], rng) for _ in range(CANDIDATES)]
            chosen = max(candidates, key=lambda piece: np.asarray(piece.convert("L")).std())
            _spoil(chosen, rng).save(into / f"{number:03}.png")


def patch(photograph: Image.Image, tile: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A random patch that lies within a tile: place, size, rotation, reflection."""
    width, height = photograph.width / TILES, photograph.height / TILES
    angle = rng.uniform(-20, 20)
    turned = abs(np.cos(np.radians(angle))) + abs(np.sin(np.radians(angle)))  # side of the box around a unit square
    side = rng.uniform(0.7, 1) * min(width, height) / turned
    reach = side * turned / 2
    x = tile[0] * width + rng.uniform(reach, width - reach)
    y = tile[1] * height + rng.uniform(reach, height - reach)
    box = tuple(round(edge) for edge in (x - reach, y - reach, x + reach, y + reach))
    piece = photograph.crop(box).rotate(angle, Image.Resampling.BICUBIC)
    side = min(side, *piece.size)
    left, top = (piece.width - side) / 2, (piece.height - side) / 2
    piece = piece.resize((SIDE, SIDE), Image.Resampling.BOX, (left, top, left + side, top + side))
    if rng.random() < 0.5:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return piece


def _spoil(piece: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Hue, saturation, contrast, brightness and noise."""
    hue, saturation, value = piece.convert("HSV").split()
    shift = int(rng.integers(256))
    hue = hue.point(lambda h: (h + shift) % 256)
    piece = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    piece = ImageEnhance.Color(piece).enhance(rng.uniform(0.3, 1.2))
    pixels = np.asarray(piece, dtype=np.float32) / 255
    middle = pixels.mean()
    pixels = rng.uniform(0.25, 0.75) + rng.uniform(0.5, 1.2) * (pixels - middle)
    pixels += rng.normal(0, 0.03, pixels.shape)
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
