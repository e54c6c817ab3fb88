"""Who looks on at a training: told of every batch and epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from netgraft.finetune.engine.meters import Meters
    from netgraft.finetune.engine.prepare import PreparedTraining


class Watch(Protocol):
    """Told of every batch and epoch."""

    def begin(self, prepared: PreparedTraining, step: int, batches: int) -> None: ...
    def batch(self, epoch: int, step: int, images: int, meters: Meters) -> None: ...
    def epoch(self, record: Mapping[str, Any]) -> None: ...
    def say(self, text: str) -> None: ...


class Quiet:
    """Nobody looks on."""

    def begin(self, prepared: PreparedTraining, step: int, batches: int) -> None: ...
    def batch(self, epoch: int, step: int, images: int, meters: Meters) -> None: ...
    def epoch(self, record: Mapping[str, Any]) -> None: ...
    def say(self, text: str) -> None: ...
