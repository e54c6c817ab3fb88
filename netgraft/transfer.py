"""Source model in, target architecture in, checkpoint for the target out.

    load  ->  trace  ->  plan (chain, match, steps)  ->  graft  ->  measure  ->  write

Every refusal comes before the first tensor is touched, and nothing is written before everything has succeeded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from netgraft import __version__, plugins
from netgraft.architecture.graph import LayerGraph, to_jsonable
from netgraft.errors import CheckFailed, NonFiniteWeights, NothingToTransfer, TraceError
from netgraft.evidence.parity import Party
from netgraft.evidence.receipt import check_exact, make_receipt
from netgraft.files.checkpoint import check_output, write_checkpoint
from netgraft.graft import graft
from netgraft.models.importance import channel_norms
from netgraft.models.model import Model, read_weights
from netgraft.models.side import Side, own_weights
from netgraft.passes.protocol import Pictures
from netgraft.passes.run import find_device, plan_passes, run_passes
from netgraft.plan import DISTILLED, KEPT, REFITTED, SET, Plan, WantedPass
from netgraft.trace import trace


@dataclass(frozen=True)
class Planned:
    """A plan and what it was made from."""

    plan: Plan
    recipe: Any  # the recipe itself, the one that was chosen where netgraft chose
    source: Model
    target: Model
    source_graph: LayerGraph
    target_graph: LayerGraph


Progress = Callable[[str], None]


def make_plan(
    source: Side,
    target: Side,
    *,
    recipe: str = "auto",
    options: Mapping[str, object] | None = None,
    progress: Progress = lambda _: None,
    passes: Sequence[WantedPass] = (),
    device: str = "auto",
) -> Planned:
    """What a transfer would do. Both architectures are traced on the meta device; no weight is read or downloaded.

    ``passes`` run after those of the recipe; the recipe "auto" reckons with the kind of ``device``. A recipe that
    chooses channels by the source's weights cannot do so here, and says what it does instead. Raises NothingToTransfer
    if not a single tensor of a layer would move.
    """
    chosen = plugins.create("recipes", recipe, options or {})
    models = source.load(), target.load()
    progress(f"tracing {source.reference}")
    source_graph = trace(models[0])
    progress(f"tracing {target.reference}")
    target_graph = trace(models[1])
    why = ""
    if hasattr(chosen, "choose"):
        recipe, chosen, why = chosen.choose(source_graph, target_graph, find_device(device).type)
    plan = _plan((source, target), (source_graph, target_graph), (recipe, chosen, why), passes, None)
    return Planned(plan, chosen, *models, source_graph, target_graph)


def _plan(
    sides: tuple[Side, Side],
    graphs: tuple[LayerGraph, LayerGraph],
    choice: tuple[str, Any, str],  # the recipe's name, the recipe itself, why netgraft took it
    passes: Sequence[WantedPass],
    weights: Mapping[str, torch.Tensor] | None,
) -> Plan:
    source, target = sides
    recipe, chosen, why = choice
    source_graph, target_graph = graphs
    warnings = [
        f"{side.role} {side.reference}: {text}"
        for side, graph in zip(sides, graphs, strict=True)
        for text in graph.warnings
    ]
    if not getattr(chosen, "reads_weights", False):
        pairing, moves, kept = chosen.plan(source_graph, target_graph)
    elif weights is not None:
        pairing, moves, kept = chosen.plan(source_graph, target_graph, norms=channel_norms(weights))
    else:
        pairing, moves, kept = chosen.plan(source_graph, target_graph)
        warnings.append("channels are chosen by their weights when these are read; this plan spreads them evenly")
    copied = bool(moves) and not any(move.steps for move in moves)  # one architecture: nothing to improve on
    makes = () if copied or not hasattr(chosen, "passes") else chosen.passes(source_graph, target_graph)
    own = plan_passes(makes, source_graph, target_graph, pairing)
    asked = plan_passes(passes, source_graph, target_graph, pairing)
    planned_passes = (*(each for each in own if each.keys), *asked)
    if not moves and not any(each.keys and each.fate in (REFITTED, DISTILLED) for each in planned_passes):
        reasons = dict.fromkeys(fate.why for fate in kept) or {"the target has no weights": None}
        raise NothingToTransfer(
            f"{source.reference} and {target.reference} have no layer in common that {recipe} could transfer.",
            where="; ".join([why] * bool(why) + list(reasons)[:3]),
            hint="See what each chain holds: netgraft inspect-chains "
            f"{source.reference} {target.reference}. Another --matcher or source may fit.",
        )
    plan = Plan(
        source=source.reference,
        target=target.reference,
        source_fingerprint=source_graph.fingerprint(),
        target_fingerprint=target_graph.fingerprint(),
        recipe=recipe,
        options=to_jsonable({option.name: getattr(chosen, option.name) for option in plugins.options(type(chosen))}),
        pairing=pairing,
        moves=tuple(moves),
        kept=tuple(kept),
        warnings=tuple(warnings),
        passes=planned_passes,
        chosen=why,
    )
    plan.check_law(target_graph.slots)
    return plan


def transfer(
    source: Side,
    target: Side,
    output: Path,
    *,
    recipe: str = "auto",
    options: Mapping[str, object] | None = None,
    seed: int = 0,
    force: bool = False,
    fail_under: float = 0.0,
    receipt: bool | None = None,
    passes: Sequence[WantedPass] = (),
    pictures: Pictures | None = None,
    device: str = "auto",
    progress: Progress = lambda _: None,
) -> Planned:
    """Write to ``output`` a checkpoint of the target, made from the source's weights, and return the plan behind it.

    What the plan keeps is the target's own initialisation drawn with ``seed``. The same arguments give the same bytes.
    ``receipt`` says whether both models run once for the parity receipt; None: if they run in about a second. Raises
    CheckFailed, with nothing written, if less than ``fail_under`` percent of the target comes from the source, or if
    the recipe was told to be exact and the receipt is against it.
    """
    check_output(output, force=force)
    planned = make_plan(source, target, recipe=recipe, options=options, progress=progress, passes=passes, device=device)
    inputs = [w.file for w in (planned.source.weights, planned.target.weights) if w is not None and w.file is not None]
    check_output(output, force=force, inputs=inputs)
    check_coverage(planned.plan, fail_under)
    progress(f"reading the weights of {source.reference}")
    theirs = read_weights(planned.source, allow_nonfinite=source.allow_nonfinite)
    chosen, graphs = planned.recipe, (planned.source_graph, planned.target_graph)
    if getattr(chosen, "reads_weights", False):
        choice = planned.plan.recipe, chosen, planned.plan.chosen
        planned = replace(planned, plan=_plan((source, target), graphs, choice, passes, theirs.tensors))
    progress(f"initialising {target.reference}")
    ours, kept_from = own_weights(planned.target, seed, allow_nonfinite=source.allow_nonfinite)
    progress("grafting")
    result = graft(planned.plan, theirs.tensors, ours)
    try:
        result, reports = run_passes(
            planned.plan,
            Party(planned.source, planned.source_graph, theirs.tensors),
            Party(planned.target, planned.target_graph, result),
            pictures=pictures or Pictures.of(getattr(planned.recipe, "generator", "mix")),
            seed=seed,
            device=device,
            progress=progress,
        )
    except TraceError as error:  # it shows only when the networks run
        if not planned.plan.chosen:
            raise
        options = {name: getattr(planned.recipe, name) for name in ("head", "maps", "skip")}
        options["repair"] = False
        choice = "graft", plugins.create("recipes", "graft", options), f"only weights can be used: {error.what}"
        plan = _plan((source, target), graphs, choice, (), theirs.tensors)
        planned = replace(planned, recipe=choice[1], plan=plan)
        result, reports = graft(plan, theirs.tensors, ours), []
    if not source.allow_nonfinite:
        check_finite(result, target.reference)
    progress(f"measuring {target.reference}")
    measured = make_receipt(
        planned.plan,
        Party(planned.source, planned.source_graph, theirs.tensors),
        Party(planned.target, planned.target_graph, result),
        wanted=receipt,
    )
    check_exact(planned.plan, measured)
    progress(f"writing {output}")
    document = {
        "version": __version__,
        "source": asdict(theirs.origin),
        "kept": kept_from,
        "request": {
            "source": source.recorded(planned.source),
            "target": target.recorded(planned.target),
            "seed": seed,
            "allow_nonfinite": source.allow_nonfinite,
        },
        "receipt": measured,
        "passes": reports,
        "plan": planned.plan.to_json(),
    }
    write_checkpoint(output, result, document, force=force, inputs=inputs)
    return planned


def check_coverage(plan: Plan, fail_under: float) -> None:
    """Raise CheckFailed if less than ``fail_under`` percent of the target's elements come from the source."""
    percent = 100 * source_share(plan)
    if percent < fail_under:
        raise CheckFailed(
            f"Only {percent:.1f} % of {plan.target} comes from {plan.source}, not the {fail_under:g} % asked for.",
            hint="`netgraft plan` shows what is kept and why.",
        )


def check_finite(tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise NonFiniteWeights if a tensor of the result holds NaN or infinity."""
    bad = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise NonFiniteWeights(f"The result for {name} holds NaN or infinity.", where=", ".join(bad[:5]))


def source_share(plan: Plan) -> float:
    """Share of the target's elements that come from the source, 0 to 1."""
    coverage = plan.coverage()
    total = sum(coverage.values())
    return (total - coverage[KEPT] - coverage[SET]) / total if total else 0.0
