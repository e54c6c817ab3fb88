"""Which of several candidates becomes the checkpoint: each is made, the cheapest first, and measured.

A later one takes the place of an earlier one if it carries more of what the source sees, beyond noise (two standard
errors over paired held-out images, see evidence/carried.py). Two need no such lead: the copy by name takes it with any
rise, so that a transfer is never below ``load_state_dict(strict=False)``; and what the rule expects takes it without a
fall. Once next to everything is carried, nothing dearer is tried; and nothing is fitted to images once nearly all is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from netgraft.errors import NonFiniteWeights
from netgraft.evidence.carried import DIGITS, Carried, Measure
from netgraft.plan import DISTILLED, REFITTED
from netgraft.planning import Planned

ENOUGH = 0.999
NEARLY = 0.9
"""From here on a fit is not worth its minutes: on images of its own kind it gains little, on others it may lose."""
FLOOR = "same-names"


@dataclass(frozen=True)
class Made:
    """A plan that has been carried out."""

    planned: Planned  # another one than was asked for, if that one's networks could not be run
    tensors: dict[str, Tensor]
    reports: list[dict[str, Any]]  # of the passes
    carried: Carried | None = None


def hold(
    candidates: Sequence[Planned],
    make: Callable[[Planned], Made],
    measure: Measure,
    late: Callable[[], bool] = lambda: False,
) -> tuple[Made | None, list[dict[str, Any]]]:
    """The winner, and a row for each candidate in order; no winner where not one could be measured.

    A row has ``recipe``, ``why``, ``carried`` (None: not measured, ``note`` says why), and ``taken``. Raises what
    making a candidate raises, but for NaN and infinity in what it gives. Once it is ``late`` nothing more is fitted.
    """
    rows: list[dict[str, Any]] = []
    best: Made | None = None
    held, stop = 0, ""
    for candidate in candidates:
        row: dict[str, Any] = {"recipe": candidate.choice.name, "why": candidate.choice.why}
        rows.append(row | {"carried": None, "note": stop, "taken": False})
        if not stop and best is not None and best.carried is not None and is_fitted(candidate):
            share = best.carried.share
            rows[-1]["note"] = f"not tried: {rows[held]['recipe']} carries {share:.2f}" if share >= NEARLY else ""
        if best is not None and is_fitted(candidate) and not rows[-1]["note"] and late():
            rows[-1]["note"] = "not tried: the budget is spent"
        if rows[-1]["note"]:
            continue
        try:
            made = make(candidate)
        except NonFiniteWeights as error:
            rows[-1]["note"] = error.what
            continue
        ran = made.planned.choice is candidate.choice
        if not ran:
            rows[-1].update(recipe=made.planned.choice.name, why=made.planned.choice.why)
            stop = "not tried: the networks cannot be run like that"
        found = measure.look(made.tensors)
        if found is None:
            rows[-1]["note"] = measure.why
            continue
        rows[-1]["carried"] = round(found.share, DIGITS)
        if best is None or best.carried is None or _takes_over(made.planned, found, best.carried):
            best, held = replace(made, carried=found), len(rows) - 1
        if not stop and best.carried is not None and best.carried.share >= ENOUGH:
            stop = f"not tried: {rows[held]['recipe']} carries all"
    if best is not None:
        rows[held]["taken"] = True
    return best, rows


def is_fitted(candidate: Planned) -> bool:
    """Whether it is fitted to images, which takes minutes where networks are large."""
    return any(each.fate in (REFITTED, DISTILLED) for each in candidate.plan.passes)


def _takes_over(candidate: Planned, found: Carried, before: Carried) -> bool:
    gain, noise = found.gain(before)
    if candidate.choice.expected:
        return gain >= 0
    return gain > (0 if candidate.choice.name == FLOOR else noise)


def decided(winner: Made, rows: Sequence[dict[str, Any]]) -> Made:
    """The winner, whose plan says that it was measured, if there was more than one to measure."""
    measured = sum(row["carried"] is not None for row in rows)
    if measured < 2:
        return winner
    plan = winner.planned.plan
    why = f"{plan.chosen}; of {measured} candidates that were measured none carries more, beyond noise"
    return replace(winner, planned=replace(winner.planned, plan=replace(plan, chosen=why)))
