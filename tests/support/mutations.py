"""Trained networks, changed as people change them, with the truth of which layer is which kept beside.

A change edits the built network in place. Every layer of the original carries its old name as ``origin``; what is new
carries none, so that ``origins`` tells afterwards which layer of the source each layer of the target is.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netgraft.models.embedded.resnet20 import BasicBlock, ResNet20
from netgraft.models.embedded.vgg11 import VGG11

Block = tuple[nn.Module, int]  # a container and a place in it


# ------------------------------------------------------------------------------------------------------ the originals


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

# ------------------------------------------------------------------------------------------------------------- editing


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


def fresh(layer: nn.Module) -> nn.Module:
    """A copy with weights of its own that is none of the source's layers."""
    layer = copy.deepcopy(layer)
    for part in layer.modules():
        part.__dict__.pop("origin", None)
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return layer


def replace(net: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, layer)


class GatedNorm(nn.BatchNorm2d):
    """A norm with squeeze and excitation behind it, under the norm's old name."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, eps=norm.eps)
        if "origin" in norm.__dict__:
            self.origin = norm.origin
        hidden = max(4, norm.num_features // 4)
        self.reduce, self.expand = nn.Conv2d(norm.num_features, hidden, 1), nn.Conv2d(hidden, norm.num_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Segmenter(nn.Module):
    """The network's layers under their old names, without the head, and a decoder on the last features."""

    def __init__(self, net: nn.Module, base: Any, width: int) -> None:
        super().__init__()
        for name, value in vars(net).items():
            if name not in self.__dict__:
                object.__setattr__(self, name, value)  # what the original's forward pass reads
        for name, child in net.named_children():
            if name != base.head:
                self.add_module(name, child)
        self.base = base
        self.decoder = nn.Sequential(
            nn.Conv2d(width, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 5, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.decoder(self.base.features(self, x)), size=x.shape[2:], mode="nearest")


# ------------------------------------------------------------------------------------------------------------- changes

Change = Callable[[Any, Any, random.Random], Any]
"""(base, network, chance) -> the changed network, or None for the same module."""


def _stage(base: Any, net: Any, chance: random.Random) -> tuple[int, list[Block]]:
    stages = base.stages(net)
    number = chance.randrange(len(stages))
    return number, stages[number]


def _same_width(base: Any, net: Any) -> list[Block]:
    return [(c, place) for stage in base.stages(net) for c, place in stage if base.removable(c[place])]


def _span(base: Any) -> int:
    return 3 if isinstance(base, Vgg) else 1  # places of a block


def insert(base: Any, net: Any, chance: random.Random) -> None:
    container, place = chance.choice(_same_width(base, net))
    _insert_after(base, container, place)


def _insert_after(base: Any, container: Any, place: int) -> None:
    for offset in range(_span(base)):
        container.insert(place + _span(base) + offset, fresh(container[place + offset]))


def delete(base: Any, net: Any, chance: random.Random) -> None:
    container, place = chance.choice(_same_width(base, net))
    for _ in range(_span(base)):
        del container[place]


def depth(base: Any, net: Any, chance: random.Random) -> None:
    """Two blocks more at a stage's end, or all but those that change the shape taken away."""
    blocks = [each for stage in base.stages(net) for each in stage[-1:] if base.removable(each[0][each[1]])]
    container, place = chance.choice(blocks)
    if chance.random() < 0.5:
        for _ in range(2):
            _insert_after(base, container, place)
        return
    stage = next(stage for stage in base.stages(net) if stage[-1] == (container, place))
    for _, each in reversed([b for b in stage if base.removable(b[0][b[1]])]):
        for _ in range(_span(base)):
            del container[each]


def widen(base: Any, net: Any, chance: random.Random) -> None:
    number, blocks = _stage(base, net, chance)
    container, place = blocks[-1]
    norm = base.last_norm()
    width = getattr(container[place], norm).num_features if norm else container[place].out_channels
    base.widen(net, number, round(width * chance.choice((1.25, 1.5, 2)) / 8) * 8)


def head(base: Any, net: Any, chance: random.Random) -> None:
    old = net.get_submodule(base.head)
    classes = chance.choice((5, 37, 200))
    new: nn.Module = nn.Linear(old.in_features, classes)
    if chance.random() < 0.4:
        new = nn.Sequential(nn.Linear(old.in_features, 64), nn.ReLU(), nn.Linear(64, classes))
    replace(net, base.head, new)


def channels(base: Any, net: Any, chance: random.Random) -> None:
    stem = net.get_submodule(base.stem)
    resize(stem, chance.choice([n for n in (1, 2, 3, 4, 6) if n != stem.in_channels]), None)


def norm(base: Any, net: Any, chance: random.Random) -> None:
    """Group norm for batch norm, everywhere or in one stage."""
    everywhere = chance.random() < 0.3
    _, blocks = _stage(base, net, chance)
    if everywhere:
        paths = [path for path, part in net.named_modules() if isinstance(part, nn.BatchNorm2d)]
    elif isinstance(base, Vgg):
        paths = [f"features.{place + 1}" for _, place in blocks]
    else:
        inside = {id(part) for c, place in blocks for part in c[place].modules()}
        paths = [p for p, part in net.named_modules() if isinstance(part, nn.BatchNorm2d) and id(part) in inside]
    for path in paths:
        width = net.get_submodule(path).num_features
        replace(net, path, nn.GroupNorm(8 if width % 8 == 0 else 4, width))


def gate(base: Any, net: Any, chance: random.Random) -> None:
    """Squeeze and excitation behind each block of a stage, or of all."""
    everywhere = chance.random() < 0.5
    _, blocks = _stage(base, net, chance)
    for container, place in [b for stage in base.stages(net) for b in stage] if everywhere else blocks:
        name = base.last_norm()
        owner, key = (container[place], name) if name else (container, str(place + 1))
        if isinstance(getattr(owner, key), nn.BatchNorm2d):
            setattr(owner, key, GatedNorm(getattr(owner, key)))


def activation(base: Any, net: Any, chance: random.Random) -> None:
    """Another activation in one stage, or everywhere."""
    new = chance.choice((nn.SiLU, nn.GELU, nn.LeakyReLU, nn.Hardswish, nn.ELU))
    everywhere = chance.random() < 0.5
    _, blocks = _stage(base, net, chance)
    inside = {id(part) for c, place in blocks for part in c[place].modules()}
    inside |= {id(c[place + 2]) for c, place in blocks} if isinstance(base, Vgg) else set()
    for path, part in list(net.named_modules()):
        if isinstance(part, (nn.ReLU, nn.ReLU6)) and (everywhere or id(part) in inside):
            replace(net, path, new())


def decoder(base: Any, net: Any, chance: random.Random) -> nn.Module:  # noqa: ARG001
    return Segmenter(net, base, net.get_submodule(base.head).in_features)


CHANGES: dict[str, Change] = {
    "insert": insert,
    "delete": delete,
    "depth": depth,
    "widen": widen,
    "norm": norm,
    "gate": gate,
    "activation": activation,
    "channels": channels,
    "head": head,
    "decoder": decoder,
}
"""In an order in which any two can be made one after the other."""


# ---------------------------------------------------------------------------------------------------------- the result


def mutated(base: str, changes: tuple[str, ...], seed: int) -> nn.Module:
    """The network with these changes; the same structure for one seed, weights from torch's chance."""
    family = BASES[base]
    net = family.build()
    for path, part in net.named_modules():
        if part._parameters or part._buffers:
            part.origin = path
    for kind in (kind for kind in CHANGES if kind in changes):
        net = CHANGES[kind](family, net, random.Random(f"{seed} {kind}")) or net
    return net


def origins(net: nn.Module) -> Iterator[tuple[str, str]]:
    """(path in the target, path in the source) of every layer that comes from the source."""
    for path, part in net.named_modules():
        if "origin" in part.__dict__:
            yield path, part.origin


def feature_reader(base: str, net: nn.Module) -> nn.Module:
    """The part that reads the last features: the head or the decoder."""
    return net.decoder if isinstance(net, Segmenter) else net.get_submodule(BASES[base].head)
