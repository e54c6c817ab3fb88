"""What the study compares: pairs of a source and a target, initialisations of the target, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netgraft.models.side import Side

HERE = Path(__file__).resolve().parent
LITE = "netgraft:efficientnet-lite"


@dataclass(frozen=True)
class Cell:
    """A source and a target."""

    source: str
    target: str
    args: Mapping[str, object] = field(default_factory=dict)  # of the target's constructor
    size: int = 128  # pixels of an edge while it is fine-tuned
    transferred: tuple[int, ...] | None = None  # the target's input size for the transfer; None: its own
    ceiling: str | None = None  # where pretrained weights of this very target are

    def side(self, classes: int, size: tuple[int, ...] | None) -> Side:
        """The target with so many classes, for images of this size."""
        return Side(self.target, "target", {**self.args, "num_classes": classes}, size)

    @property
    def input_size(self) -> tuple[int, ...]:
        """That of the fine-tuning."""
        return (self.channels, self.size, self.size)

    @property
    def channels(self) -> int:
        return self.transferred[0] if self.transferred else 3


CELLS = {
    "lite0-resnet10t": Cell(f"{LITE}0", "resnet10t"),
    "lite0-mobilenetv3": Cell(f"{LITE}0", "mobilenetv3_small_050"),
    "lite0-convnext": Cell(f"{LITE}0", "convnext_atto"),
    "lite0-vit": Cell(f"{LITE}0", "vit_tiny_patch16_224", {"img_size": 96}, 96),
    "lite0-my_arch": Cell(f"{LITE}0", f"{HERE.parent / 'my_arch.py'}:MyNet", {"in_chans": 3}, 64, (3, 64, 64)),
    "lite0-narrow": Cell(f"{LITE}0", f"{HERE / 'narrow_lite0.py'}:narrow_lite0"),
    "lite1-lite0": Cell(f"{LITE}1", "tf_efficientnet_lite0", ceiling=f"{LITE}0"),
    "lite2-lite1": Cell(f"{LITE}2", "tf_efficientnet_lite1", ceiling=f"{LITE}1"),
}
QUICK = {
    "glyphs-resnet8": Cell(
        "netgraft:resnet20-glyphs",
        f"{HERE.parent / 'resnet8.py'}:ResNet8",
        {"in_chans": 1, "widths": (8, 8, 16)},
        16,
        (1, 16, 16),
    )
}
"""A tiny one, for pictures that the script draws itself."""

SCRATCH, CEILING = "scratch", "ceiling"
ROWS: dict[str, tuple[str, Mapping[str, object]]] = {  # the recipe of each initialisation, with its options
    SCRATCH: ("", {}),
    **{
        name: (name, {})
        for name in (
            "same-names",
            "hmt",
            "weight-selection",
            "front",
            "mimetic",
            "structured",
            "graft",
            "refit",
            "distil",
            "auto",
        )
    },
    CEILING: ("same-names", {}),
}
OPTIMISERS: dict[str, dict[str, Any]] = {  # with the learning rates to choose from, the same ones for every row
    "sgd": {"opt": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "rates": (0.003, 0.01, 0.03, 0.1)},
    "adamw": {"opt": "adamw", "weight_decay": 0.05, "rates": (1e-4, 3e-4, 1e-3, 3e-3)},
}
TRAINING: dict[str, Any] = {"batch_size": 25, "sched": "cosine", "scale": (0.25, 1.0), "tensorboard": False}
NORMALISATION: dict[str, Any] = {"mean": (127 / 255,), "std": (128 / 255,)}
"""EfficientNet-Lite's, for every row: which numbers are taken must not tell rows apart."""
TUNING_SEED = 1000
"""Of the first draw that a rate is chosen by; those of the results are 0, 1, ..."""
