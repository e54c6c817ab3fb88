"""One fine-tuning by netgraft's own engine, and what is kept of it: accuracy along the way, and what a step costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import NORMALISATION, OPTIMISERS, TRAINING, Cell
from draws import drawn
from initial import CLASSES, with_seed


@dataclass(frozen=True)
class Run:
    """What tells fine-tunings apart."""

    data: str
    cell: str
    row: str
    samples: int  # pictures of each kind
    optimiser: str
    rate: float
    judged: str  # "validation" where a rate is chosen, "test" for results
    seed: int  # of the draw, the classifier and the order

    @property
    def name(self) -> str:
        """That of its file."""
        place = f"{self.data}_{self.cell}_{self.row}_{self.samples}"
        return f"{place}_{self.optimiser}_{self.rate:g}_{self.judged}_{self.seed}"


def fine_tune(
    run: Run, cell: Cell, pictures: Path, checkpoint: Path | None, *, epochs: int, every: int, device: str
) -> dict[str, Any]:
    """The facts about a run, as JSON: ``curve`` is a list of [steps, accuracy in percent, loss], every few epochs.

    A training that diverges has the accuracy 0. ``checkpoint`` is None for a target of random weights.
    """
    from netgraft.finetune.engine.diverged import Diverged
    from netgraft.finetune.engine.loop import finetune
    from netgraft.finetune.settings import TrainingSettings

    options = {name: value for name, value in OPTIMISERS[run.optimiser].items() if name != "rates"}
    began = time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = drawn(pictures, run.judged, run.samples, run.seed, folder / "pictures")
        init = None if checkpoint is None else str(with_seed(checkpoint, cell, run.seed, folder / "init.safetensors"))
        settings = TrainingSettings(
            cell.target,
            str(data),
            str(folder / "run"),
            init=init,
            target_arg={**cell.args, "num_classes": CLASSES},
            input_size=cell.input_size,
            epochs=epochs,
            val_interval=every,
            lr=run.rate,
            seed=run.seed,
            device=device,
            **TRAINING,
            **NORMALISATION,
            **options,
        )
        try:
            history = finetune(settings).history
            curve = [[each["step"], each["eval_top1"], each["eval_loss"]] for each in history if "eval_top1" in each]
        except Diverged:
            curve = [[0, 0.0, float("inf")]]
    facts = {"curve": curve, "accuracy": curve[-1][1], "loss": curve[-1][2]}
    return facts | {"gflops_of_step": step_cost(cell), "cpu_seconds": round(time.process_time() - began, 1)}


def step_cost(cell: Cell) -> float:
    """GFLOPs of a step: of a forward pass on its images, and twice as many of the backward pass."""
    from netgraft.architecture.cost import multiply_adds
    from netgraft.trace import trace

    graph = trace(cell.side(CLASSES, cell.input_size).load())
    return round(3 * 2 * multiply_adds(graph, TRAINING["batch_size"]) / 1e9, 3)


def best_rate(found: Mapping[float, list[Mapping[str, Any]]]) -> float:
    """The rate whose runs have the highest mean accuracy; of equal ones the one with the lower mean loss."""

    def worth(rate: float) -> tuple[float, float]:
        runs = found[rate]
        return sum(each["accuracy"] for each in runs) / len(runs), -sum(each["loss"] for each in runs) / len(runs)

    return max(found, key=worth)
