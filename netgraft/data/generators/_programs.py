"""The parts of random programs: functions of coordinates on a grid, with random constants.

A warp makes coordinates of coordinates, a leaf a field of coordinates, a shape a field of a field, a join a field of
two. Coordinates and fields are ``[H, W]``; coordinates are 1 from the centre to the nearer edge, before warps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from netgraft.data.generators._fields import power_law_field, standardise

_TEXTURE = 96  # rows and columns of the noise that programs look up
_DRAWN = 64  # random numbers that are drawn at a time

Value = TypeVar("Value")
Place = tuple[Tensor, Tensor]  # x and y


class Dice:
    """Random numbers, one at a time; ``finest`` is the highest frequency that does not alias, in radians per unit."""

    def __init__(self, generator: Generator, finest: float) -> None:
        self.generator, self.finest = generator, finest
        self._left: list[float] = []

    def between(self, low: float, high: float) -> float:
        """Uniform."""
        if not self._left:
            self._left = torch.rand(_DRAWN, generator=self.generator, device=self.generator.device).tolist()
        return low + (high - low) * self._left.pop()

    def pick(self, choices: Sequence[Value]) -> Value:
        """One of several, all alike."""
        return choices[min(int(self.between(0, len(choices))), len(choices) - 1)]

    def whether(self, share: float) -> bool:
        """True in this share of all cases."""
        return self.between(0, 1) < share

    def frequency(self, low: float, high: float) -> float:
        """Radians per unit of length, logarithmically uniform, as far as the grid can show them."""
        high = min(high, self.finest)
        low = min(low, high)
        return math.exp(self.between(math.log(low), math.log(high)))

    def phase(self) -> float:
        """An angle."""
        return self.between(-math.pi, math.pi)


def standard(field: Tensor, instead: Tensor) -> Tensor:
    """The field with mean 0 and variance 1, without values that are far off; ``instead`` if it is constant."""
    field = field - field.mean()
    spread = float(field.square().mean()) ** 0.5
    return field.mul_(1 / spread).clamp_(-4, 4) if spread > 1e-4 else instead


def fold(field: Tensor) -> Tensor:
    """A triangle wave of period 4 that is the identity between -1 and 1."""
    return (torch.remainder(field + 1, 4) - 2).abs().neg_().add_(1)


def turn(place: Place, angle: float) -> Place:
    """Coordinates in axes that are turned."""
    x, y = place
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def _clouds(place: Place, fields: int, dice: Dice) -> tuple[Tensor, ...]:
    """Fields of noise of a random fractal dimension, mirrored at its edges."""
    texture = standardise(power_law_field(1, fields, (_TEXTURE, _TEXTURE), dice.between(0.9, 2.2), dice.generator))
    scale, shift = dice.between(0.15, 0.9), dice.between(-0.5, 0.5)
    grid = torch.empty((1, *place[0].shape, 2), device=texture.device)
    for axis, along in enumerate(place):
        torch.add(along.mul(scale), shift, out=grid[0, ..., axis])
    found = F.grid_sample(texture, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return found[0].unbind()


# --------------------------------------------------------------------------------------------------------------- warps


def _rippled(place: Place, dice: Dice) -> Place:
    (x, y), far = place, dice.between(0.05, 0.5)
    f, g = dice.frequency(1, 12), dice.frequency(1, 12)
    return x + far * torch.sin(f * y + dice.phase()), y + far * torch.sin(g * x + dice.phase())


def _swirled(place: Place, dice: Dice) -> Place:
    x, y = place
    angle = torch.exp((x.square() + y.square()) * -dice.between(0.3, 3)) * dice.between(-5, 5)
    c, s = angle.cos(), angle.sin()
    return x * c + y * s, y * c - x * s


def _polar(place: Place, dice: Dice) -> Place:
    x, y = place
    radius = x.square() + y.square() + 0.02
    radius = radius.log() * dice.between(0.3, 1) if dice.whether(0.5) else radius.sqrt() * dice.between(1, 3)
    return radius, torch.atan2(y, x) * (dice.pick((1, 2, 3, 4, 6, 8)) * 2 / math.pi)  # whole periods of ``fold``


def _tiled(place: Place, dice: Dice) -> Place:
    x, y = place
    number = dice.frequency(1.5, 8)
    return fold(x * number), fold(y * number * dice.pick((0.5, 1, 1, 2)))


def _mirrored(place: Place, dice: Dice) -> Place:
    x, y = turn(place, dice.phase())
    return turn((x.abs(), y.abs() if dice.whether(0.5) else y), dice.phase())


def _inverted(place: Place, dice: Dice) -> Place:
    x, y = place
    scale = dice.between(0.5, 1.5) / (x.square() + y.square() + dice.between(0.03, 0.3))
    return x * scale, y * scale


def _squared(place: Place, dice: Dice) -> Place:
    x, y = place
    return x.square() - y.square() + dice.between(-1, 1), 2 * x * y + dice.between(-1, 1)


def _bent(place: Place, dice: Dice) -> Place:
    x, y = place
    far = dice.between(0.1, 0.7)
    across, down = _clouds(place, 2, dice)
    return x + far * across, y + far * down


def _bricks(place: Place, dice: Dice) -> Place:
    (x, y), number, step = place, dice.frequency(1.5, 8), dice.between(0.2, 1)
    return x + step * torch.floor(y * number), y


def _pixels(place: Place, dice: Dice) -> Place:
    (x, y), number = place, dice.frequency(4, 24)
    return torch.round(x * number) / number, torch.round(y * number) / number


WARPS: tuple[Callable[[Place, Dice], Place], ...] = (
    *(_rippled, _swirled, _polar, _tiled, _mirrored, _inverted, _squared, _bent, _bent, _bricks, _pixels),
)

# -------------------------------------------------------------------------------------------------------------- leaves


def _wave(place: Place, dice: Dice) -> Tensor:
    return torch.sin(turn(place, dice.phase())[0] * dice.frequency(1.5, 40) + dice.phase())


def _grating(place: Place, dice: Dice) -> Tensor:
    x, y = turn(place, dice.phase())
    return torch.sin(x * dice.frequency(2, 20) + dice.phase()) * torch.sin(y * dice.frequency(2, 20) + dice.phase())


def _plane(place: Place, dice: Dice) -> Tensor:
    return turn(place, dice.phase())[0]


def _rings(place: Place, dice: Dice) -> Tensor:
    x, y = place
    far = torch.hypot(x - dice.between(-1, 1), y - dice.between(-1, 1))
    return torch.sin(far * dice.frequency(2, 30) + dice.phase())


def _thing(place: Place, dice: Dice) -> Tensor:
    """How far inside a disc, a box, a diamond or a star a place is."""
    x, y = turn((place[0] - dice.between(-0.6, 0.6), place[1] - dice.between(-0.6, 0.6)), dice.phase())
    y = y * dice.between(0.6, 1.8)
    kind = dice.pick(("disc", "box", "diamond", "star"))
    if kind == "box":
        far = torch.maximum(x.abs(), y.abs())
    elif kind == "diamond":
        far = x.abs() + y.abs()
    else:
        far = torch.hypot(x, y)
        if kind == "star":
            far = far * (1 + dice.between(0.1, 0.5) * torch.cos(torch.atan2(y, x) * dice.pick((3, 4, 5, 6, 8))))
    return torch.tanh((dice.between(0.2, 0.8) - far) * dice.frequency(2, 60))


def _noise(place: Place, dice: Dice) -> Tensor:
    return _clouds(place, 1, dice)[0]


def _cells(place: Place, dice: Dice) -> Tensor:
    """The distance to the nearest of some points, or by how much that is nearer than the next."""
    x, y = place
    first = second = torch.full_like(x, 100)
    for _ in range(dice.pick((4, 6, 9))):
        far = (x - dice.between(-1.3, 1.3)).square() + (y - dice.between(-1.3, 1.3)).square()
        second = torch.minimum(second, torch.maximum(first, far))
        first = torch.minimum(first, far)
    return first.sqrt() if dice.whether(0.5) else (second.sqrt() - first.sqrt()).mul(dice.between(1, 8)).tanh()


LEAVES: tuple[Callable[[Place, Dice], Tensor], ...] = (
    *(_wave, _grating, _plane, _rings, _thing, _thing, _cells, _noise, _noise),
)

# ----------------------------------------------------------------------------------------------------- shapes and joins


def shaped(field: Tensor, dice: Dice) -> Tensor:
    """A random function of a standard field."""
    kind = dice.pick(("as it is", "sine", "edge", "fold", "ridge", "bump", "bands", "square"))
    strength = dice.between(0, 1)
    if kind == "sine":
        field = torch.sin(field * (1 + 5 * strength) + dice.phase())
    elif kind == "edge":
        field = torch.tanh((field - dice.between(-1, 1)) * (2 + 20 * strength))
    elif kind == "fold":
        field = fold(field * (1 + 3 * strength))
    elif kind == "ridge":
        field = (field - dice.between(-1, 1)).abs()
    elif kind == "bump":
        field = torch.exp((field - dice.between(-1, 1)).square() * -(1 + 5 * strength))
    elif kind == "bands":
        number = 0.5 + 2 * strength
        field = torch.round(field * number) + field * (number * dice.between(0, 0.3))
    elif kind == "square":
        field = field.square()
    return field


def joined(one: Tensor, other: Tensor, third: Callable[[], Tensor], dice: Dice) -> Tensor:
    """A random function of two standard fields; some choose between them by a third."""
    kind = dice.pick(("sum", "product", "most", "least", "chosen", "chosen", "sine", "length", "either"))
    if kind == "sum":
        return one + other * dice.between(0.3, 1)
    if kind == "product":
        return one * other
    if kind == "most":
        return torch.maximum(one, other)
    if kind == "least":
        return torch.minimum(one, other)
    if kind == "chosen":
        return torch.lerp(one, other, torch.sigmoid(third() * dice.between(2, 40)))
    if kind == "sine":
        return torch.sin(one * dice.between(1, 4) + other * dice.between(0.5, 2))
    if kind == "length":
        return torch.hypot(one, other)
    return one * torch.tanh(other * dice.between(3, 30))
