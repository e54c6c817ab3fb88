"""What a step of a training costs, before it begins: one batch is run and its operations are counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from netgraft.finetune.engine.folder import Folder
from netgraft.finetune.engine.loader import to_device
from netgraft.finetune.engine.loop import Training
from netgraft.finetune.engine.parts import lambda_of
from netgraft.finetune.engine.prepare import prepare
from netgraft.finetune.engine.watch import Quiet
from netgraft.finetune.protocol import Prepares
from netgraft.finetune.settings import TrainingSettings


@dataclass(frozen=True)
class Cost:
    """Costs in forward units: 1 is a forward pass of the target over a batch. Plain fine-tuning costs nearly 3."""

    method: str
    combine: str
    batch: int  # images
    forward: int  # FLOPs of the unit
    step: float  # of one batch, all its updates
    source: float  # of the source's pass in it, as far as it runs
    updates: int  # per batch
    gradients: int  # backward passes per batch
    cached: float | None  # of one batch once the source's features are in the cache; None without a source
    cache_bytes: int  # of a full cache
    remarks: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        return asdict(self)


def explain(settings: TrainingSettings) -> Cost:
    """The cost of the first step. Nothing is written. Raises what ``prepare`` raises."""
    prepared = prepare(settings)
    run, rule = prepared.run, prepared.rule
    calls = 0

    def counted(names: Any, grads: Any) -> Any:
        def ask(*groups: Any) -> Any:
            nonlocal calls
            calls += sum(any(name in losses for name in group) for group in groups)
            return grads(*groups)

        return rule(names, ask)

    training = Training(replace(prepared, rule=counted), Folder(Path(settings.out)), Quiet())
    batch = to_device(next(prepared.loader.epoch(0)), run.device)
    training.set_modes()
    unit = _count(lambda: run.target_module(batch.x))
    updates, run.most = 0, 1
    losses: set[str] = set()
    ahead = _count(lambda: training.prepare(most=1)) if isinstance(prepared.method, Prepares) else 0
    run.begin(batch)
    with FlopCounterMode(display=False) as counter:
        whole = 0

        def batches() -> Iterator[Any]:
            nonlocal whole
            yield batch
            whole = counter.get_total_flops()  # what comes now is done once in an epoch

        for update in prepared.method.epoch(run, batches(), training.parts):
            losses.clear()
            losses.update(update.losses)
            training.perform(update, lambda_of(settings, 0))
            updates += 1
    after = counter.get_total_flops() - whole
    source = _source_cost(training, batch) if run.net is not None else 0
    views = 1 if prepared.loader.target.transform is None else settings.views or 0
    shapes = [pair.source_shape for pair in run.pairs]
    size = 4 * len(prepared.loader.target) * max(views, 1) * sum(torch.Size(shape).numel() for shape in shapes)
    return Cost(
        settings.method,
        prepared.rule_name,
        len(batch.x),
        unit,
        whole / unit,
        source / unit,
        updates,
        calls,
        (whole - source) / unit if run.net is not None and views else None,
        size,
        tuple(_remarks(settings, training, views, losses, ahead / unit, after / unit)),
    )


def _source_cost(training: Training, batch: Any) -> int:
    """FLOPs of the source's pass that the method has asked for."""
    run = training.run
    seen = run.known(batch)
    if seen is None:
        return 0
    run.begin(batch)
    return _count(lambda: run.source(batch, logits=bool(seen.logits.shape[1])))


def _remarks(
    settings: TrainingSettings, training: Training, views: int, losses: set[str], ahead: float, after: float
) -> list[str]:
    run, found = training.run, []
    if ahead:
        found.append(f"before the first step the method works once: {ahead:.2f} F for the first batch that it looks at")
    if settings.lambdas is not None and settings.folds is not None:
        trainings, count = len(settings.lambdas) * settings.folds, settings.folds
        found.append(f"before it cross-validation trains {trainings} times, on {count - 1}/{count} of the images")
    if (size := training.accumulation.size) > 1:
        found.append(f"{size} such batches make one step of the optimizer")
    if after:
        found.append(f"after an epoch's last step the method works: {after:.2f} F for the first batches it looks at")
    if training.prepared.rule_name != "total":
        analytic = losses <= {"task"}
        found.append(
            "the regulariser's gradient is analytic: the rule needs no second backward pass"
            if analytic
            else "the rule's two backward passes share one forward pass"
        )
    if run.net is not None and run.net.last:
        found.append(f"the source stops after {run.net.last} where its logits are not asked for")
    if run.net is not None and not views:
        found.append("the cache does not apply: every epoch augments anew; --views N or --no-aug makes it apply")
    elif run.net is not None and settings.cache is None:
        found.append("--cache DIR keeps the source's features: it runs in the first epoch of each view only")
    return found


def _count(call: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
