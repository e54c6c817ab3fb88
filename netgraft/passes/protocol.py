"""What is done to grafted weights by running the networks: one pass per file.

A plan says what weights can become by themselves. A pass goes on from there with forward passes on images: it refits
layers, distils the source's answers, or re-estimates statistics. A pass is a frozen dataclass whose fields are its
options, with

- ``fate``, what becomes of the tensors it touches: "refitted", "distilled", "recalibrated" or "set"; empty where the
  numbers come from where they did;
- ``touches(source, target, pairing)``, the keys of the target's state_dict it may change, known before it runs;
- ``__call__(stage)``, which changes the weights of ``stage.target`` in place and returns what it has to report, as
  JSON-able data.

The smallest one is ``examples/own_pass.py``. Passes are deterministic on a CPU: the same stage gives the same bytes.
One that may take long asks ``stage.enough()``. If it stops early for that, its report says under ``cut`` where, and
with an option of that name and value it stops there whatever the time is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from netgraft.architecture.graph import LayerGraph
from netgraft.architecture.resolution import shrunk
from netgraft.data.images import ImageSource, shown_as
from netgraft.errors import UsageError
from netgraft.models.model import Model
from netgraft.models.normalisation import Normalisation
from netgraft.passes.refitting.values import PreparedLayers
from netgraft.plan import Pairing, Plan


@dataclass(frozen=True)
class LiveModel:
    """One of the two models, with the weights it has in ``module``: eval mode, no gradients, on the stage's device."""

    model: Model
    graph: LayerGraph
    module: nn.Module
    normalisation: Normalisation
    side: int | None = None  # of smaller images than the model is meant for

    @property
    def image_size(self) -> tuple[int, int, int]:
        """(channels, height, width); UsageError for a model that takes no images, or several inputs."""
        size = self.model.input_size
        inputs = [node for node in self.graph.nodes if node.op == "input"]
        if size is None and len(inputs) == 1 and len(inputs[0].shape) == 4:
            size = inputs[0].shape[1:]
        if size is None or len(size) != 3 or len(inputs) != 1:
            raise UsageError(
                f"{self.model.name} does not take one image as its input, so it cannot be shown images.",
                hint="Use a recipe that reads weights only: --recipe graft, grow or hmt.",
            )
        return (size[0], size[1], size[2]) if self.side is None else shrunk(size, self.side)

    def shrunk(self, side: int | None) -> LiveModel:
        """The same network, which is shown images of so many pixels along their longer side, or of its own size."""
        return replace(self, side=side)


@dataclass
class Stage:
    """What a pass works on."""

    plan: Plan
    source: LiveModel
    target: LiveModel
    pictures: ImageSource
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    norms: Callable[[str, int], Any] | None = None  # of the source's weights, as ``importance.channel_norms`` gives
    progress: Callable[[str], None] = lambda _: None
    prepared: PreparedLayers = field(default_factory=PreparedLayers)  # what passes have set, for a refit
    crops: str = ""  # how the images drawn last were made out of fewer pictures, for the ledger
    settled: frozenset[str] = frozenset()  # layers of the target that give what the source does: to be left as they are
    fitted: frozenset[str] = frozenset()  # layers that a refit has given new weights
    enough: Callable[[], bool] = lambda: False  # once this is so a pass comes to an end, and says where

    def shrunk(self, side: int | None) -> Stage:
        """The same with smaller images for both networks; UsageError if one of them does not take them."""
        small = replace(self, source=self.source.shrunk(side), target=self.target.shrunk(side))
        for network in (small.source, small.target):
            if network.image_size != network.shrunk(None).image_size and not self._takes(network):
                text = "x".join(map(str, network.image_size))
                hint = "Leave out the side: it is for networks that are convolutional up to a pooling layer."
                raise UsageError(f"{network.model.name} does not take images of {text}.", hint=hint)
        return small

    def _takes(self, network: LiveModel) -> bool:
        try:
            with torch.no_grad():
                network.module(torch.zeros(2, *network.image_size, device=self.device))
        except (Exception, SystemExit):
            return False
        return True

    def images(self, count: int, seed: int, first: int = 0) -> Tensor:
        """``count`` images in [0, 1] of the source's size, on the CPU, behind the ``first`` ones."""
        self.crops = self.pictures.made_by(first + count)
        return self.pictures.draw(count, self.source.image_size, self.seed + seed, first)

    def shown(self, images: Tensor, network: LiveModel) -> Tensor:
        """Images in [0, 1] as a network expects them: its size, its channels, its normalisation, on the device."""
        return shown_as(images.to(self.device), network.image_size, network.normalisation)


@runtime_checkable
class Pass(Protocol):
    """See the module's text."""

    @property
    def fate(self) -> str: ...

    def touches(self, source: LayerGraph, target: LayerGraph, pairing: Pairing) -> tuple[str, ...]:
        """Keys of the target's state_dict, aliases included."""

    def __call__(self, stage: Stage) -> dict[str, Any]:
        """Change the target's weights; what there is to report."""


@runtime_checkable
class SparesCopies(Protocol):
    """A pass that may leave alone what was copied from the source as it is."""

    def spared(self, target: LayerGraph, copied: Collection[str]) -> frozenset[str]:
        """The keys it leaves alone, of those that it would touch; ``copied`` are those of ``Plan.copied``."""


Row = tuple[str, ...]


@runtime_checkable
class ReportsLines(Protocol):
    """A pass with words of its own for its report; of others the facts are listed."""

    @staticmethod
    def lines(report: Mapping[str, Any]) -> Iterator[str | Row]:
        """Lines of text; rows that follow one another are set as a table, the first of them its header.

        ``report`` is what the pass returned, read from a ledger that anyone may have written.
        """
