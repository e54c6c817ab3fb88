"""Fine-tuning of the classifier alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from netgraft.finetune.protocol import Batch, Need, Part, Run, Update


@dataclass(frozen=True)
class FrozenFeatures:
    """The classifier alone trains, on the frozen features of the initialisation.

    d = grad J with respect to the head; everything else, BatchNorm's statistics included, stays as it is.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.START})
    category: ClassVar[str] = "network"
    plain_when: ClassVar[None] = None

    def parts(self, run: Run) -> Mapping[str, Part]:
        return {"target": Part(run.target_module, trained=run.heads)}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:  # noqa: ARG002
        for batch in batches:
            yield Update(("target",), {"task": run.task(run.target(batch), batch)})
