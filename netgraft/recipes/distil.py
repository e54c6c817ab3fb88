"""Weights, refit, and a few hundred label-free steps on the source's answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from netgraft.architecture.attention import is_transformer
from netgraft.architecture.graph import LayerGraph
from netgraft.plan import WantedPass
from netgraft.recipes._scale import scaled
from netgraft.recipes.protocol import Draft, Task
from netgraft.recipes.refit import GraftAndRefit, worth_refitting

STEPS, LR, PATIENCE = 600, 2e-3, 4
REFIT_IMAGES = 512


@dataclass(frozen=True)
class RefitAndDistil(GraftAndRefit):
    """The refit, then a few hundred steps on the source's answers to synthetic images: no data, no labels.

    The largest gain there is without data (OPERATORS part 4). It needs a source with a classifier, and a target with
    one linear head. ``keep_head`` makes the result a classifier of the source's classes. A transformer learns slowly
    without data: it takes more steps, at half the rate. Where the source is none and its attention cannot be made to
    read neighbours, they start from its own initialisation rather than from a refit.
    """

    refit_images: int = field(
        default=REFIT_IMAGES, metadata={"help": "synthetic images for the refit, where the steps start"}
    )
    steps: int | None = field(
        default=None, metadata={"help": f"gradient steps; none: {STEPS}, for transformers {PATIENCE} times as many"}
    )
    images: int = field(default=8192, metadata={"help": "synthetic images that the source is asked about"})
    lr: float | None = field(
        default=None, metadata={"help": f"peak learning rate of Adam; none: {LR:g}, for transformers half as much"}
    )
    batch: int = field(default=64, metadata={"help": "images per step"})
    gain: float = field(
        default=2.0, metadata={"help": "scale of kernels before a batch norm, as a multiple of He et al.'s (rescale)"}
    )
    side: int | None = field(
        default=None,
        metadata={
            "help": "pixels that images are shrunk to for most of the steps, of convolutional networks; none: no"
        },
    )
    cut: int | None = field(
        default=None, metadata={"help": "step after which the learning rate falls to 0, as where time was up; none: no"}
    )
    mixing: Literal["none", "cutmix", "mixup", "both"] = field(
        default="none", metadata={"help": "mix half of the images with the others before the source is asked"}
    )
    choose: Literal["any", "statistics"] = field(
        default="any",
        metadata={"help": "statistics: of more images take those nearest to what the source's batch norms remember"},
    )
    start: Literal["auto", "refit", "graft", "scratch"] = field(
        default="auto",
        metadata={
            "help": "where the steps start; auto: the refit, or the graft where a refit is of no use to a transformer"
        },
    )

    def passes(self, source: LayerGraph, target: LayerGraph) -> tuple[WantedPass, ...]:
        """What runs after the moves, by name and options."""
        refits = self.start == "refit" or (self.start == "auto" and worth_refitting(source, target))
        first: tuple[WantedPass, ...] = ()
        if refits:
            first = self.refitting(source, target)
        elif self.start != "scratch":
            first = (("repair", {}),) if self.repair else ()
        return (*first, learning(target, self, mixing=self.mixing, choose=self.choose), scaled(self.gain))

    def plan(self, task: Task) -> Draft:
        """As ``graft``; nothing moves where the start is scratch."""
        draft = super().plan(task)
        return draft if self.start != "scratch" else Draft((), dict.fromkeys(task.target.layers, "start=scratch"))


class _Steps(Protocol):
    """Options of a recipe that distils."""

    @property
    def steps(self) -> int | None: ...

    @property
    def images(self) -> int: ...

    @property
    def lr(self) -> float | None: ...

    @property
    def batch(self) -> int: ...

    @property
    def side(self) -> int | None: ...

    @property
    def cut(self) -> int | None: ...

    @property
    def keep_head(self) -> bool: ...


def learning(target: LayerGraph, wanted: _Steps, **more: object) -> WantedPass:
    """The pass ``distil`` with a recipe's options, and ``more`` of its own."""
    options: dict[str, object] = {
        "steps": steps_for(target) if wanted.steps is None else wanted.steps,
        "images": wanted.images,
        "lr": (LR / 2 if is_transformer(target) else LR) if wanted.lr is None else wanted.lr,
        "batch": wanted.batch,
        "side": wanted.side,
        "cut": wanted.cut,
        "head": "keep" if wanted.keep_head else "temporary",
    }
    return ("distil", options | more)


def steps_for(target: LayerGraph) -> int:
    """How many steps distillation takes if nobody says otherwise."""
    return STEPS * (PATIENCE if is_transformer(target) else 1)
