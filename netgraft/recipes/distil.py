"""Weights, refit, and a few hundred label-free steps on the source's answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from netgraft.correspondence import Norms
from netgraft.graph import LayerGraph
from netgraft.plan import Kept, Move, Pairing, keep_rest
from netgraft.recipes.refit import Refit


@dataclass(frozen=True)
class Distil(Refit):
    """The refit, then a few hundred steps on the source's answers to synthetic images: no data, no labels.

    The largest gain there is without data (OPERATORS part 4). It needs a source with a classifier, and a target with
    one linear head. ``keep_head`` makes the result a classifier of the source's classes.
    """

    steps: int = field(default=600, metadata={"help": "gradient steps; 100 is a fast mode"})
    images: int = field(default=8192, metadata={"help": "synthetic images that the source is asked about"})
    lr: float = field(default=2e-3, metadata={"help": "peak learning rate of Adam"})
    batch: int = field(default=64, metadata={"help": "images per step"})
    gain: float = field(
        default=2.0, metadata={"help": "scale of kernels before a batch norm, as a multiple of He et al.'s (rescale)"}
    )
    keep_head: bool = field(default=False, metadata={"help": "train the target's own head on the source's classes"})
    start: Literal["refit", "graft", "scratch"] = field(
        default="refit", metadata={"help": "where the steps start; the last two are there for comparison"}
    )

    @property
    def passes(self) -> tuple[tuple[str, Mapping[str, object]], ...]:
        """What runs after the moves, by name and options."""
        options = {"steps": self.steps, "images": self.images, "lr": self.lr, "batch": self.batch}
        head = "keep" if self.keep_head else "temporary"
        first = (("refit", {"images": self.refit_images, "pairs": self.follow}),) if self.start == "refit" else ()
        return (*first, ("distil", options | {"head": head}), ("rescale", {"gain": self.gain}))

    def plan(
        self, source: LayerGraph, target: LayerGraph, norms: Norms | None = None
    ) -> tuple[Pairing, list[Move], list[Kept]]:
        """As ``graft``; nothing moves where the start is scratch."""
        pairing, moves, kept = super().plan(source, target, norms)
        if self.start == "scratch":
            return pairing, [], keep_rest(target, [], {}, "start=scratch")
        return pairing, moves, kept
