"""A training as people see it: progress on stderr, a table at the end, and what a method is."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from netgraft.report.text import safe, size_text, table

if TYPE_CHECKING:
    from netgraft.finetune.engine.explain import Cost
    from netgraft.finetune.engine.meters import Meters
    from netgraft.finetune.engine.prepare import PreparedTraining
    from netgraft.finetune.engine.result import LambdaChoice, Result
    from netgraft.plugins import Description

REFRESH = 0.5  # seconds between two looks at the losses, which wait for the device
TITLES = {"eval_top1": "accuracy", "eval_top5": "top-5", "eval_top10": "top-10"}
TITLES |= {"eval_cmc1": "rank-1", "eval_cmc5": "rank-5", "eval_cmc10": "rank-10", "eval_map": "mAP"}
"""How measures are called, in their order; top-5 is left out where there is no top-10."""


class Lines:
    """One line per epoch, for files and pipes."""

    def begin(self, prepared: PreparedTraining, step: int, batches: int) -> None:  # noqa: ARG002
        self.quiet = not prepared.processes.first

    def batch(self, epoch: int, step: int, images: int, meters: Meters) -> None:
        """Nothing: an epoch is soon enough."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        if not self.quiet:
            self.say(epoch_text(record))

    def say(self, text: str) -> None:
        print(safe(text), file=sys.stderr, flush=True)


class Silence(Lines):
    """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class Bar(Lines):
    """A bar on the terminal: losses, throughput, time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
        self.progress = Progress(*columns, console=self.console)
        self.task: Any = None
        self.looked, self.images, self.began = 0.0, 0, time.monotonic()

    def begin(self, prepared: PreparedTraining, step: int, batches: int) -> None:
        super().begin(prepared, step, batches)
        if not self.quiet:
            self.task = self.progress.add_task("", total=prepared.run.steps, completed=step)
            self.progress.start()
            self.began = time.monotonic()

    def batch(self, epoch: int, step: int, images: int, meters: Meters) -> None:
        self.images += images
        now = time.monotonic()
        if self.quiet or now - self.looked < REFRESH:
            return
        self.looked = now
        losses = "  ".join(f"{name} {value:.3g}" for name, value in meters.means().items())
        speed = self.images / (now - self.began)
        text = f"epoch {epoch + 1}  {losses}  {speed:,.0f} images/s".replace("[", r"\[")
        self.progress.update(self.task, completed=step, description=text)

    def say(self, text: str) -> None:
        self.console.print(safe(text), markup=False, highlight=False)


@contextmanager
def watching() -> Iterator[Lines]:
    """Who looks on at a training: a bar where stderr is a terminal, else lines."""
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        yield Silence()
        return
    if not sys.stderr.isatty():
        yield Lines()
        return
    bar = Bar()
    try:
        yield bar
    finally:
        bar.progress.stop()


def epoch_text(record: Mapping[str, Any]) -> str:
    losses = ", ".join(f"{n[6:]} {v:.4g}" for n, v in record.items() if n.startswith("train_"))
    speed = f"{record['images_per_second']:,.0f} images/s"
    held_out, tested = chief(record, "val"), chief(record, "eval")
    validation = f"; validation {record[held_out]:.2f} %" if held_out else ""
    accuracy = f"; {TITLES[tested]} {record[tested]:.2f} %" if tested else ""
    return f"epoch {record['epoch'] + 1}: {losses}{validation}{accuracy}; {speed}"


def chief(record: Mapping[str, Any], images: str) -> str:
    """The name of the measure by which epochs are compared; empty where the epoch was not measured."""
    return next((name for each in ("map", "top1") if (name := f"{images}_{each}") in record), "")


def result_lines(result: Result) -> list[str]:
    """The best and the last epoch, and where the weights are."""
    last = result.history[-1]
    shown = [name for name in TITLES if name in last and (name != "eval_top5" or "eval_top10" in last)]
    rows = [
        (
            name,
            str(r["epoch"] + 1),
            *(f"{r[measure]:.2f} %" for measure in shown),
            f"{r['eval_loss']:.4f}" if "eval_loss" in r else "-",
            f"{r.get('train_task', 0.0):.4f}",
        )
        for name, r in (("best", result.best), ("last", last))
    ]
    lines = [] if result.choice is None else [*choice_lines(result.choice), ""]
    titles = "weights", "epoch", *(TITLES[measure] for measure in shown), "test loss", "training loss"
    lines += table(titles, rows)
    if result.chosen_on == "test":
        what = TITLES[chief(last, "eval")]
        lines.append(f"best was chosen on these test images: its {what} is too high, report that of last")
    else:
        measure = chief(last, "val")
        value, mean = result.best[measure], "" if measure == "val_top1" else "mAP "
        lines.append(f"best was chosen on validation images: {mean}{value:.2f} %{'' if mean else ' of them'}")
    files = ", ".join(str(result.folder / f"{name}.safetensors") for name in ("best", "last"))
    shown = [safe(f"wrote {result.pictures[-1]}")] if result.pictures else []
    return [*lines, "", safe(f"wrote {files}"), *shown]


def result_document(result: Result) -> dict[str, Any]:
    return {
        "out": str(result.folder),
        **({} if result.choice is None else {"lambda": choice_document(result.choice)}),
        "best_chosen_on": result.chosen_on,
        "best": result.best,
        "last": result.history[-1],
        "epochs": result.history,
    }


def choice_lines(choice: LambdaChoice) -> list[str]:
    """The accuracies of all lambdas on the folds, and which is the best."""

    def percent(value: float | None) -> str:
        return "diverged" if value is None else f"{value:.2f} %"

    heading = ("lambda", "mean", *(f"fold {number + 1}" for number in range(choice.folds)))
    rows = [(f"{lam:g}", *map(percent, (choice.mean(lam), *choice.of(lam)))) for lam in choice.lambdas]
    best = f"lambda {choice.best:g} was chosen by these accuracies on training images that were held out in turn"
    return [*table(heading, rows), best]


def choice_document(choice: LambdaChoice) -> dict[str, Any]:
    tried = [{"lambda": lam, "mean": choice.mean(lam), "folds": choice.of(lam)} for lam in choice.lambdas]
    return {"chosen": choice.best, "tried": tried}


def method_notes(method: Description) -> list[str]:
    """What a method needs, and how its losses are combined."""
    from netgraft.finetune.needs import category_of, needs_of, rule_of

    needs, rule = [need.value for need in needs_of(method)], rule_of(method)
    notes = [f"It needs {' and '.join(needs)}." if needs else "It needs nothing but data."]
    if rule != "total":
        notes.append(f"Its losses are combined by {rule} unless --combine says otherwise.")
    if category := category_of(method):
        notes.append(f"Its category in the survey of Tan et al. 2018: {category}.")
    return notes


def method_document(method: Description) -> dict[str, Any]:
    from netgraft.finetune.needs import category_of, needs_of, rule_of
    from netgraft.report.listing import plugin_document

    needs = [need.name for need in needs_of(method)]
    return {**plugin_document(method), "needs": needs, "combine": rule_of(method), "category": category_of(method)}


def cost_lines(cost: Cost) -> Iterator[str]:
    """What a step costs, and what makes it cheaper."""
    yield f"method {safe(cost.method)}, rule {cost.combine}, {cost.batch} images in a step"
    yield "1 F is a forward pass of the target over them: " + f"{cost.forward / 1e9:,.3g} GFLOP"
    mean = " (mean)" if len(cost.stages) > 1 else ""
    rows = [(f"one step{mean}", f"{cost.step:.2f} F"), ("of it the source", f"{cost.source:.2f} F")]
    if cost.cached is not None:
        rows.append(("one step with the source cached", f"{cost.cached:.2f} F"))
    if mean:
        rows += [(f"{one.share:.1%} of steps: {one.name}", f"{one.step:.2f} F") for one in cost.stages]
    yield from table(("what", "cost"), rows)
    yield f"{cost.updates:.3g} updates, {cost.gradients:.3g} backward passes"
    if cost.cached is not None:
        yield f"a full cache has {size_text(cost.cache_bytes)}"
    yield from cost.remarks
