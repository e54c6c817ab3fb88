"""What a step of a training costs, before it begins: a batch of each of its stages is run, its operations counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from netgraft.finetune.engine.flops import Flops
from netgraft.finetune.engine.folder import Folder
from netgraft.finetune.engine.loader import to_device
from netgraft.finetune.engine.loop import Training
from netgraft.finetune.engine.parts import lambda_of
from netgraft.finetune.engine.prepare import PreparedTraining, prepare
from netgraft.finetune.engine.watch import Quiet
from netgraft.finetune.protocol import Prepares, Staged
from netgraft.finetune.settings import TrainingSettings


@dataclass(frozen=True)
class StageCost:
    """Steps of a training that cost the same, in forward units."""

    name: str
    share: float  # of all steps
    step: float
    source: float


@dataclass(frozen=True)
class Cost:
    """Costs in forward units: 1 is a forward pass of the target over a batch. Plain fine-tuning costs nearly 3.

    Those of a step are means over all steps of the training, which ``stages`` has apart.
    """

    method: str
    combine: str
    batch: int  # images
    forward: int  # FLOPs of the unit
    step: float  # of one batch, all its updates
    source: float  # of the source's passes in it, as far as they run
    updates: float  # per batch
    gradients: float  # backward passes per batch
    cached: float | None  # of one batch once the source's features are in the cache; None without a source
    cache_bytes: int  # of a full cache
    stages: tuple[StageCost, ...]  # those of equal steps, in the order in which they begin
    remarks: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        return asdict(self)


class _Kind(NamedTuple):
    """What tells steps of different cost apart."""

    stage: str
    frozen: int  # tensors that do not train yet
    regularised: bool


@dataclass
class _Counted:
    """FLOPs and numbers of one step."""

    step: int = 0
    source: int = 0
    kept: int = 0  # what a cache would save
    after: int = 0  # what is done once after an epoch's last step
    updates: int = 0
    gradients: int = 0
    losses: set[str] = field(default_factory=set)


def explain(settings: TrainingSettings) -> Cost:
    """The mean cost of a step. Nothing is written. Raises what ``prepare`` raises."""
    prepared = prepare(settings)
    run = prepared.run
    if run.net is not None:
        run.net.cache = None
    counting = _Counting(prepared)
    training = counting.training
    batch = counting.batch
    unit = _count(lambda: run.target_module(batch.x))
    run.most = 1
    ahead = _count(lambda: training.prepare(most=1)) if isinstance(prepared.method, Prepares) else 0
    shares, places = _kinds(training)
    counted = {kind: counting.step(*place) for kind, place in places.items()}

    def mean(name: str) -> float:
        return sum(share * float(getattr(counted[kind], name)) for kind, share in shares.items())

    views = 1 if prepared.loader.target.transform is None else settings.views or 0
    shapes = [pair.source_shape for pair in run.pairs]
    size = 4 * len(prepared.loader.target) * max(views, 1) * sum(torch.Size(shape).numel() for shape in shapes)
    names = _names(list(shares))
    stages = (StageCost(names[k], shares[k], counted[k].step / unit, counted[k].source / unit) for k in shares)
    after = max(one.after for one in counted.values())
    losses = {name for one in counted.values() for name in one.losses}
    return Cost(
        settings.method,
        prepared.rule_name,
        len(batch.x),
        unit,
        mean("step") / unit,
        mean("source") / unit,
        mean("updates"),
        mean("gradients"),
        (mean("step") - mean("kept")) / unit if run.net is not None and views else None,
        size,
        tuple(stages),
        tuple(_remarks(settings, training, views, losses, ahead / unit, after / unit)),
    )


def _kinds(training: Training) -> tuple[dict[_Kind, float], dict[_Kind, tuple[int, int]]]:
    """Each kind's share of the steps, and the epoch and step where it is first met."""
    run, method, settings = training.run, training.prepared.method, training.settings
    batches = len(training.prepared.loader)
    steps: Counter[_Kind] = Counter()
    places: dict[_Kind, tuple[int, int]] = {}
    for run.epoch in range(settings.epochs):
        frozen = len(training.prepared.freezing.at(run.epoch))
        regularised = lambda_of(settings, run.epoch) > 0
        first = run.epoch * batches
        for run.step in range(first, first + batches) if isinstance(method, Staged) else (first,):
            stage = method.stage(run) if isinstance(method, Staged) else ""
            kind = _Kind(stage, frozen, regularised)
            places.setdefault(kind, (run.epoch, run.step))
            steps[kind] += 1
    run.epoch = run.step = 0
    return {kind: count / steps.total() for kind, count in steps.items()}, places


def _names(kinds: list[_Kind]) -> dict[_Kind, str]:
    """What is said of a stage: that in which it differs from others."""
    differ = [len(set(each)) > 1 for each in zip(*kinds, strict=True)]
    found = {}
    for kind in kinds:
        words = kind.stage, f"{kind.frozen} tensors frozen", f"lambda {'above' if kind.regularised else 'is'} 0"
        found[kind] = ", ".join(word for word, wanted in zip(words, differ, strict=True) if wanted)
    return found


class _Counting:
    """A training of which single steps are performed."""

    def __init__(self, prepared: PreparedTraining) -> None:
        self.calls, self.losses = 0, set[str]()
        rule = prepared.rule

        def counted(names: Any, grads: Any) -> Any:
            def ask(*groups: Any) -> Any:
                self.calls += sum(any(name in self.losses for name in group) for group in groups)
                return grads(*groups)

            return rule(names, ask)

        folder = Folder(Path(prepared.settings.out))
        self.training = Training(replace(prepared, rule=counted), folder, Quiet())
        self.batch = to_device(next(prepared.loader.epoch(0)), prepared.run.device)
        self.training.set_modes()

    def step(self, epoch: int, step: int) -> _Counted:
        """Perform all updates of one batch in this place of the training."""
        training, run, found = self.training, self.training.run, _Counted()
        run.epoch, run.step, self.calls = epoch, step, 0
        training.set_modes()
        training.accumulation.begin(0)
        run.begin(self.batch)
        with Flops(run.source_module) as flops:

            def batches() -> Iterator[Any]:
                yield self.batch
                found.step, found.source, found.kept = flops.total, flops.source, flops.kept

            for update in training.prepared.method.epoch(run, batches(), training.parts):
                self.losses.clear()
                self.losses.update(update.losses)
                training.perform(update, lambda_of(training.settings, epoch))
                found.updates += 1
                found.losses.update(update.losses)
            found.after = flops.total - found.step
        found.gradients = self.calls
        return found


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
    with Flops() as flops:
        call()
    return flops.total
