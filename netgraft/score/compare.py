"""Which recipe makes the best initialisation of a target, on its own task, without training."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from netgraft import plugins
from netgraft.errors import NetgraftError, UsageError
from netgraft.models.side import Side
from netgraft.planning import TransferRequest
from netgraft.score.probe import Bench, Progress
from netgraft.score.settings import ScoreSettings
from netgraft.score.verdict import Verdicts
from netgraft.transfer import transfer


def compare(
    source: Side,
    target: Side,
    settings: ScoreSettings,
    *,
    recipes: Sequence[str] | None = None,  # None: all of them but auto, which is one of them
    progress: Progress = lambda _: None,
) -> Verdicts:
    """The scores of the target as each recipe initialises it with its defaults; recipes that refuse are listed apart.

    The initialisations are written to a temporary folder. Raises what the recipes raise if they all refuse.
    """
    names = (
        list(dict.fromkeys(recipes))
        if recipes is not None
        else [name for name in plugins.listing("recipes") if name != "auto"]
    )  # one of the others
    if not names:
        raise UsageError("No recipe is named.", hint="For example --recipes hmt,grow.")
    for name in names:
        plugins.load("recipes", name)
    bench = Bench(target, settings, progress, source=source)
    probes, refused = {}, {}
    errors: list[NetgraftError] = []
    with tempfile.TemporaryDirectory(prefix="netgraft-") as folder:
        for number, name in enumerate(names):
            file = Path(folder, f"{number}.safetensors")
            progress(f"making the initialisation {name}")
            try:
                transfer(TransferRequest(source, target, file, recipe=name, receipt=False), progress=progress)
            except NetgraftError as error:
                refused[name] = error.what
                errors.append(error)
                continue
            progress(f"scoring {name}")
            probes[name] = bench.probe(bench.weights(target, file))
    if not probes:
        raise errors[0]
    return bench.result(bench.scratch(), probes, refused=refused, source=source.reference)
