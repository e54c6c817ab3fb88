"""What is written beside the weights: how they were trained, and the curves for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from netgraft import __version__
from netgraft.finetune.engine.folder import Folder
from netgraft.finetune.engine.prepare import PreparedTraining
from netgraft.finetune.settings import TrainingSettings

ALWAYS = ("target", "method", "set", "lam", "lam_decay", "epochs", "batch_size", "opt", "lr", "seed")
IF_GIVEN = (
    *("accumulate", "milestones", "freeze", "unfreeze_every", "lr_exact", "lr_refitted", "lr_fresh"),
    *("dtnh_scope", "amp", "amp_dtype", "train_crop_mode", "crop_pct", "lambdas", "folds"),
    *("dtnh_scope", "triplet", "triplet_margin", "class_images", "retrieval"),
)
"""Settings that are told where they differ from their defaults."""


def provenance_of(prepared: PreparedTraining, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Of the weights, without anything that differs from run to run."""
    told, default = asdict(prepared.settings), asdict(TrainingSettings("", "", ""))
    options = {name: told[name] for name in ALWAYS}
    options |= {name: told[name] for name in IF_GIVEN if told[name] != default[name]}
    trained = {**options, "combine": prepared.rule_name, "metrics": dict(metrics)}
    return {"version": __version__, "finetune": {**trained, **prepared.record}}


def open_tensorboard(settings: TrainingSettings, folder: Folder) -> Any:
    """A writer where TensorBoard is installed."""
    if not settings.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder.path / "tensorboard"))
