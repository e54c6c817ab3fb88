"""The one loop: a method yields updates, and each is performed - gradients, all-reduce, combine rule, step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netgraft.data.folds import HeldOutFold
from netgraft.finetune.engine.accumulation import Accumulation
from netgraft.finetune.engine.before_training import before_first_batch
from netgraft.finetune.engine.cross_validation import cross_validated
from netgraft.finetune.engine.diverged import Diverged
from netgraft.finetune.engine.folder import BEST, LAST, Folder
from netgraft.finetune.engine.freezing import freeze_names, without
from netgraft.finetune.engine.gradients import Gradients, scaled
from netgraft.finetune.engine.loader import to_device
from netgraft.finetune.engine.loss_scale import SMALLEST
from netgraft.finetune.engine.meters import Meters
from netgraft.finetune.engine.parts import (
    check_parts,
    check_something_trains,
    freeze,
    lambda_of,
    make_optimizer,
    make_schedule,
    parameters_of,
    set_train_mode,
)
from netgraft.finetune.engine.pictures import are_due, write_pictures
from netgraft.finetune.engine.prepare import PreparedTraining, prepare
from netgraft.finetune.engine.rates import rate_of, scale_rates
from netgraft.finetune.engine.record import open_tensorboard, provenance_of
from netgraft.finetune.engine.result import Result
from netgraft.finetune.engine.signals import Signals
from netgraft.finetune.engine.state import load_state, random_modules, save_state
from netgraft.finetune.engine.watch import Quiet, Watch
from netgraft.finetune.protocol import TARGET, Batch, Need, Prepares, Shows, Update
from netgraft.finetune.settings import TrainingSettings
from netgraft.finetune.toolbox.momentum import begin_momentum


def finetune(
    settings: TrainingSettings, *, resume: bool = False, force: bool = False, watch: Watch | None = None
) -> Result:
    """Train, and leave the folder behind. Same settings, same bytes on a CPU.

    Raises a NetgraftError before any work for what is wrong with the input, Diverged if a loss is not finite, and
    KeyboardInterrupt after Ctrl-C, with the state saved.
    """
    watch = watch or Quiet()
    folder = Folder(Path(settings.out))
    if settings.lambdas is not None:
        return cross_validated(settings, _train, resume=resume, force=force, watch=watch)
    going_on = folder.check(settings, resume=resume, force=force)
    return _train(settings, folder, watch, lambda: folder.create(settings), going_on=going_on)


def _train(
    settings: TrainingSettings,
    folder: Folder,
    watch: Watch,
    begin: Callable[[], None],
    *,
    going_on: bool,
    fold: HeldOutFold | None = None,
) -> Result:
    prepared = prepare(settings, watch.say if fold is None else lambda _: None, fold)
    training = Training(prepared, folder, watch)
    if going_on:
        training.load()
    else:
        prepared.processes.wait()  # all have looked at the folder
        if prepared.processes.first:
            begin()
    prepared.processes.wait()
    return training.all()


@dataclass
class Training:
    """A training on its way."""

    prepared: PreparedTraining
    folder: Folder
    watch: Watch
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    first: int = 0  # batches of the epoch that are done already
    resumed: bool = False

    def __post_init__(self) -> None:
        p = self.prepared
        self.settings, self.run, self.processes = p.settings, p.run, p.processes
        target, frozen = self.run.target_module, p.freezing.always
        freeze_names(target, frozen)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            self.parts = dict(p.method.parts(self.run))
        check_parts(self.parts, self.run.target_module)
        if Need.START in p.needs:
            _ = self.run.start, self.run.start_buffers  # copied before the first step
        for part in self.parts.values():
            part.module.to(self.run.device)
            freeze(part)
        freeze_names(target, frozen)  # again, for parts say what of them trains
        self.parameters = {name: parameters_of(part) for name, part in self.parts.items()}
        self.trained = self.parameters[TARGET]  # in some epoch
        self.run.parts = self.parts
        self.run.optimizers = {
            name: make_optimizer(part, self.settings) for name, part in self.parts.items() if self.parameters[name]
        }
        if TARGET in self.run.optimizers:
            scale_rates(self.run.optimizers[TARGET], p.factors, scheduled=self.settings.sched != "none")
        self.schedules = [
            schedule
            for optimizer in self.run.optimizers.values()
            if (schedule := make_schedule(optimizer, self.settings, len(p.loader))) is not None
        ]
        self.set_modes()
        check_something_trains(self.parameters, self.settings)
        self.modules: dict[str, nn.Module] = {name: part.module for name, part in self.parts.items()}
        random_modules(self.modules, self.run)
        self.ema = self._make_ema()
        if self.ema is not None:
            self.modules["(ema)"] = self.ema
        self.accumulation = Accumulation(p.loader.group)
        clip, self.loss_scale = self.settings.clip_grad, self.run.loss_scale
        self.gradients = Gradients(self.processes, p.rule, clip, self.accumulation, self.loss_scale)
        self.signals = Signals()
        self.told: Tensor | None = None  # what the last collective said of the signals of all processes
        self.last_saved = ""
        self.weight = 1.0  # of this process's samples in the average over processes
        self.writer: Any = None

    # -------------------------------------------------------------------------------------------------------- the loop

    def set_modes(self) -> None:
        """Updates step what trains in this epoch, in train mode; norms of the rest stand still.

        What is yet to thaw keeps ``requires_grad``: what methods find to train is the same in all epochs.
        """
        frozen = self.prepared.freezing.at(self.run.epoch)
        self.parameters[TARGET] = without(self.run.target_module, self.trained, frozen)
        if self.settings.unfreeze_every is not None and TARGET in self.run.optimizers:
            begin_momentum(self.run.optimizers[TARGET])
        set_train_mode(self.parts, bn=self.settings.bn, frozen=frozen)

    def prepare(self, most: int | None = None) -> None:
        """What the method does before the first batch, with at most so many batches a pass."""
        self.set_modes()
        if isinstance(self.prepared.method, Prepares):
            before_first_batch(self.prepared.method, self.run, self.prepared.loader, self.parts, most=most)
            if self.ema is not None:
                self.ema.set(self.run.target_module)

    def all(self) -> Result:
        """Every epoch that is left."""
        batches = len(self.prepared.loader)
        self.writer = open_tensorboard(self.settings, self.folder) if self.processes.first else None
        self.watch.begin(self.prepared, self.run.step, batches)
        if not self.resumed:
            self.prepare()
        with self.signals:
            while self.run.epoch < self.settings.epochs:
                self._epoch()
        chosen_on = self.prepared.judge.chosen_on
        pictures = tuple(self.folder.pictures())
        first = self.processes.first
        return Result(self.folder.path, self.history, self.best, chosen_on, self.resumed, first, pictures=pictures)

    def _epoch(self) -> None:
        began, done = time.perf_counter(), self.first
        self.set_modes()
        self.run.at(f"begin {self.run.epoch}")
        factor = lambda_of(self.settings, self.run.epoch)
        updates = self.prepared.method.epoch(self.run, self._batches(), self.parts)
        for update in updates:
            self.perform(update, factor)
        images = (len(self.prepared.loader) - done) * self.prepared.loader.whole
        self._end_epoch(factor, images / (time.perf_counter() - began))

    def _batches(self) -> Iterator[Batch]:
        """The epoch's batches. What follows a batch is done when the method asks for the next one."""
        loader = self.prepared.loader
        weight = loader.weight()
        for number, batch in enumerate(loader.epoch(self.run.epoch, self.first), self.first):
            self.accumulation.begin(number)
            for schedule in self.schedules if self.accumulation.place == 0 else ():
                schedule.step_update(self.run.step)
            batch = to_device(batch, self.run.device)
            self.run.begin(batch)
            self.weight = weight
            yield batch
            self._end_batch(number + 1, loader.whole)
        self.run.at(f"end {self.run.epoch}")

    def perform(self, update: Update, factor: float) -> None:
        """One step of the update's optimizers; ``factor`` is lambda."""
        update_scaled = scaled(update, factor)
        if update_scaled is None:
            return
        parameters = [parameter for name in update.parts for parameter in self.parameters[name]]
        performed = self.gradients(update_scaled, parameters, weight=self.weight, stop=self.signals.asked)
        if performed is None:
            return
        for name in update.parts if performed.stepping else ():
            if name in self.run.optimizers:
                self.run.optimizers[name].step()
        for parameter in parameters:
            parameter.grad = None
        for name, value in {**performed.values, **performed.telemetry}.items():
            self.run.meters.add(name, value)
        self.told = performed.stop
        if self.run.device.type == "cpu":  # elsewhere looking would wait for the device: it is done now and then
            self._check_finite(performed.values)
        if self.loss_scale is not None:
            self._note_scale(self.loss_scale.value, performed.stepping)

    def _end_batch(self, done: int, images: int) -> None:
        self.accumulation.end()
        self.run.step += 1
        stepped, size = self.accumulation.last, self.accumulation.size
        if self.ema is not None and stepped:
            self.ema.update(self.run.target_module, self.run.step // size)
        looking = self.run.step % self.settings.log_interval == 0
        every = self.settings.recovery_interval
        saving = stepped and every > 0 and self.run.step // every > (self.run.step - size) // every
        if looking or saving:
            self._check_finite(self.run.meters.means())
        leaving = stepped and self._asked(looking or saving)
        if saving or leaving:
            self._save(done)
        self.watch.batch(self.run.epoch, self.run.step, images, self.run.meters)
        if leaving:
            self._leave()

    def _asked(self, looking: bool) -> bool:
        """Whether a process was told to stop: the same answer everywhere, so that all of them save."""
        if self.processes.world == 1:
            return self.signals.asked
        return self.told is not None and (looking or self.run.device.type == "cpu") and bool(self.told > 0)

    def _end_epoch(self, factor: float, speed: float) -> None:
        run = self.run
        self._check_finite(run.meters.means())
        for part in self.parts.values():
            self.processes.average_statistics(part.module)
        module = self.ema.module if self.ema is not None else run.target_module
        measured: dict[str, float] = {}
        if (run.epoch + 1) % self.settings.val_interval == 0 or run.epoch + 1 == self.settings.epochs:
            size = max(128, self.settings.batch_size)
            measured = self.prepared.judge.measure(module, run, self.processes, size)
        rate = rate_of(run.optimizers[TARGET]) if TARGET in run.optimizers else 0.0
        record = {"epoch": run.epoch, "step": run.step, "lr": rate, "lambda": factor}
        record |= {f"train_{name}": value for name, value in run.meters.means().items()}
        record |= measured
        better = self.prepared.judge.better(record, self.best)
        self.best = record if better else self.best
        self.history.append(record | {"images_per_second": round(speed, 1)})
        if self.processes.first:
            provenance = provenance_of(self.prepared, record)
            for name in (BEST, LAST) if better else (LAST,):
                self.folder.write_weights(name, _tensors(module), provenance)
            self.folder.write_metrics(self.history)
            method, settings, test = self.prepared.method, self.settings, self.prepared.judge.test
            if isinstance(method, Shows) and test is not None and are_due(settings, run.epoch):
                write_pictures(method, run, self.parts, test, settings.pictures, self.folder)
            if self.writer is not None:
                for name, value in record.items():
                    self.writer.add_scalar(name.replace("_", "/", 1), value, run.step)
                self.writer.flush()
        run.epoch += 1
        run.meters, self.first = Meters(), 0
        self._save(0)
        self.watch.epoch(self.history[-1])

    # ----------------------------------------------------------------------------------------------- saving and leaving

    def load(self) -> None:
        """Go on where the folder's state was taken."""
        self.first, rest = load_state(self.folder, self.run, self.modules)
        self.history, self.best, self.resumed = rest["history"], rest["best"], True

    def _save(self, batch: int) -> None:
        save_state(self.folder, self.run, self.modules, batch=batch, rest={"history": self.history, "best": self.best})
        self.last_saved = f"{self.folder.state} (epoch {self.run.epoch}, batch {batch})"

    def _check_finite(self, values: Mapping[str, Tensor | float]) -> None:
        bad = [name for name, value in values.items() if not bool(torch.as_tensor(value).isfinite())]
        if bad:
            where = f"epoch {self.run.epoch}, step {self.run.step}: {', '.join(bad)}"
            good = f"The last good state is {self.last_saved}. " if self.last_saved else ""
            hint = f"{good}A smaller --lr, --clip-grad 1 or a smaller --lambda may help."
            raise Diverged("A loss is not finite.", where=where, hint=hint)

    def _note_scale(self, scale: float, stepping: bool) -> None:
        self.run.meters.add("loss_scale", scale)
        self.run.meters.add("skipped", float(not stepping))
        if scale < SMALLEST:
            what = "A gradient is not finite, however small the factor of the losses."
            hint = "--amp-dtype bfloat16 has a larger range; a smaller --lr or --lambda may help."
            raise Diverged(what, where=f"epoch {self.run.epoch}, step {self.run.step}", hint=hint)

    def _leave(self) -> None:
        """The state is saved: say how to go on, and let the signal do what it would have done."""
        if self.processes.first:
            self.watch.say(f"Saved. Go on with: netgraft finetune -c {self.folder.again} --resume auto")
        self.signals.pass_on()

    def _make_ema(self) -> Any:
        if not self.settings.model_ema:
            return None
        from timm.utils import ModelEmaV3

        return ModelEmaV3(self.run.target_module, decay=self.settings.model_ema_decay)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
