"""On which images the epochs are measured, and by which of them ``best.safetensors`` is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from netgraft.data.pictures import Pixels
from netgraft.finetune.engine.evaluate import evaluate
from netgraft.finetune.engine.processes import Processes
from netgraft.finetune.engine.retrieve import Search, retrieve
from netgraft.finetune.engine.run import LiveRun
from netgraft.finetune.toolbox.domains import head_of

WARNING = (
    "note: best.safetensors is chosen on the test images, so its test accuracy is too high. "
    "Report that of last.safetensors, or hold out images to choose by: --val-split 0.1"
)


@dataclass(frozen=True)
class Judge:
    """Measures every epoch on the test images (``eval_``) and on those held out for validation (``val_``)."""

    test: Pixels | None  # None where they must not be looked at, or there are only queries and a gallery
    validation: Pixels | None = None
    search: Search | None = None

    @property
    def chosen_on(self) -> str:
        """The images by which ``best`` is chosen, for records: "validation", or "test" where none are held out."""
        return "test" if self.validation is None else "validation"

    @property
    def warning(self) -> str:
        """What must be said of ``best``; empty where it is chosen fairly."""
        return WARNING if self.validation is None else ""

    def measure(self, module: nn.Module, run: LiveRun, processes: Processes, batch_size: int) -> dict[str, float]:
        """What ``evaluate`` and ``retrieve`` find, by name; every process must call it."""
        sets = {"val": self.validation, "eval": self.test}
        found: dict[str, float] = {}
        with run.numbers.drawing():
            for prefix, pixels in sets.items():
                if pixels is not None:
                    measured = evaluate(module, pixels, processes, run.autocast, batch_size)
                    found |= {f"{prefix}_{name}": value for name, value in measured.items()}
            if self.search is not None:
                searched = retrieve(module, head_of(run), self.search, processes, run.autocast, batch_size)
                found |= {f"eval_{name}": value for name, value in searched.items()}
        return found

    @property
    def measure_name(self) -> str:
        """The measure by which ``best`` is chosen: top-1 accuracy, or mAP.

        It is mAP where images have several classes, and of the test images where they are searched.
        """
        judged = self.test if self.validation is None else self.validation
        searched = self.validation is None and self.search is not None
        return "map" if searched or (judged is not None and judged.pictures.multilabel) else "top1"

    def better(self, record: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
        """Whether a measured epoch is more accurate than the best one before it, which may be none."""
        name = f"{'eval' if self.validation is None else 'val'}_{self.measure_name}"
        return name in record and (not best or record[name] > best[name])
