"""Source model in, target architecture in, checkpoint for the target out.

    load  ->  plan  ->  read  ->  make (graft, run)  ->  measure  ->  write

Of several candidates each is made and measured, and one is kept (contest.py).

Every refusal comes before the first tensor is touched, and nothing is written before everything has succeeded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netgraft import __version__, clock
from netgraft.contest import Made, decided, hold, is_fitted
from netgraft.data.images import ImageSource
from netgraft.errors import CheckFailed, NonFiniteWeights, TraceError, UsageError
from netgraft.evidence.carried import COST, LIMIT, Measure
from netgraft.evidence.parity import Party
from netgraft.evidence.receipt import check_exact, make_receipt
from netgraft.files.checkpoint import check_output, write_checkpoint
from netgraft.graft import graft
from netgraft.models.fit import nonfinite
from netgraft.models.model import PretrainedWeights
from netgraft.models.side import own_weights
from netgraft.passes.run import run_passes
from netgraft.planning import (
    Loaded,
    Planned,
    Progress,
    TransferRequest,
    check_coverage,
    load,
    plan,
    read_source,
)
from netgraft.recipes.protocol import Competes, HasBudget, IsProven, ShowsImages


def transfer(
    request: TransferRequest, *, progress: Progress = lambda _: None, stop: Callable[[], bool] = lambda: False
) -> Planned:
    """Write to ``request.output`` a checkpoint of the target, made from the source's weights; the plan behind it.

    What the plan keeps is the target's own initialisation drawn with ``seed``. The same request gives the same bytes,
    if time does not run out. Where it does, or once ``stop()`` is true, passes come to an end, nothing more is fitted,
    and what is there is written.
    Raises CheckFailed, with nothing written, if less than ``fail_under`` percent of the target comes from the source,
    or if the recipe was told to be exact and the receipt is against it.
    """
    if request.output is None:
        raise UsageError("An output is missing.", hint="Say where the checkpoint goes, such as init.safetensors.")
    job = _Job(request, request.output, progress, stop)
    _load(job)
    _plan(job)
    _read(job)
    _make(job)
    _measure(job)
    _write(job)
    return job.planned


@dataclass
class _Job:
    """A transfer under way: each step adds what the next ones need."""

    request: TransferRequest
    output: Path
    progress: Progress
    stop: Callable[[], bool]
    loaded: Loaded = field(init=False)
    planned: Planned = field(init=False)
    inputs: list[Path] = field(init=False)  # files that are read, and must not be written over
    weights: PretrainedWeights = field(init=False)  # the source's
    own: dict[str, Tensor] = field(init=False)  # the target's own tensors, and where they are from
    own_origin: dict[str, Any] = field(init=False)
    made: Made = field(init=False)
    candidates: list[dict[str, Any]] = field(default_factory=list)  # one row each, where there was a contest
    failed: list[dict[str, Any]] = field(default_factory=list)  # the row of a candidate that could not be proven
    proof: dict[str, Any] | None = None  # the receipt behind a proven candidate
    receipt: dict[str, Any] = field(init=False)
    began: float = field(default_factory=lambda: time.monotonic())

    def enough(self) -> bool:
        """Whether passes are to come to an end: the user asks for it, or the budget is spent."""
        recipe = self.loaded.recipe
        return (isinstance(recipe, HasBudget) and clock.is_spent(self.began, recipe.budget)) or self.stop()

    def parties(self, tensors: Mapping[str, Tensor]) -> tuple[Party, Party]:
        """The source with its weights, the target with these tensors."""
        return (
            Party(self.loaded.source, self.loaded.source_graph, self.weights.tensors),
            Party(self.loaded.target, self.loaded.target_graph, tensors),
        )

    @cached_property
    def measure(self) -> Measure:
        """What states of the target are measured by; the source is run when it is first asked for."""
        self.progress(f"measuring {self.request.source.reference}")
        shown = _pictures(self.request, self.loaded.recipe)
        cost = LIMIT if any(map(is_fitted, (self.planned, *self.planned.candidates))) else COST
        return Measure(*self.parties(self.own), shown, large=self.request.receipt is True, cost=cost)


def _load(job: _Job) -> None:
    """Both models and their graphs, if there is a place for the output."""
    check_output(job.output, force=job.request.force)
    job.loaded = load(job.request, job.progress)


def _plan(job: _Job) -> None:
    """The plan with the graphs alone, which may be refused."""
    job.planned = plan(job.request, job.loaded)
    found = (job.loaded.source.weights, job.loaded.target.weights)
    job.inputs = [weights.file for weights in found if weights is not None and weights.file is not None]
    check_output(job.output, force=job.request.force, inputs=job.inputs)
    check_coverage(job.planned.plan, job.request.fail_under)


def _read(job: _Job) -> None:
    """The source's weights, and the target's own tensors."""
    job.weights = read_source(job.planned, job.progress)
    job.progress(f"initialising {job.request.target.reference}")
    allowed = job.request.source.allow_nonfinite
    job.own, job.own_origin = own_weights(job.loaded.target, job.request.seed, allow_nonfinite=allowed)


def _make(job: _Job) -> None:
    """The target by its plan; of several candidates the one that carries most, or what the rule expects."""
    if isinstance(job.planned.choice.recipe, IsProven) and _proven(job, job.planned.choice.recipe.tolerance):
        return
    candidates, winner = job.planned.candidates, None
    if len(candidates) > 1 and job.measure.ruler is not None:
        winner, job.candidates = hold(candidates, lambda each: _made(job, each), job.measure, job.enough)
    job.made = decided(winner, job.candidates) if winner is not None else _made(job, job.planned)
    job.candidates = job.failed + job.candidates
    job.planned = job.made.planned
    check_coverage(job.planned.plan, job.request.fail_under)


def _proven(job: _Job, tolerance: float) -> bool:
    """Make the target, and see whether it computes what the source does. If not, plan again without this candidate.

    Raises CheckFailed where there is no other, since the user named the recipe.
    """
    made = _made(job, job.planned)
    job.progress(f"running {job.request.source.reference} and {job.request.target.reference}")
    job.proof = make_receipt(made.planned.plan, *job.parties(made.tensors), wanted=True)
    output = job.proof.get("output", {"skipped": job.proof.get("skipped")})
    if output.get("error", inf) <= tolerance:
        plan_made = made.planned.plan
        if plan_made.chosen:
            plan_made = replace(plan_made, chosen="source and target are one network: running both proved it")
        job.planned = replace(made.planned, plan=plan_made)
        job.made = replace(made, planned=job.planned)
        return True
    job.proof = None
    why = f"relative error {output['error']:.1e}" if "error" in output else str(output["skipped"])
    if not isinstance(job.loaded.recipe, Competes):
        raise CheckFailed(
            f"{job.request.target.reference} was not shown to compute what {job.request.source.reference} does.",
            where=f"both were run on the same inputs: {why}",
            hint="--recipe almost-equal copies what they have in common, without such a claim.",
        )
    note = f"not proven by running both: {why}"
    choice = job.planned.choice
    job.failed = [{"recipe": choice.name, "why": choice.why, "carried": None, "note": note, "taken": False}]
    job.planned = plan(job.request, replace(job.loaded, recipe=job.loaded.recipe.unproven()))
    return False


def _made(job: _Job, planned: Planned) -> Made:
    """The plan carried out. A network may turn out not to run as its graph says: then a plan that runs none is taken.

    What depends on the source's weights is planned with them.
    """
    planned = planned.with_weights(job.weights.tensors)
    try:
        made = _run(job, planned)
    except TraceError as error:
        other = planned.without_running(error.what, job.weights.tensors)
        if other is None:
            raise
        made = _run(job, other)
    if not job.request.source.allow_nonfinite:
        check_finite(made.tensors, job.request.target.reference)
    return made


def _run(job: _Job, planned: Planned) -> Made:
    """The plan's moves over the target's own tensors, and its passes."""
    job.progress(f"grafting {planned.choice.name}")
    grafted = graft(planned.plan, job.weights.tensors, job.own)
    tensors, reports = run_passes(
        planned.plan,
        *job.parties(grafted),
        pictures=_pictures(job.request, planned.choice.recipe),
        seed=job.request.seed,
        device=job.request.device,
        progress=job.progress,
        enough=job.enough,
    )
    changed = {key for key, each in tensors.items() if not torch.equal(each, grafted[key])}
    plan_made = planned.plan.after_passes(changed, reports)
    return Made(replace(planned, plan=plan_made), tensors, reports)


def _pictures(request: TransferRequest, recipe: object) -> ImageSource:
    """What passes are shown: what the user says, else what the recipe does."""
    return request.pictures or ImageSource.of(recipe.generator if isinstance(recipe, ShowsImages) else "mix")


def _measure(job: _Job) -> None:
    """The receipt: parity, and what is carried; and whether it is against a claim of exactness that was asked for."""
    job.progress(f"measuring {job.request.target.reference}")
    plan, wanted = job.planned.plan, job.request.receipt
    carried = None
    if wanted is not False:
        found = job.made.carried or job.measure.look(job.made.tensors)
        carried = job.measure.record(found, plan)
    if job.proof is not None:
        job.receipt = job.proof | ({"carried": carried} if carried is not None else {})
    else:
        job.receipt = make_receipt(plan, *job.parties(job.made.tensors), wanted=wanted, carried=carried)
    check_exact(plan, job.receipt)


def _write(job: _Job) -> None:
    """The checkpoint, with a ledger that says where every number came from."""
    job.progress(f"writing {job.output}")
    request = job.request
    document = {
        "version": __version__,
        "source": asdict(job.weights.origin),
        "kept": job.own_origin,
        "request": {
            "source": request.source.recorded(job.loaded.source),
            "target": request.target.recorded(job.loaded.target),
            "seed": request.seed,
            "allow_nonfinite": request.source.allow_nonfinite,
        },
        "receipt": job.receipt,
        "candidates": job.candidates,
        "passes": job.made.reports,
        "plan": job.planned.plan.to_json(),
    }
    write_checkpoint(job.output, job.made.tensors, document, force=request.force, inputs=job.inputs)


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise NonFiniteWeights if a tensor of the result holds NaN or infinity."""
    bad = list(nonfinite(tensors))
    if bad:
        raise NonFiniteWeights(f"The result for {name} holds NaN or infinity.", where=", ".join(bad[:5]))
