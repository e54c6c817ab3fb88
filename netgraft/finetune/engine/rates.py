"""Learning rates by where a tensor came from: the ledger of the initialisation knows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from netgraft.errors import UsageError
from netgraft.finetune.settings import TrainingSettings
from netgraft.plan import EXACT, KEPT, SET, Plan


def factors_of(settings: TrainingSettings, ledger: Plan | None, module: nn.Module) -> dict[int, float]:
    """Factor of the learning rate by ``id`` of each parameter; empty where all of them are 1.

    A tensor is exact if it is the source's as it was, fresh if nothing in it is the source's (``kept``, ``set``), else
    refitted: resized, reordered, solved for or trained. Raises UsageError without a ledger.
    """
    factors = {"exact": settings.lr_exact, "refitted": settings.lr_refitted, "fresh": settings.lr_fresh}
    if set(factors.values()) == {1.0}:
        return {}
    if ledger is None:
        what = "Learning rates by provenance need the ledger of a transfer of weights, and there is none."
        hint = "Add --init FILE, as netgraft transfer writes it."
        raise UsageError(what, where=settings.init or "--init is not given", hint=hint)
    origin = {EXACT: "exact", SET: "fresh", KEPT: "fresh"}
    return {
        id(parameter): factors[origin.get(ledger.fates.get(name, KEPT), "refitted")]
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }


def scale_rates(optimizer: torch.optim.Optimizer, factors: Mapping[int, float], *, scheduled: bool) -> None:
    """Split the optimizer's groups by the factors of their parameters.

    timm's schedules multiply a rate by ``lr_scale``; without a schedule it is multiplied here, once.
    """
    groups = []
    for group in optimizer.param_groups if factors else ():
        split: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            split.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
        for factor, members in split.items():
            rate = group["lr"] if scheduled else group["lr"] * factor
            groups.append({**group, "params": members, "lr": rate, "lr_scale": factor})
    if factors:
        optimizer.param_groups[:] = groups


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate now, before factors; 0 where all of these are 0."""
    scaled = [(group["lr"], group.get("lr_scale", 1.0)) for group in optimizer.param_groups]
    return next((float(rate / factor) for rate, factor in scaled if factor), 0.0)
