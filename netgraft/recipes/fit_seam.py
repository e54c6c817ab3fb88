"""A target that is nearly the source: what the two have in common is copied, and only what is new is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from netgraft.architecture.graph import LayerGraph
from netgraft.plan import WantedPass
from netgraft.recipes.almost_equal import AlmostEqual, seams
from netgraft.recipes.distil import learning


@dataclass(frozen=True)
class FitSeam(AlmostEqual):
    """The copy of ``almost-equal``, then a few hundred steps on the source's answers for everything that is no copy.

    No data, no labels. What was copied stays bit for bit, statistics included; only tensors that are new, or that grew
    or shrank, are trained: a norm of another kind, a block that has no neighbour, the layers of another width. It needs
    a source with a classifier, and a target with one linear head.
    """

    generator: str = field(
        default="mix", metadata={"help": "where images come from: a generator, or unlabelled ones (folder or picture)"}
    )
    steps: int | None = field(default=None, metadata={"help": "gradient steps; none: as many as distil takes"})
    images: int = field(default=8192, metadata={"help": "synthetic images that the source is asked about"})
    lr: float | None = field(default=None, metadata={"help": "peak learning rate of Adam; none: that of distil"})
    batch: int = field(default=64, metadata={"help": "images per step"})
    side: int | None = field(
        default=None,
        metadata={
            "help": "pixels that images are shrunk to for most of the steps, of convolutional networks; none: no"
        },
    )
    cut: int | None = field(
        default=None, metadata={"help": "step after which the learning rate falls to 0, as where time was up; none: no"}
    )
    keep_head: bool = field(default=False, metadata={"help": "train the target's own head on the source's classes"})

    def passes(self, source: LayerGraph, target: LayerGraph) -> tuple[WantedPass, ...]:
        """What runs after the moves, by name and options."""
        return (learning(target, self, spare="copied", also=tuple(seams(source, target))),)
