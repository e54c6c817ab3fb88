"""A decoder built as the mirror of a network: its layers backwards, from features to an image.

What is mirrored is the chain of layers that leads to the features (``architecture.chain``), without the gates beside
it. Each convolution becomes a transposed one of the same kernel, stride and groups, each linear layer a 1x1
convolution; where the network pools between two layers, the mirror repeats values (unpooling). Skips are dropped, and
a layer puts out as many channels as the layer that it mirrors reads. Everything is a map [B, C, H, W]: a vector is a
map of one place, tokens are a map on the grid of their patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from netgraft.architecture.chain import longest_chain
from netgraft.architecture.graph import Layer, LayerGraph, Shape
from netgraft.architecture.resolution import MOST_EXTRA_TOKENS, input_image, takes_image
from netgraft.errors import UsageError

Size = tuple[int, int]


@dataclass(frozen=True)
class MirrorStep:
    """What a layer of the mirror does: from ``size`` to ``result``, in places, by a transposed convolution."""

    inputs: int
    outputs: int
    size: Size  # of what the mirrored layer puts out
    result: Size  # of what it reads
    kernel: Size = (1, 1)
    stride: Size = (1, 1)
    padding: Size = (0, 0)
    dilation: Size = (1, 1)
    groups: int = 1
    unfold: int = 1  # so many places of each channel are written as channels: a linear layer that reads a whole map


class MirroredLayer(nn.Module):
    """One step of a mirror: unpooling, transposed convolution, and, but for the last one, ReLU.

    Weights begin as He et al. 2015 have it, so that a deep mirror keeps the differences between images without norms.
    Norms of each image by itself drown them: the output is one picture for all of them then, and stays it.
    """

    def __init__(self, step: MirrorStep, *, last: bool = False) -> None:
        super().__init__()
        self.step = step
        self.conv = nn.ConvTranspose2d(
            step.inputs,
            step.outputs * step.unfold,
            step.kernel,
            step.stride,
            step.padding,
            output_padding=_output_padding(step),
            groups=step.groups,
            dilation=step.dilation,
        )
        self.last = last
        terms = step.inputs * math.prod(step.kernel) / (step.groups * math.prod(step.stride))  # of a place's sum
        nn.init.normal_(self.conv.weight, std=math.sqrt((1 if last else 2) / terms))
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:  # [B, inputs, h, w] -> [B, outputs, *result]
        x = self.conv(resized(x, self.step.size))
        if self.step.unfold > 1:
            x = x.reshape(len(x), self.step.outputs, *self.step.result)
        x = resized(x, self.step.result)
        return x if self.last else F.relu(x)


class Mirror(nn.Sequential):
    """Features ``[B, width, h, w]`` to images ``[B, *image]``."""

    def __init__(self, steps: Sequence[MirrorStep], image: Shape) -> None:
        """The first of ``steps`` reads the features; ``image`` is (C, H, W)."""
        super().__init__(*(MirroredLayer(step, last=step is steps[-1]) for step in steps))
        self.width, self.size, self.image = steps[0].inputs, steps[0].size, tuple(image)


def mirror(graph: LayerGraph, layers: Sequence[str], width: int, *, factor: float = 1.0) -> Mirror:
    """The mirror of the first layers of a network's chain, as ``mirrored_chain`` names them, in the chain's order.

    ``width`` is the number of channels of the features that it reads; ``factor`` multiplies all widths between them
    and the image. Raises UsageError for a network that does not read an image, or without a layer to mirror.
    """
    image = image_shape(graph)
    found = [graph.layers[name] for name in reversed(layers)]
    if not found:
        raise UsageError("There is no layer before the features that a decoder could be the mirror of.")
    steps: list[MirrorStep] = []
    for place, layer in enumerate(found):
        last = place == len(found) - 1
        inputs = steps[-1].outputs if steps else width
        outputs = image[0] if last else max(1, round(factor * _read_channels(layer)))
        steps.append(_step(layer, inputs, outputs, image, last=last))
    return Mirror(steps, image)


def mirrored_chain(graph: LayerGraph) -> tuple[str, ...]:
    """The layers that can be mirrored, in the order of the pass; one that runs twice stands twice."""
    return tuple(name for name in longest_chain(graph, gates=False).layers if _is_flat(graph.layers[name]))


def image_shape(graph: LayerGraph) -> tuple[int, int, int]:
    """(C, H, W) of the image that a network reads. Raises UsageError for one that reads anything else."""
    if not takes_image(graph):
        raise UsageError("Only for networks that read one image is a mirror built.", hint="Take another target.")
    _, channels, height, width = input_image(graph)
    return channels, height, width


def as_map(x: Tensor, image: Sequence[int]) -> Tensor:
    """Features as a map [B, C, h, w]: of vectors [B, C] one place, of tokens [B, T, C] the grid of an ``image``.

    Tokens in front of the grid (class, distillation, registers) are left out.
    """
    if x.dim() == 2:
        return x[:, :, None, None]
    if x.dim() == 3:
        height, width = grid(x.shape[1], image)
        placed = x[:, -height * width :].transpose(1, 2)
        return placed.reshape(len(x), -1, height, width)
    return x


def grid(positions: int, image: Sequence[int]) -> Size:
    """The height and width of so many positions over an image (C, H, W), without the tokens in front of them.

    A row where no grid has the image's proportions.
    """
    for extra in range(min(MOST_EXTRA_TOKENS, positions)):
        height = round(math.sqrt((positions - extra) * image[1] / image[2]))
        width = (positions - extra) // max(height, 1)
        if height * width == positions - extra and height * image[2] == width * image[1]:
            return height, width
    return 1, positions


def resized(x: Tensor, size: Size) -> Tensor:
    """A map at another size: values are repeated where it grows, averaged where it shrinks."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if x.shape[2] >= size[0] and x.shape[3] >= size[1]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size=size, mode="nearest")


# -------------------------------------------------------------------------------------------------- one layer's mirror


def _is_flat(layer: Layer) -> bool:
    """Whether it works on maps, tokens or vectors whose shapes are known: not on lines and volumes."""
    return bool(layer.in_shape and layer.out_shape) and (not layer.is_conv or len(layer.in_shape) == 4)


def _read_channels(layer: Layer) -> int:
    return layer.flattened[0] if layer.flattened else layer.in_shape[1 if layer.is_conv else -1]


def _places(layer: Layer, shape: Shape, image: Shape) -> Size:
    """The height and width of an input or output; windows of a transformer together make up the map."""
    if layer.is_conv:
        return shape[2], shape[3]
    if len(shape) == 4:  # [B, H, W, C]
        whole = shape[1], shape[2]
        return whole if whole[0] * image[2] == whole[1] * image[1] else grid(math.prod(whole), image)
    return grid(math.prod(shape[1:-1]), image)


def _step(layer: Layer, inputs: int, outputs: int, image: Shape, *, last: bool) -> MirrorStep:
    size = _places(layer, layer.out_shape, image)
    result = layer.flattened[1:] if layer.flattened else _places(layer, layer.in_shape, image)
    if last:
        result = image[1:]
    height, width = result
    if layer.flattened and not last:
        return MirrorStep(inputs, outputs, (1, 1), (height, width), unfold=height * width)
    slides = layer.is_conv and len(layer.shape) == 4 and size[0] <= height and size[1] <= width
    if not slides:
        return MirrorStep(inputs, outputs, size, (height, width))
    groups = math.gcd(layer.groups, inputs, outputs)
    kernel, stride, dilation = (_two(sides) for sides in (layer.shape[2:], layer.stride, layer.dilation))
    padding = _two(layer.padding, 0)
    return MirrorStep(inputs, outputs, size, (height, width), kernel, stride, padding, dilation, groups)


def _two(sides: Sequence[int], otherwise: int = 1) -> Size:
    return (sides[0], sides[1]) if len(sides) == 2 else (otherwise, otherwise)


def _output_padding(step: MirrorStep) -> Size:
    """What is missing to the result where a stride could have led to the same size from several; else 0."""

    def missing(side: int) -> int:
        span = step.dilation[side] * (step.kernel[side] - 1) + 1 - 2 * step.padding[side]
        short = step.result[side] - (step.size[side] - 1) * step.stride[side] - span
        return short if 0 <= short < max(step.stride[side], step.dilation[side]) else 0

    return missing(0), missing(1)
