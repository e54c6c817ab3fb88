"""What a method does before the first batch, for those that do anything: ``protocol.Prepares``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from netgraft.finetune.engine.loader import Loader, to_device
from netgraft.finetune.engine.run import LiveRun
from netgraft.finetune.protocol import Batch, Part, Prepares


def before_first_batch(
    method: Prepares, run: LiveRun, loader: Loader, parts: Mapping[str, Part], *, most: int | None = None
) -> None:
    """Let the method prepare, with at most ``most`` batches a pass; then all processes have what the first one has.

    The parts are in the modes in which they train.
    """
    run.at("before")
    method.prepare(run, _Passage(run, loader, most), parts)
    run.moved = True
    run.processes.broadcast(part.module for part in parts.values())


@dataclass
class _Passage:
    """The batches of the first epoch, again whenever it is asked for them."""

    run: LiveRun
    loader: Loader
    most: int | None

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.loader.epoch(0)):
            if number == self.most:
                return
            self.run.begin_extra(number)
            yield to_device(batch, self.run.device)
        self.run.at("before")
