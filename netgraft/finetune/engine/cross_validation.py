"""lambda by cross-validation over the training images: a training for each value and fold, then one on all images."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from netgraft.data.folds import HeldOutFold
from netgraft.errors import CorruptFile
from netgraft.finetune.engine.diverged import Diverged
from netgraft.finetune.engine.folder import CONFIG, FOLDS, TABLE, Folder
from netgraft.finetune.engine.processes import Processes
from netgraft.finetune.engine.result import LambdaChoice, Result, Row
from netgraft.finetune.engine.watch import Quiet, Watch
from netgraft.finetune.settings import TrainingSettings


class Train(Protocol):
    """A training in a folder; ``begin`` writes its first files when nothing is left that could be refused."""

    def __call__(
        self,
        settings: TrainingSettings,
        folder: Folder,
        watch: Watch,
        begin: Callable[[], None],
        *,
        going_on: bool,
        fold: HeldOutFold | None = None,
    ) -> Result: ...


def cross_validated(settings: TrainingSettings, train: Train, *, resume: bool, force: bool, watch: Watch) -> Result:
    """Choose lambda, and train with it. The test images are opened for the last training only.

    The folder keeps the table of what is done; the folder of a fold is removed when its row is in it.
    """
    assert settings.lambdas is not None
    assert settings.folds is not None
    folder = Folder(Path(settings.out))
    going_on = folder.check(settings, resume=resume, force=force)
    begun = resume and (folder.path / CONFIG).exists()
    if begun:
        folder.check_same(settings)
    rows = _read(folder) if begun else []
    processes = Processes(settings.device)
    processes.wait()  # all have read the table
    for lam in settings.lambdas:
        for number in range(settings.folds):
            if any((row.lam, row.fold) == (lam, number) for row in rows):
                continue
            rows.append(_one(settings, lam, HeldOutFold(number, settings.folds), folder, train, watch, begun=begun))
            begun = True
            if processes.first:
                _write(folder, rows)
                shutil.rmtree(folder.path / FOLDS, ignore_errors=True)
            processes.wait()
            watch.say(_told(rows[-1], settings.folds))
    choice = LambdaChoice(settings.lambdas, settings.folds, tuple(rows))
    watch.say(f"lambda {choice.best:g} is the best by cross-validation; training on all images")
    result = train(replace(settings, lam=choice.best), folder, watch, lambda: None, going_on=going_on)
    return replace(result, choice=choice)


def _one(
    settings: TrainingSettings, lam: float, fold: HeldOutFold, whole: Folder, train: Train, watch: Watch, *, begun: bool
) -> Row:
    """One training, gone on with where it was interrupted."""
    path = whole.path / FOLDS / f"lambda {lam} fold {fold.number + 1}"
    folder = Folder(path, again=whole.path / CONFIG)
    chosen = replace(
        settings, lam=lam, lambdas=None, folds=None, out=str(path), val_interval=settings.epochs, tensorboard=False
    )

    def begin() -> None:
        if not begun:
            whole.create(settings)
        folder.create(chosen)

    going_on = begun and folder.check(chosen, resume=True, force=False)
    try:
        result = train(chosen, folder, _Saying(watch), begin, going_on=going_on, fold=fold)
    except Diverged:
        return Row(lam, fold.number, None)
    return Row(lam, fold.number, result.history[-1]["val_top1"])


class _Saying(Quiet):
    """Of a fold's training nothing is shown but what it says."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def say(self, text: str) -> None:
        self.watch.say(text)


def _told(row: Row, folds: int) -> str:
    came = "diverged" if row.top1 is None else f"validation {row.top1:.2f} %"
    return f"lambda {row.lam:g}, fold {row.fold + 1} of {folds}: {came}"


COLUMNS = ["lambda", "fold", "val_top1"]


def _write(folder: Folder, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((row.lam, row.fold + 1, "diverged" if row.top1 is None else row.top1) for row in rows)
    folder.write_bytes(TABLE, text.getvalue().encode())


def _read(folder: Folder) -> list[Row]:
    """The rows that are done. Raises CorruptFile."""
    file = folder.path / TABLE
    if not file.exists():
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
        return [
            Row(float(lam), int(fold) - 1, None if top1 == "diverged" else float(top1))
            for lam, fold, top1 in ([row[name] for name in COLUMNS] for row in rows)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "Begin anew: --force."
        raise CorruptFile("The table of folds cannot be read.", where=f"{file}: {error}", hint=hint) from error
