"""The folder of a training: ``config.json``, ``metrics.jsonl``, ``metrics.csv``, ``best`` and ``last.safetensors``,
``state.pt`` to go on from, ``pictures/`` of methods that make any, ``tensorboard/`` where TensorBoard is installed,
``cross_validation.csv`` with --folds. Files are replaced whole or not at all.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from netgraft.errors import OutputError, UsageError
from netgraft.files.atomic import written
from netgraft.files.checkpoint import write_checkpoint
from netgraft.finetune.settings import TrainingSettings, option

CONFIG, STATE, BEST, LAST = "config.json", "state.pt", "best.safetensors", "last.safetensors"
PICTURES = "pictures"
TABLE, FOLDS = "cross_validation.csv", "cross_validation"
WRITTEN = (CONFIG, STATE, BEST, LAST, TABLE, "metrics.jsonl", "metrics.csv")


class Folder:
    """Where a training writes."""

    def __init__(self, path: Path, again: Path | None = None) -> None:
        """``again`` is the configuration that the training goes on with; its own where there is none."""
        self.path, self.again = path, again or path / CONFIG

    @property
    def state(self) -> Path:
        return self.path / STATE

    def check(self, settings: TrainingSettings, *, resume: bool, force: bool) -> bool:
        """Whether there is a state to go on from. Raises before anything is written: OutputError, UsageError."""
        path = self.path
        if path.exists() and not path.is_dir():
            raise OutputError("The output is a file, not a folder.", where=str(path), hint="Choose another --out.")
        above = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not os.access(above, os.W_OK | os.X_OK):
            raise OutputError("The output's folder is not writable.", where=str(above), hint="Choose another --out.")
        begun = any((path / name).exists() for name in WRITTEN)
        if not begun or (force and not resume):
            return False
        if not resume:
            hint = "Add --resume auto to go on with it, --force to begin anew, or choose another --out."
            raise OutputError("There is a training in this folder.", where=str(path), hint=hint)
        if not self.state.exists():
            return False
        self.check_same(settings)
        return True

    def check_same(self, settings: TrainingSettings) -> None:
        """Raise UsageError unless the training began with these settings."""
        try:
            before = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError("The configuration cannot be read.", where=f"{self.path / CONFIG}: {error}") from error
        before = TrainingSettings("", "", "").document() | before  # what an older version did not know
        now = settings.resumable()
        changed = [name for name in now if now[name] != before.get(name)]
        if changed:
            where = "; ".join(f"--{option(name)}: {before.get(name)!r} then, {now[name]!r} now" for name in changed)
            again = f"netgraft finetune -c {shlex.quote(str(self.again))} --resume auto"
            hint = f"Type {again}, or choose another --out."
            raise UsageError("A training goes on with the settings that it began with.", where=where, hint=hint)

    def create(self, settings: TrainingSettings) -> None:
        """An empty folder with the configuration; what was there of a training is removed."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in WRITTEN:
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / FOLDS, ignore_errors=True)
            for picture in self.pictures():
                picture.unlink()
            self._write(CONFIG, json.dumps(settings.document(), indent=2) + "\n")
        except OSError as error:
            raise OutputError("The folder cannot be written.", where=f"{self.path}: {error}") from error

    def write_metrics(self, history: Sequence[Mapping[str, Any]]) -> None:
        """The record of every epoch so far."""
        self._write("metrics.jsonl", "".join(json.dumps(record) + "\n" for record in history))
        columns = list(dict.fromkeys(name for record in history for name in record))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        self._write("metrics.csv", text.getvalue())

    def write_weights(self, name: str, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        write_checkpoint(self.path / name, tensors, provenance, force=True)

    def pictures(self) -> list[Path]:
        """Those that a training wrote, by epoch."""
        return sorted((self.path / PICTURES).glob("epoch-*.png"), key=lambda path: (len(path.name), path.name))

    def write_picture(self, epoch: int, content: bytes) -> None:
        """The PNG of an epoch, 1, 2, ... Raises OutputError."""
        try:
            (self.path / PICTURES).mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError("The folder cannot be written.", where=f"{self.path / PICTURES}: {error}") from error
        self.write_bytes(f"{PICTURES}/epoch-{epoch}.png", content)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Whole and on the disk, or not at all. Raises OutputError."""
        with written(self.path / name) as file:
            file.write(content)

    def _write(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())
