"""Decoders as mirrors of networks: shapes, kernels, widths, and what is refused."""

from pathlib import Path

import pytest
import torch
from support.nets import traced
from torch import nn

from netgraft.errors import UsageError
from netgraft.finetune.toolbox.mirror import as_map, grid, mirror, mirrored_chain, resized
from netgraft.models.model import load_model
from netgraft.trace import trace

EXAMPLES = Path(__file__).parents[2] / "examples"


class Odd(nn.Module):
    """Sides that strides do not divide, pooling, a depthwise and a dilated layer, and a head that reads a whole map."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=3, groups=8)
        self.wide = nn.Conv2d(8, 12, 3, padding=2, dilation=2)
        self.hidden = nn.Linear(12 * 2 * 1, 20)
        self.head = nn.Linear(20, 4)

    def forward(self, x):  # 3x27x21 > 8x13x10 > 8x4x3 > 12x4x3 > 12x2x1
        x = self.wide(self.depthwise(self.stem(x).relu()).relu()).relu()
        x = nn.functional.max_pool2d(x, 2)
        return self.head(self.hidden(x.flatten(1)).relu())


def test_layers_are_those_of_the_network_backwards():
    graph = traced(Odd, (3, 27, 21))
    assert mirrored_chain(graph) == ("stem", "depthwise", "wide", "hidden", "head")
    found = mirror(graph, mirrored_chain(graph)[:-1], 20)
    hidden, wide, depthwise, stem = (layer.conv for layer in found)
    assert (found.width, found.size) == (20, (1, 1))
    assert (hidden.in_channels, hidden.out_channels, hidden.kernel_size) == (20, 24, (1, 1))
    assert (wide.in_channels, wide.out_channels, wide.dilation) == (12, 8, (2, 2))
    assert (depthwise.groups, depthwise.stride, depthwise.kernel_size) == (8, (3, 3), (3, 3))
    assert (stem.in_channels, stem.out_channels, stem.kernel_size, stem.stride) == (8, 3, (5, 5), (2, 2))
    x, shapes = torch.randn(2, 20, 1, 1), []
    for layer in found:
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(12, 2, 1), (8, 4, 3), (8, 13, 10), (3, 27, 21)]
    gradients = torch.autograd.grad(x.square().sum(), list(found.parameters()))
    assert all(bool(gradient.any()) for gradient in gradients)


def test_a_transposed_convolution_alone_gives_the_size_back():
    """Without resizing: what the stride leaves open is padded."""
    graph = traced(Odd, (3, 27, 21))
    for layer in mirror(graph, mirrored_chain(graph)[:3], 12):
        assert layer.conv(torch.zeros(1, layer.step.inputs, *layer.step.size)).shape[2:] == layer.step.result


def test_first_weights_keep_the_size_of_values():
    """Of He et al. 2015: a place of the output sums so many terms as inputs and kernel give, over the stride."""
    found = mirror(traced(Odd, (3, 27, 21)), ("stem", "depthwise", "wide", "hidden"), 2000, factor=50)
    hidden, wide, depthwise, stem = found  # 2000 channels to 600, 400, 400 in 8 groups, 3
    for layer, terms, gain in ((hidden, 2000, 2), (wide, 600 * 9, 2), (depthwise, 400 / 8, 2), (stem, 400 * 25 / 4, 1)):
        assert float(layer.conv.weight.detach().std()) == pytest.approx((gain / terms) ** 0.5, rel=0.02)
        assert not layer.conv.bias.any()
    x = torch.randn(8, 400, 13, 10)
    inside = stem.conv(x)[:, :, 4:-4, 4:-4]
    assert float(inside.detach().var()) == pytest.approx(1, rel=0.2)


def test_factor_narrows_all_but_the_ends():
    graph = traced(Odd, (3, 27, 21))
    found = mirror(graph, mirrored_chain(graph)[:3], 12, factor=0.5)
    assert [(layer.conv.in_channels, layer.conv.out_channels) for layer in found] == [(12, 4), (4, 4), (4, 3)]
    assert found(torch.randn(2, 12, 4, 3)).shape == (2, 3, 27, 21)


def test_what_cannot_be_mirrored_is_refused():
    with pytest.raises(UsageError, match="one image"):
        mirror(traced(lambda: nn.Linear(7, 3), (7,)), (), 3)
    with pytest.raises(UsageError, match="no layer before"):
        mirror(traced(Odd, (3, 27, 21)), (), 3)


def test_tokens_are_a_map_of_the_image():
    tokens = torch.arange(2 * 7 * 3).reshape(2, 7, 3)  # one in front of a grid of 2x3
    placed = as_map(tokens, (3, 32, 48))
    assert placed.shape == (2, 3, 2, 3)
    assert placed[1, 2, 1, 0] == tokens[1, 1 + 3, 2]
    assert as_map(tokens[:, 0], (3, 32, 48)).shape == (2, 3, 1, 1)
    assert grid(197, (3, 224, 224)) == (14, 14)
    assert grid(13, (3, 32, 64)) == (2, 4)  # behind five others
    assert grid(3, (1, 32, 320)) == (1, 3)


def test_maps_repeat_when_they_grow_and_average_when_they_shrink():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert torch.equal(resized(x, (4, 4)), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert resized(x, (1, 1)).item() == 1.5


def built(name):
    """The mirror of a whole network but its classifier, without memory, and its output for two inputs."""
    graph = trace(load_model(name, role="target"))
    layers = mirrored_chain(graph)[:-1]
    with torch.device("meta"):
        found = mirror(graph, layers, graph.layers[layers[-1]].out_channels)
        return found, found(torch.empty(2, found.width, *found.size)).shape, len(layers)


@pytest.mark.parametrize(("file", "channels", "depth"), [("my_arch", 1, 11), ("resnet8", 3, 7), ("plainnet5", 3, 4)])
def test_example_architectures(file, channels, depth):
    found, shape, layers = built(str(EXAMPLES / f"{file}.py"))
    assert (len(found), layers) == (depth, depth)
    assert shape == (2, channels, 32, 32)


NAMES = ("resnet18", "vgg11", "efficientnet_b0", "mobilenetv3_small_100", "vit_tiny_patch16_224")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_architectures_of_timm(name):
    found, shape, layers = built(name)
    assert len(found) == layers >= 10
    assert shape == (2, 3, 224, 224)
