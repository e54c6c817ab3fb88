"""Three networks with trained weights, and where each can be changed: stages, blocks, norms, stem, head."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netgraft.models.embedded.resnet20 import BasicBlock, ResNet20
from netgraft.models.embedded.vgg11 import VGG11

Block = tuple[nn.Module, int]  # a container and a place in it


def resize(layer: Any, width_in: int | None, width: int | None) -> None:
    """Another number of channels for an ordinary convolution or linear layer; its weights are new then."""
    old_out, old_in = layer.weight.shape[:2]
    shape = (width or old_out, width_in or old_in, *layer.weight.shape[2:])
    layer.weight = nn.Parameter(torch.empty(shape))
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.zeros(shape[0]))
    names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
    setattr(layer, names[0], shape[1])
    setattr(layer, names[1], shape[0])
    nn.init.kaiming_normal_(layer.weight)


def resize_norm(norm: Any, width: int) -> None:
    norm.num_features = width
    norm.weight, norm.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
    norm.running_mean, norm.running_var = torch.zeros(width), torch.ones(width)


class ActBlock(BasicBlock):
    """The block of ResNet-20 with its activation as a module."""

    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__(width_in, width, stride)
        self.act: nn.Module = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        return self.act(self.bn2(self.conv2(out)) + self.shortcut(x))


class Resnet:
    """netgraft:resnet20-glyphs"""

    head, stem = "fc", "conv1"

    def build(self) -> nn.Module:
        net = ResNet20()
        for stage in (net.layer1, net.layer2, net.layer3):
            for place, block in enumerate(stage):
                width, width_in, *_ = block.conv1.weight.shape
                stage[place] = ActBlock(width_in, width, block.conv1.stride[0])
        return net

    def stages(self, net: Any) -> list[list[Block]]:
        return [[(stage, place) for place in range(len(stage))] for stage in (net.layer1, net.layer2, net.layer3)]

    def removable(self, block: Any) -> bool:
        return isinstance(block.shortcut, nn.Identity)

    def last_norm(self) -> str:
        return "bn2"

    def widen(self, net: Any, stage: int, width: int) -> None:
        blocks = [c[place] for c, place in self.stages(net)[stage]]
        for number, block in enumerate(blocks):
            resize(block.conv1, width if number else None, width), resize_norm(block.bn1, width)
            resize(block.conv2, width, width), resize_norm(block.bn2, width)
            if not number and isinstance(block.shortcut, nn.Sequential):
                resize(block.shortcut[0], None, width), resize_norm(block.shortcut[1], width)
            elif not number:  # the stem's channels come in as they are
                width_in = block.conv1.weight.shape[1]
                block.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width))
        if stage < 2:
            block = self.stages(net)[stage + 1][0][0][0]
            resize(block.conv1, width, None), resize(block.shortcut[0], width, None)
        else:
            resize(net.fc, width, None)

    def features(self, net: Any, x: Tensor) -> Tensor:
        x = F.relu(net.bn1(net.conv1(x)))
        return net.layer3(net.layer2(net.layer1(x)))


class Vgg:
    """netgraft:vgg11-glyphs; a block is a convolution, its norm and its activation, three places of ``features``."""

    head, stem = "classifier", "features.0"

    def build(self) -> nn.Module:
        return VGG11()

    def stages(self, net: Any) -> list[list[Block]]:
        found: list[list[Block]] = [[]]
        for place, layer in enumerate(net.features):
            if isinstance(layer, nn.Conv2d):
                found[-1].append((net.features, place))
            elif isinstance(layer, nn.MaxPool2d):
                found.append([])
        return [stage for stage in found if stage]

    def removable(self, block: Any) -> bool:
        return block.in_channels == block.out_channels

    def last_norm(self) -> str:
        return ""

    def widen(self, net: Any, stage: int, width: int) -> None:
        place = self.stages(net)[stage][-1][1]
        resize(net.features[place], None, width), resize_norm(net.features[place + 1], width)
        later = [layer for layer in list(net.features)[place + 1 :] if isinstance(layer, nn.Conv2d)]
        resize(later[0] if later else net.classifier, width, None)

    def features(self, net: Any, x: Tensor) -> Tensor:
        return net.features(x)


class Lite:
    """efficientnet-lite0"""

    head, stem = "_fc", "_conv_stem"

    def build(self) -> nn.Module:
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name("efficientnet-lite0")

    def stages(self, net: Any) -> list[list[Block]]:
        found: list[list[Block]] = []
        for place, block in enumerate(net._blocks):
            if not self.removable(block):
                found.append([])
            found[-1].append((net._blocks, place))
        return found

    def removable(self, block: Any) -> bool:
        given = block._block_args
        return given.stride == 1 and given.input_filters == given.output_filters

    def last_norm(self) -> str:
        return "_bn2"

    def widen(self, net: Any, stage: int, width: int) -> None:
        stages = self.stages(net)
        for number, (container, place) in enumerate(stages[stage]):
            block = container[place]
            resize(block._project_conv, None, width), resize_norm(block._bn2, width)
            block._block_args = block._block_args._replace(output_filters=width)
            if number:
                resize(block._expand_conv, width, None)
                block._block_args = block._block_args._replace(input_filters=width)
        if stage + 1 < len(stages):
            container, place = stages[stage + 1][0]
            resize(container[place]._expand_conv, width, None)
            container[place]._block_args = container[place]._block_args._replace(input_filters=width)
        else:
            resize(net._conv_head, width, None)

    def features(self, net: Any, x: Tensor) -> Tensor:
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.extract_features(net, x)


BASES: dict[str, Any] = {"resnet20": Resnet(), "vgg11": Vgg(), "lite0": Lite()}
