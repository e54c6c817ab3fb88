"""Source model in, target architecture in, checkpoint for the target out.

    load  ->  plan  ->  graft  ->  run  ->  measure  ->  write

Every refusal comes before the first tensor is touched, and nothing is written before everything has succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from netgraft import __version__
from netgraft.errors import NonFiniteWeights, TraceError, UsageError
from netgraft.evidence.parity import Party
from netgraft.evidence.receipt import check_exact, make_receipt
from netgraft.files.checkpoint import check_output, write_checkpoint
from netgraft.graft import graft
from netgraft.models.fit import nonfinite
from netgraft.models.model import PretrainedWeights
from netgraft.models.side import own_weights
from netgraft.passes.protocol import ImageSource
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
from netgraft.recipes.protocol import ShowsImages


def transfer(request: TransferRequest, *, progress: Progress = lambda _: None) -> Planned:
    """Write to ``request.output`` a checkpoint of the target, made from the source's weights; the plan behind it.

    What the plan keeps is the target's own initialisation drawn with ``seed``. The same request gives the same bytes.
    Raises CheckFailed, with nothing written, if less than ``fail_under`` percent of the target comes from the source,
    or if the recipe was told to be exact and the receipt is against it.
    """
    if request.output is None:
        raise UsageError("An output is missing.", hint="Say where the checkpoint goes, such as init.safetensors.")
    job = _Job(request, request.output, progress)
    _load(job)
    _plan(job)
    _graft(job)
    _run(job)
    _measure(job)
    _write(job)
    return job.planned


@dataclass
class _Job:
    """A transfer under way: each step adds what the next ones need."""

    request: TransferRequest
    output: Path
    progress: Progress
    loaded: Loaded = field(init=False)
    planned: Planned = field(init=False)
    inputs: list[Path] = field(init=False)  # files that are read, and must not be written over
    weights: PretrainedWeights = field(init=False)  # the source's
    own: dict[str, Tensor] = field(init=False)  # the target's own tensors, and where they are from
    own_origin: dict[str, Any] = field(init=False)
    result: dict[str, Tensor] = field(init=False)
    reports: list[dict[str, Any]] = field(init=False)  # of the passes
    receipt: dict[str, Any] = field(init=False)

    def parties(self) -> tuple[Party, Party]:
        """The source with its weights, the target with what has become of it so far."""
        return (
            Party(self.loaded.source, self.loaded.source_graph, self.weights.tensors),
            Party(self.loaded.target, self.loaded.target_graph, self.result),
        )


def _load(job: _Job) -> None:
    """Both models and their graphs, if there is a place for the output."""
    check_output(job.output, force=job.request.force)
    job.loaded = load(job.request, job.progress)


def _plan(job: _Job) -> None:
    """The plan, once with the graphs alone, which may be refused, and where it depends on them with the weights."""
    job.planned = plan(job.request, job.loaded)
    found = (job.loaded.source.weights, job.loaded.target.weights)
    job.inputs = [weights.file for weights in found if weights is not None and weights.file is not None]
    check_output(job.output, force=job.request.force, inputs=job.inputs)
    check_coverage(job.planned.plan, job.request.fail_under)
    job.weights = read_source(job.planned, job.progress)
    job.planned = job.planned.with_weights(job.weights.tensors)


def _graft(job: _Job) -> None:
    """The target's own tensors, and the plan's moves over them."""
    job.progress(f"initialising {job.request.target.reference}")
    allowed = job.request.source.allow_nonfinite
    job.own, job.own_origin = own_weights(job.loaded.target, job.request.seed, allow_nonfinite=allowed)
    job.progress("grafting")
    job.result = graft(job.planned.plan, job.weights.tensors, job.own)


def _run(job: _Job) -> None:
    """The plan's passes. A network may turn out not to run as its graph says: then a plan that runs none is taken."""
    try:
        _run_passes(job)
    except TraceError as error:
        planned = job.planned.without_running(error.what, job.weights.tensors)
        if planned is None:
            raise
        job.planned = planned
        job.result = graft(planned.plan, job.weights.tensors, job.own)
        _run_passes(job)
    if not job.request.source.allow_nonfinite:
        check_finite(job.result, job.request.target.reference)


def _run_passes(job: _Job) -> None:
    recipe = job.planned.choice.recipe
    job.result, job.reports = run_passes(
        job.planned.plan,
        *job.parties(),
        pictures=job.request.pictures or ImageSource.of(recipe.generator if isinstance(recipe, ShowsImages) else "mix"),
        seed=job.request.seed,
        device=job.request.device,
        progress=job.progress,
    )


def _measure(job: _Job) -> None:
    """The parity receipt, and whether it is against a claim of exactness that was asked for."""
    job.progress(f"measuring {job.request.target.reference}")
    job.receipt = make_receipt(job.planned.plan, *job.parties(), wanted=job.request.receipt)
    check_exact(job.planned.plan, job.receipt)


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
        "passes": job.reports,
        "plan": job.planned.plan.to_json(),
    }
    write_checkpoint(job.output, job.result, document, force=request.force, inputs=job.inputs)


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise NonFiniteWeights if a tensor of the result holds NaN or infinity."""
    bad = list(nonfinite(tensors))
    if bad:
        raise NonFiniteWeights(f"The result for {name} holds NaN or infinity.", where=", ".join(bad[:5]))
