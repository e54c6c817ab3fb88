"""Where in an activation its positions and channels lie, so that those of two networks can be laid over one another.

Positions are (image, token): the pixels of a feature map in reading order, or the tokens of a transformer, some of
which (class and register tokens) stand before the grid. What runs on windows has rows without a place in the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from netgraft.architecture.graph import Layer
from netgraft.architecture.resolution import grid_of


@dataclass(frozen=True)
class Layout:
    """How a value of shape ``shape`` is laid out; ``axis`` is that of its channels."""

    shape: tuple[int, ...]
    axis: int
    grid: tuple[int, int] | None  # (height, width); None: rows without a place
    prefix: int = 0  # tokens in front of the grid

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def rows(self) -> int:
        """Images times tokens."""
        return torch.Size(self.shape).numel() // self.channels

    @property
    def tokens(self) -> int:
        """Positions per image."""
        return self.rows // self.shape[0]


def layout_of(
    shape: tuple[int, ...],
    axis: int,  # of the channels
    batch: int,  # images
) -> Layout:
    """The layout of a value; without a grid where its first axis does not count images, or its tokens are no square."""
    axis %= len(shape)
    if shape[0] == batch:
        if len(shape) == 4 and axis == 1:
            return Layout(shape, axis, (shape[2], shape[3]))
        if len(shape) == 4 and axis == 3:
            return Layout(shape, axis, (shape[1], shape[2]))
        if len(shape) == 2 and axis == 1:
            return Layout(shape, axis, (1, 1))
        if len(shape) == 3 and axis == 2:
            grid = grid_of(shape[1])
            if grid is not None:
                side, prefix = grid
                return Layout(shape, axis, (side, side), prefix)
    return Layout(shape, axis, None)


def rows_of(value: Tensor, layout: Layout, rows: Tensor) -> Tensor:
    """The channels at some positions: [len(rows), channels] float32."""
    flat = value.movedim(layout.axis, -1)
    if flat.dim() > 1 and not flat.is_contiguous() and layout.axis != len(layout.shape) - 1:
        index = torch.unravel_index(rows, flat.shape[:-1])  # a feature map: no copy of the whole
        return flat[index].float()
    return flat.reshape(-1, layout.channels)[rows].float()


def comparable(source: Layout, target: Layout) -> bool:
    """Whether positions of the one have a place in the other."""
    if source.grid is None or target.grid is None:
        return source.grid is target.grid and source.rows == target.rows
    return source.shape[0] == target.shape[0]


def sample(source: Layout, target: Layout, most: int, generator: torch.Generator) -> Tensor:
    """At most ``most`` rows of ``target``, drawn without replacement, that have a place in ``source``; sorted."""
    rows = torch.arange(target.rows)
    if target.grid is not None and target.prefix > source.prefix:
        rows = rows[(rows % target.tokens < source.prefix) | (rows % target.tokens >= target.prefix)]
    if len(rows) > most:
        rows = rows[torch.randperm(len(rows), generator=generator)[:most]].sort().values
    return rows


def rows_from(value: Tensor, source: Layout, target: Layout, rows: Tensor, channels: Tensor) -> Tensor:
    """What ``value`` holds where the rows of another layout lie in the image: [len(rows), len(channels)].

    A finer grid is averaged, a coarser one interpolated bilinearly. ``channels`` are those of ``value`` that are read.
    """
    if target.grid is None or source.grid is None or (source.grid == target.grid and source.prefix == target.prefix):
        return rows_of(value, source, rows)[:, channels]
    images, tokens = rows // target.tokens, rows % target.tokens
    flat = value.movedim(source.axis, -1).reshape(value.shape[0], source.tokens, -1)
    result = value.new_empty((len(rows), len(channels)), dtype=torch.float32)
    front = tokens < target.prefix
    if front.any():
        result[front] = flat[images[front], tokens[front]][:, channels].float()
    grid = flat[:, source.prefix :][..., channels].float().transpose(1, 2).unflatten(2, source.grid)
    source_grid, target_grid = source.grid, target.grid
    if source_grid[0] >= target_grid[0] and source_grid[1] >= target_grid[1]:
        resized = F.adaptive_avg_pool2d(grid, target_grid)
    else:
        resized = F.interpolate(grid, size=target_grid, mode="bilinear", align_corners=False)
    places = tokens[~front] - target.prefix
    result[~front] = resized.flatten(2)[images[~front], :, places]
    return result


def channel_axis(shape: tuple[int, ...], layer: Layer, *, permuted: bool = False) -> int:
    """The axis of the channels in the value, of ``shape``, at the end of a layer's branch.

    ``permuted``: feature maps are permuted on the way, which decides where channels are as many as columns.
    """
    if layer.out_axis == 1:
        return 1
    front = len(shape) == 4 and shape[1] == layer.out_channels
    return 1 if front and (permuted or shape[-1] != layer.out_channels) else len(shape) - 1
