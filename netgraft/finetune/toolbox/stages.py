"""Trainings in stages: epochs that train some layers alone, before those that train all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from netgraft.errors import UsageError
from netgraft.finetune.protocol import Run
from netgraft.finetune.toolbox.taps import submodule


def check_stage(run: Run, option: str, epochs: int) -> None:
    """Raise UsageError where the first stage, whose length ``option`` says, leaves no epoch for the second."""
    if epochs >= run.epochs:
        what = "The first stage leaves no epoch for the second."
        hint = f"More --epochs, or --set {option}={run.epochs - 1}."
        raise UsageError(what, where=f"{option}={epochs}, --epochs {run.epochs}", hint=hint)


def check_same_classes(run: Run, hint: str) -> None:
    """Raise UsageError, saying ``hint``, unless the source puts out as many classes as the data have."""
    if run.source_classes != run.classes:
        what = f"The source's answers are compared: it has {run.source_classes} classes, the data {run.classes}."
        raise UsageError(what, hint=hint)


@contextmanager
def no_gradient_below(module: nn.Module, layers: Iterable[str]) -> Iterator[None]:
    """Inside, what these layers read counts as constant, so that nothing below them gets a gradient."""

    def cut(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(each.detach() if isinstance(each, Tensor) else each for each in args)

    handles = [submodule(module, layer).register_forward_pre_hook(cut) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
