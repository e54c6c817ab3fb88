"""Parts ready to train: what of them trains, their optimizers and schedules by timm's factories."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from netgraft.errors import UsageError
from netgraft.finetune.engine.freezing import Names, still_norms
from netgraft.finetune.protocol import TARGET, Part
from netgraft.finetune.settings import TrainingSettings
from netgraft.finetune.toolbox.taps import submodule

FUSED = ("sgd", "momentum", "adam", "adamw")
"""Optimizers of PyTorch that step in one pass over the parameters: a quarter of the time on a CPU."""


def check_parts(parts: Mapping[str, Part], target: nn.Module) -> None:
    """Raise UsageError unless the target is a part and no parameter is in two of them."""
    if TARGET not in parts or parts[TARGET].module is not target:
        raise UsageError("The method's parts must have the target.", hint='{"target": Part(run.target_module), ...}')
    owner: dict[int, str] = {}
    for name, part in parts.items():
        for parameter in part.module.parameters():
            if owner.setdefault(id(parameter), name) != name:
                what = "A parameter belongs to two parts of the method, and would have two optimizers."
                raise UsageError(what, where=f"{owner[id(parameter)]}, {name}")


def check_something_trains(parameters: Mapping[str, list[nn.Parameter]], settings: TrainingSettings) -> None:
    """Raise UsageError if freezing left the target nothing to train."""
    if not parameters[TARGET] and (settings.freeze or settings.unfreeze_every):
        options = (f"--freeze {settings.freeze}", f"--unfreeze-every {settings.unfreeze_every}")
        where = " ".join(option for option in options if not option.endswith("None"))
        hint = "Freeze fewer layers; where the whole head came from the source, --freeze NUMBER leaves it out."
        raise UsageError("Nothing of the target is left to train.", where=where, hint=hint)


def freeze(part: Part) -> None:
    """Only ``part.trained`` gets gradients."""
    if part.trained is not None:
        part.module.requires_grad_(False)
        for name in part.trained:
            submodule(part.module, name).requires_grad_(True)


def set_train_mode(parts: Mapping[str, Part], *, bn: str, frozen: Names = frozenset()) -> None:
    """Train mode for what trains, eval mode for what is frozen, and for BatchNorm of the target with ``bn="eval"``.

    ``frozen`` are tensors of the target: with them the norms whose they are stand still.
    """
    for name, part in parts.items():
        part.module.train(part.trained is None)
        for trained in part.trained or ():
            submodule(part.module, trained).train()
        if name == TARGET and bn == "eval":
            for module in part.module.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        if name == TARGET:
            still_norms(part.module, frozen)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """All of a module in eval mode, and each of its submodules back in its own mode afterwards."""
    training = [one for one in module.modules() if one.training]
    module.eval()
    try:
        yield
    finally:
        for one in training:
            one.training = True


def parameters_of(part: Part) -> list[nn.Parameter]:
    return [parameter for parameter in part.module.parameters() if parameter.requires_grad]


def make_optimizer(part: Part, settings: TrainingSettings) -> torch.optim.Optimizer:
    """By timm's factory: no decay of norms and biases. Raises UsageError for an unknown name or a wrong option."""
    from timm.optim import create_optimizer_v2

    name = part.opt or settings.opt
    decay = settings.weight_decay if part.weight_decay is None else part.weight_decay
    lr = part.rate * (settings.lr if part.lr is None else part.lr)
    options = dict(part.options)
    if name in FUSED:
        options.setdefault("fused", True)
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            part.module, opt=name, lr=lr, weight_decay=decay, momentum=settings.momentum, **options
        )
    except (AssertionError, ValueError, TypeError) as error:
        hint = "timm's names: sgd, momentum, adam, adamw, lamb, lion ..."
        raise UsageError(f"The optimizer {name} cannot be made.", where=str(error) or "--opt", hint=hint) from error
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, settings: TrainingSettings, batches: int) -> Any:
    """timm's schedule, stepped with every batch: a function of the number of the step. None for a constant rate."""
    from timm.scheduler import create_scheduler_v2

    if settings.sched == "none":
        return None
    if settings.sched == "plateau":
        raise UsageError("The schedule plateau is not offered: it depends on the test images.", where="--sched")
    try:
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=settings.sched,
            num_epochs=settings.epochs,
            warmup_epochs=settings.warmup_epochs,
            min_lr=settings.min_lr,
            decay_epochs=settings.decay_epochs,
            decay_rate=settings.decay_rate,
            decay_milestones=list(settings.milestones or ()),
            step_on_epochs=False,
            updates_per_epoch=batches,
        )
    except (AssertionError, ValueError, TypeError) as error:
        hint = "timm's names: cosine, step, multistep, poly, tanh; none for a constant rate."
        raise UsageError(
            "The schedule cannot be made.", where=f"--sched {settings.sched}: {error}", hint=hint
        ) from error
    if schedule is None:
        raise UsageError("Unknown schedule.", where=f"--sched {settings.sched}", hint="cosine, step, poly, none ...")
    if settings.milestones is not None:  # timm's rate falls one step before the milestone's
        schedule.decay_t = [milestone * batches + 1 for milestone in settings.milestones]
    return schedule


def lambda_of(settings: TrainingSettings, epoch: int) -> float:
    """lambda_e = lambda_0 r^e ("decays at a ratio in [0, 1] per epoch", DTNH V-B)."""
    return settings.lam * math.pow(settings.lam_decay, epoch)
