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
from support.mutable import BASES, Block, Vgg, resize
from torch import Tensor, nn

# ------------------------------------------------------------------------------------------------------------- editing


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
