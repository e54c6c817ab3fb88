"""The parity receipt: how much of the target is the source's, and how far apart the two are in what they compute.

The receipt goes into the checkpoint's metadata, so that it must be the same for the same transfer, whatever the number
of threads: the models run on one, in float64 where they are small, and every measured number is rounded. A model that
cannot be run is a reason in the receipt, never an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from statistics import median
from typing import Any

from netgraft.architecture.cost import multiply_adds
from netgraft.architecture.graph import LayerGraph
from netgraft.errors import CheckFailed
from netgraft.evidence.parity import Comparison, Parity, Party, measure, tensors_of
from netgraft.models.construct import brief_without_paths
from netgraft.plan import DISTILLED, EXACT, INTERPOLATED, REFITTED, STACKED, Plan

SEED = 0
RUNS_BELOW = 2e10
"""Multiply-adds of both models together, on the whole batch, up to which they run unasked: about one CPU second."""
DOUBLE_BELOW = 2e9
"""The same, up to which they run in float64."""
TOLERANCE = 1e-4
"""The relative error up to which a target is as exact as its plan claims."""
NOISE = {"float64": 1e-9, "float32": 1e-5}
"""Errors below these depend on the order in which a machine takes sums; they are recorded as "below" and this bound."""


def make_receipt(
    plan: Plan,
    source: Party,
    target: Party,  # with the grafted weights
    *,
    wanted: bool | None = None,  # None: where both models run in about a second
    seed: int = SEED,
    precision: str | None = None,  # None: float64 where the models are small
    carried: Mapping[str, Any] | None = None,  # what ``evidence/carried.py`` records, if it was measured
) -> dict[str, Any]:
    """The receipt as JSON-able data; ``skipped`` says why nothing was measured, if nothing was.

    ``parameters`` counts the target's, ``derived`` those of them that come from the source; ``exact`` says whether the
    recipe claims that the target computes what the source does, and whether the measured error agrees (None: not
    measured); ``output`` holds the relative error, or why there is none; ``layers`` holds, for every pair of layers,
    target / source of the standard deviation at the layer's output, ``unmeasured`` how many have no such number.
    """
    derived, parameters = derived_share(plan, target.graph)
    costs = {"source": multiply_adds(source.graph), "target": multiply_adds(target.graph)}
    total = sum(costs.values())
    document: dict[str, Any] = {
        "parameters": parameters,
        "derived": derived,
        "multiply_adds": costs,
        "exact": {"claimed": plan.claims_exactness, "tolerance": TOLERANCE, "holds": None},
        "warnings": [],
        **({"carried": dict(carried)} if carried is not None else {}),
    }
    skipped = "" if wanted else _why_not(source, target, total) if wanted is None else "not asked for (--no-receipt)"
    if skipped:
        return _judged(plan, document | {"skipped": skipped})
    for name in [precision] if precision else [*(["float64"] if total < DOUBLE_BELOW else []), "float32"]:
        try:
            parity = measure(plan, source, target, seed=seed, precision=name)
        except (Exception, SystemExit) as error:  # it is the user's code that runs
            skipped = f"a forward pass failed: {brief_without_paths(error)}"
        else:
            return _judged(plan, document | _measured(parity, name, seed))
    return _judged(plan, document | {"skipped": skipped})


def check_exact(plan: Plan, receipt: Mapping[str, Any]) -> None:
    """Raise CheckFailed if exactness was asked for and the measured error is against it."""
    if plan.options.get("exact") is True and receipt["exact"]["holds"] is False:
        raise CheckFailed(
            "The target does not compute what the source does, although exact=true was asked for.",
            where="\n".join(receipt["warnings"]),
            hint="Please report this pair of models: the plan should have said what is not exact.",
        )


def derived_share(plan: Plan, target: LayerGraph) -> tuple[int, int]:
    """How many of the target's parameters come from the source, and how many there are.

    Tied parameters count once, buffers not at all; nor does what was set to a constant come from the source.
    """
    parameters = {slot.key: prod(slot.shape) for slot in target.slots.values() if not slot.buffer}
    derived = (EXACT, STACKED, INTERPOLATED, REFITTED, DISTILLED)
    moved = {key for key, fate in plan.fates.items() if fate in derived}
    return sum(count for key, count in parameters.items() if key in moved), sum(parameters.values())


def _why_not(source: Party, target: Party, total: int) -> str:
    """Why the models do not run unless asked to; empty if they do."""
    for party in (source, target):
        if party.model.input_size is None and party.model.example_inputs is None:
            option = "--input-size" if party.model.role == "target" else "--source-input-size"
            return f"the input size of the {party.model.role} is not known ({option} C,H,W, or --receipt)"
    if total >= RUNS_BELOW:
        return f"the models are large: {total:.1e} multiply-adds, more than {RUNS_BELOW:.0e} (--receipt runs them)"
    return ""


def _measured(parity: Parity, precision: str, seed: int) -> dict[str, Any]:
    ratios = list(parity.ratios.values())
    summary = {"median": median(ratios), "min": min(ratios), "max": max(ratios)} if ratios else {}
    return {
        "seed": seed,
        "precision": precision,
        "inputs": {
            role: [list(tensor.shape) for tensor in tensors_of(example)]
            for role, example in zip(("source", "target"), parity.inputs, strict=True)
        },
        "output": _output(parity.comparison, NOISE[precision]),
        "ratios": {name: _rounded(value, 3) for name, value in summary.items()},
        "layers": [
            {"source": source, "target": target, "ratio": _rounded(ratio, 3)}
            for (source, target), ratio in parity.ratios.items()
        ],
        "unmeasured": parity.unmeasured,
    }


def _output(comparison: Comparison, noise: float) -> dict[str, Any]:
    what, error, why = comparison
    if error is None:
        return {"compared": what, "skipped": why}
    below = 0 < error < noise
    return {"compared": what, "error": noise if below else _rounded(error, 2), "below": below}


def _judged(plan: Plan, document: dict[str, Any]) -> dict[str, Any]:
    output, exact = document.get("output", {}), document["exact"]
    if "error" not in output:
        unsure = ["exactness was asked for, and could not be measured"] if plan.options.get("exact") is True else []
        return document | {"warnings": unsure}
    holds = output["error"] <= exact["tolerance"]
    warnings = []
    if exact["claimed"] and not holds:
        what = f"the {output['compared']} of the target is off by {output['error']:.1e}"
        warnings = [f"the recipe {plan.recipe} noted nothing that is not exact, but {what}"]
    return document | {"exact": exact | {"holds": holds}, "warnings": warnings}


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits - 1}e}")
