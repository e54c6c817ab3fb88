"""Fine-tuning as everybody does it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from netgraft.finetune.protocol import Batch, Need, Part, Run, Update


@dataclass(frozen=True)
class Plain:
    """All weights train on the task's loss alone, from the initialisation.

    d = grad J, with J the mean cross-entropy of the target's logits.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    category: ClassVar[str] = "network"

    def parts(self, run: Run) -> Mapping[str, Part]:
        return {"target": Part(run.target_module)}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:  # noqa: ARG002
        for batch in batches:
            yield Update(("target",), {"task": run.task(run.target(batch), batch)})
