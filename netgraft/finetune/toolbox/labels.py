"""What a method asks of the labels."""

from __future__ import annotations

from netgraft.errors import UsageError
from netgraft.finetune.protocol import Run


def check_one_class(
    run: Run, why: str, hint: str = "Take another method, or data with a folder for each class."
) -> None:
    """Raise UsageError, saying ``why``, where an image may have several classes: there p(y|x) is no softmax."""
    if run.multilabel:
        raise UsageError(f"{why}, and images have several classes each.", where="--data", hint=hint)
