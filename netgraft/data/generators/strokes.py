from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from netgraft.data.generators._draw import Size, draw_in_chunks, log_uniform, uniform
from netgraft.data.generators._finish import check_finish, colours, finish

_PIECES = 12  # straight pieces of a curve; it strays from them by less than half a pixel in 224
_FINEST = 128  # rows or columns at which distances are computed; larger images interpolate them


@dataclass(frozen=True)
class Strokes:
    """A few pen strokes, straight and curved, on a plain ground.

    Each stroke is a quadratic Bezier curve between random points; half of them are straight. The pen has a random
    width and softness in each image. In RGB each stroke has its own colour.
    """

    most: int = field(default=4, metadata={"help": "an image has 1 to this many strokes"})
    thinnest: float = field(default=0.03, metadata={"help": "least width of the pen, in image sides"})
    thickest: float = field(default=0.15, metadata={"help": "largest width of the pen, in image sides"})
    contrast: float = field(default=0.4, metadata={"help": "least difference of the lightest and darkest value"})
    shading: float = field(default=0.15, metadata={"help": "largest amplitude of the smooth background"})
    noise: float = field(default=0.06, metadata={"help": "largest standard deviation of the white noise"})

    def __post_init__(self) -> None:
        check_finish(self.contrast, self.shading, self.noise)
        if self.most < 1:
            raise ValueError(f"most must be at least 1: {self.most}")
        if not 0 < self.thinnest <= self.thickest:
            raise ValueError(f"thinnest and thickest must be positive and in order: {self.thinnest}, {self.thickest}")

    def __call__(self, count: int, size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        return draw_in_chunks(self._draw, count, size, generator)

    def _draw(self, count: int, size: Size, generator: Generator) -> Tensor:
        channels, height, width = size
        side = min(height, width)
        one = (count, 1, 1, 1)
        number = torch.randint(1, self.most + 1, one, generator=generator, device=generator.device)
        breadth = (log_uniform(self.thinnest, self.thickest, one, generator) * side).clamp_min(1)
        softness = 1 + uniform(0, 1, one, generator).square() * 0.05 * side  # pixels from ink to ground
        curves = _curves(count, self.most, (height, width), generator)
        ink = colours(count, self.most, channels, (0.7, 1), generator)[..., None, None]
        images = colours(count, 1, channels, (0, 0.3), generator).reshape(count, channels, 1, 1)
        for k in range(self.most):
            distance = _distance(curves[:, k], (height, width))
            mask = ((breadth / 2 - distance) / softness + 0.5).clamp_(0, 1) * (k < number)
            images = torch.lerp(images, ink[:, k], mask)
        return finish(images, self.contrast, self.shading, self.noise, generator)


def _curves(count: int, strokes: int, shape: tuple[int, int], generator: Generator) -> Tensor:
    """Points along random curves, ``[count, strokes, pieces + 1, 2]``, as (row, column) in pixels."""
    points = uniform(0.1, 0.9, (count, strokes, 4, 2), generator)
    straight = uniform(0, 1, (count, strokes, 1), generator) < 0.5
    start, middle, end, other = points.unbind(2)
    nearer = (end - start).square().sum(-1, keepdim=True) < (other - start).square().sum(-1, keepdim=True)
    end = torch.where(nearer, other, end)  # few strokes are mere dots
    middle = torch.where(straight, (start + end) / 2, middle)
    t = torch.linspace(0, 1, _PIECES + 1, device=generator.device)[:, None]
    start, middle, end = start[:, :, None], middle[:, :, None], end[:, :, None]
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
    return curve * torch.tensor([float(side) for side in shape], device=generator.device)


def _distance(
    curve: Tensor,  # [count, points, 2], pixels
    shape: tuple[int, int],
) -> Tensor:
    """Distances ``[count, 1, *shape]`` in pixels from the centres of the pixels to polygons."""
    grid = tuple(min(side, _FINEST) for side in shape)
    y, x = ((torch.arange(n, device=curve.device) + 0.5) * (side / n) for n, side in zip(grid, shape, strict=True))
    squared = torch.full((len(curve), 1, *grid), torch.inf, device=curve.device)
    for begin, end in zip(curve.unbind(1)[:-1], curve.unbind(1)[1:], strict=True):
        dy, dx = (end - begin)[:, :, None, None, None].unbind(1)
        from_y = y[:, None] - begin[:, 0, None, None, None]  # [count, 1, rows, 1]
        from_x = x - begin[:, 1, None, None, None]  # [count, 1, 1, columns]
        length = (dy.square() + dx.square()).clamp_min(1e-6)
        nearest = (from_y * (dy / length) + from_x * (dx / length)).clamp_(0, 1)
        squared = torch.minimum(squared, (from_y - nearest * dy).square() + (from_x - nearest * dx).square())
    distance = squared.sqrt_()
    return distance if grid == shape else F.interpolate(distance, size=shape, mode="bilinear", align_corners=False)
