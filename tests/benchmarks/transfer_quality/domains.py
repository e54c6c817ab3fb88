"""The two pairs of tasks: one to pretrain on, rendered without end, and a real one with few images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from netgraft.models.side import Side
from transfer_quality import glyphs, photographs, scenes
from transfer_quality.nets import mean, std

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[2] / "examples"
FAMILIES = {name: f"{HERE / 'nets.py'}:{net}" for name, net in
            {"resnet20": "ResNet20", "vgg11": "VGG11", "vit": "vit_deep"}.items()}  # fmt: skip
TARGETS = {
    "plainnet5": f"{EXAMPLES / 'plainnet5.py'}:PlainNet5",
    "resnet8": f"{EXAMPLES / 'resnet8.py'}:ResNet8",
    "wide5x5": f"{HERE / 'nets.py'}:Wide5x5",
    "depthwise": f"{HERE / 'nets.py'}:Depthwise",
    "nonorm": f"{HERE / 'nets.py'}:NoNorm",
    "vit": f"{HERE / 'nets.py'}:vit_wide",
    "resnet26": f"{HERE / 'nets.py'}:ResNet26",  # contains the source ResNet-20, so that ``grow`` applies
}
EMBEDDED = {"resnet20": "netgraft:resnet20-glyphs", "vgg11": "netgraft:vgg11-glyphs"}

Stream = Callable[[Path, torch.Generator, int], Iterator[tuple[Tensor, Tensor]]]
"""Images ``[n, C, H, W]`` in [0, 1] and labels without end, of a cache folder, a random state and n."""


@dataclass(frozen=True)
class Domain:
    """A source task and a target task with images of one size."""

    name: str
    size: tuple[int, int, int]  # C, H, W
    source_classes: int
    target_classes: int
    stream: Stream
    data: Callable[[Path], str]  # what ``netgraft score --data`` calls the target task, given the cache folder
    batch: int = 64  # of the pretraining

    def side(self, reference: str, *, source: bool, weights: Path | None = None) -> Side:
        """One of the two models of a transfer."""
        classes = self.source_classes if source else self.target_classes
        args = {"num_classes": classes, "in_chans": self.size[0]}
        return Side(reference, "source" if source else "target", args, self.size, weights)


DOMAINS = {
    "glyphs": Domain("glyphs", (1, 16, 16), 26, 10, glyphs.stream, lambda _: "netgraft:digits-hard"),
    "scenes": Domain("scenes", (3, 32, 32), scenes.CLASSES, 10, scenes.stream, photographs.folder),
}


def normalise(images: Tensor) -> Tensor:
    """Images in [0, 1] as every net of the benchmark expects them."""
    return (images - mean) / std
