"""Is a written checkpoint what its metadata says it is?

Header, values, architectures, the source's weights, every tensor made again that no pass changed, the receipt measured
again: as much as can be had of the models is checked, and what is not checked is said. Passes (refit, distil, rescale)
are not run again. Metadata comes from strangers: a Python file or module that it names is run only if the user names it
too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from netgraft.architecture.graph import LayerGraph
from netgraft.errors import CorruptFile, HubUnreachable, NetgraftError, PlanError, WeightsMismatch
from netgraft.evidence.parity import Party
from netgraft.evidence.rebuild import Outcome, Rebuilt, Whereabouts, rebuild, recorded_request
from netgraft.evidence.receipt import NOISE, make_receipt
from netgraft.files.checkpoint import describe, file_sha256
from netgraft.graft import graft
from netgraft.models.construct import brief
from netgraft.models.fit import nonfinite
from netgraft.models.model import Model, PretrainedWeights, hash_tensors, read_weights
from netgraft.models.references import split_prefix
from netgraft.models.side import own_weights
from netgraft.plan import Plan

SLACK = 0.05
"""How far, relatively, a receipt measured on another machine may be from the recorded one."""


@dataclass(frozen=True)
class Check:
    """What was looked at, what came out, and the tensors at fault."""

    name: str
    outcome: Outcome
    detail: str
    tensors: tuple[str, ...] = ()


def verify(
    file: Path,
    provenance: Mapping[str, Any],
    plan: Plan,  # the one in ``provenance``
    where: Whereabouts = Whereabouts(),  # noqa: B008
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Check]:
    """Every check and its outcome. Raises a NetgraftError for what cannot be opened or is no checkpoint of netgraft."""
    request = recorded_request(provenance, file)
    tensors = _load(file)
    checks = [check_header(file, plan), check_finite(tensors, allowed=request["allow_nonfinite"])]
    progress(f"tracing {plan.target}")
    target = rebuild("target", plan, request, where)
    checks.append(Check("target architecture", target.outcome, target.detail, target.tensors))
    if target.model and target.graph:
        checks.append(check_loading(target.model, target.graph, tensors))
    progress(f"tracing {plan.source}")
    source = rebuild("source", plan, request, where)
    checks.append(Check("source architecture", source.outcome, source.detail, source.tensors))
    progress(f"reading the weights of {plan.source}")
    weights, check = _check_weights(source, provenance, request, where)
    checks.append(check)
    known = target.outcome == source.outcome == "passed"
    if not (weights and known and source.model and source.graph and target.model and target.graph):
        missing = "needs the recorded architectures and the source's weights"
        return [*checks, *(Check(name, "skipped", missing) for name in ("tensors", "receipt"))]
    progress("grafting")
    checks.append(check_tensors(plan, provenance, request, weights, target.model, tensors))
    progress("measuring")
    parties = Party(source.model, source.graph, weights.tensors), Party(target.model, target.graph, tensors)
    checks.append(check_receipt(plan, provenance.get("receipt"), *parties))
    return checks


# --------------------------------------------------------------------------------------------------- the file by itself


def check_header(file: Path, plan: Plan) -> Check:
    """Every tensor of the file has exactly one fate in the plan, and the shape that the plan says."""
    shapes = {key: shape for key, _, shape in describe(file)}
    planned = {move.key: move.shape for move in plan.moves} | {kept.key: kept.shape for kept in plan.kept}
    try:
        plan.check_law(shapes)
    except PlanError as error:
        return Check("header", "failed", error.where, tuple(sorted(shapes.keys() ^ planned)))
    if wrong := tuple(key for key in shapes if shapes[key] != planned[key]):
        return Check("header", "failed", "of another shape than in the plan", wrong)
    return Check("header", "passed", f"{len(shapes)} tensors, of the shapes in the plan and each with one fate")


def check_finite(tensors: Mapping[str, Tensor], *, allowed: bool) -> Check:
    """No tensor holds NaN or infinity."""
    bad = tuple(nonfinite(tensors))
    if bad and allowed:
        return Check("values", "skipped", "NaN and infinity were allowed (--allow-nonfinite)", bad)
    return Check("values", "failed", "NaN or infinity", bad) if bad else Check("values", "passed", "all finite")


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return dict(safetensors.torch.load_file(file, device="cpu"))
    except Exception as error:  # SafetensorError, or a type that this PyTorch lacks
        raise CorruptFile(f"The file cannot be read as safetensors: {brief(error)}", where=str(file)) from error


def check_loading(model: Model, graph: LayerGraph, tensors: Mapping[str, Tensor]) -> Check:
    """The target's ``load_state_dict(strict=True)`` takes the file, with every tensor of the target's own type."""
    with torch.device("meta"):
        module = model.build()
    try:
        module.load_state_dict(dict(tensors), strict=True, assign=True)
    except Exception as error:  # what a user's own hook raises, too
        return Check("loading", "failed", " ".join(str(error).split()))
    slots = graph.slots
    types = tuple(key for key, tensor in tensors.items() if key in slots and str(tensor.dtype)[6:] != slots[key].dtype)
    if types:
        return Check("loading", "failed", "of another type than in the target", types)
    return Check("loading", "passed", f"{model.name} loads it strictly")


# ---------------------------------------------------------------------------------------------------------- the tensors


def _check_weights(
    source: Rebuilt, provenance: Mapping[str, Any], request: Mapping[str, Any], where: Whereabouts
) -> tuple[PretrainedWeights | None, Check]:
    """The source's weights if they can be had, and whether they are those that were read."""
    name, recorded = "source weights", provenance["source"]
    if source.model is None or source.model.weights is None:
        if where.source_weights is None:
            kind = "add --source-weights FILE" if request["source"]["weights"] == "file" else "not at hand"
            return None, Check(name, "skipped", f"{recorded.get('description')}: {kind}")
        if recorded.get("hashed") != "file":
            return None, Check(name, "skipped", "only the tensors were recorded, not a file")
        file = split_prefix(where.source_weights)[0]
        return None, _digest_check(name, str(file), file_sha256(file), recorded)
    try:
        weights = read_weights(source.model, allow_nonfinite=request["allow_nonfinite"])
    except HubUnreachable as error:
        return None, Check(name, "skipped", error.what)
    except WeightsMismatch as error:
        return None, Check(name, "failed", error.what)
    digest = weights.origin.sha256 if weights.origin.hashed == "file" else hash_tensors(weights.tensors)
    if recorded.get("hashed") == "tensors":
        digest = hash_tensors(weights.tensors)
    return weights, _digest_check(name, weights.origin.description, digest, recorded)


def _digest_check(name: str, label: str, digest: str, recorded: Mapping[str, Any]) -> Check:
    if digest == recorded["sha256"]:
        return Check(name, "passed", f"{label} has the recorded sha256")
    return Check(name, "failed", f"{label} has the sha256 {digest}, recorded is {recorded['sha256']}")


def check_tensors(
    plan: Plan,
    provenance: Mapping[str, Any],
    request: Mapping[str, Any],
    weights: PretrainedWeights,
    target: Model,
    tensors: Mapping[str, Tensor],
) -> Check:
    """Tensors made again from the source's weights and the target's own are the file's, bit for bit.

    Those that a pass may have changed are left out, and counted in the detail.
    """
    code = {step.operator for move in plan.moves for step in move.steps if ".py" in step.operator}
    if code:
        return Check("tensors", "skipped", f"the operators {', '.join(sorted(code))} would be executed")
    rest = ""
    initial: Mapping[str, Tensor]
    if target.weights is None and request["target"]["weights"] != "none":
        initial, rest = tensors, f"; what the target kept from {provenance['kept'].get('description')} was not checked"
    else:
        initial, kept_from = own_weights(target, request["seed"], allow_nonfinite=request["allow_nonfinite"])
        if kept_from.get("sha256") != provenance["kept"].get("sha256"):
            return Check("tensors", "failed", "the target's own weights have another sha256")
    try:
        again = graft(plan, weights.tensors, initial)
    except NetgraftError as error:
        return Check("tensors", "failed", f"cannot be made again: {error.what}")
    changed = {key for each in plan.passes for key in each.keys}  # by forward passes, not by the steps
    again = {key: tensor for key, tensor in again.items() if key not in changed}
    if changed:
        names = ", ".join(each.name for each in plan.passes)
        rest += f"; {len(changed)} that {names} changed were not made again"
    if not again:
        return Check("tensors", "skipped", rest.removeprefix("; "))
    different = tuple(key for key in again if key not in tensors or not _same_bits(again[key], tensors[key]))
    if different:
        kept = {fate.key for fate in plan.kept}
        own = sum(key in kept for key in different)
        note = f", {own} of them the target's own, drawn with seed {request['seed']}" if own else ""
        return Check("tensors", "failed", f"{len(different)} differ from what the plan gives{note}", different)
    return Check("tensors", "passed", f"{len(again)} made again, bit for bit{rest}")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))


# ---------------------------------------------------------------------------------------------------------- the receipt


def check_receipt(plan: Plan, recorded: Mapping[str, Any] | None, source: Party, target: Party) -> Check:
    """The receipt measured again agrees with the recorded one, within what another machine may change."""
    if recorded is None:
        return Check("receipt", "skipped", "there is none")
    try:
        measured = "skipped" not in recorded
        settings = {"seed": recorded["seed"], "precision": recorded["precision"]} if measured else {}
        again = make_receipt(plan, source, target, wanted=measured, **settings)
        why, layers = _disagreement(recorded, again, NOISE[recorded["precision"]] if measured else 0.0)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFile("The receipt in the metadata is not one that netgraft wrote.", where=repr(error)) from error
    if why:
        return Check("receipt", "failed", why, layers)
    if not measured:
        return Check("receipt", "skipped", f"nothing was measured: {recorded['skipped']}")
    return Check("receipt", "passed", f"measured again, with {len(recorded['layers'])} layers")


def _disagreement(recorded: Mapping[str, Any], again: Mapping[str, Any], noise: float) -> tuple[str, tuple[str, ...]]:
    """What differs, and the layers where it does; an empty text if nothing does."""
    if wrong := [fact for fact in ("parameters", "derived", "multiply_adds") if recorded[fact] != again[fact]]:
        return f"another number: {', '.join(wrong)}", ()
    if "skipped" in recorded:
        return "", ()
    if "skipped" in again:
        return f"cannot be measured again: {again['skipped']}", ()
    if recorded["inputs"] != again["inputs"]:
        return "the models take other inputs", ()
    before, after = recorded["output"], again["output"]
    errors = before.get("error"), after.get("error")
    if before["compared"] != after["compared"] or not _close(*errors, noise):
        return (
            f"the error of the {after['compared']} is {errors[1]}, recorded is {errors[0]} ({before['compared']})",
            (),
        )
    ratios = [{layer["target"]: layer["ratio"] for layer in receipt["layers"]} for receipt in (recorded, again)]
    names = sorted(ratios[0].keys() | ratios[1])
    off = tuple(name for name in names if not _close(ratios[0].get(name), ratios[1].get(name), noise))
    return "other activations" if off else "", off


def _close(recorded: float | None, again: float | None, noise: float) -> bool:
    if recorded is None or again is None:
        return recorded is again
    return abs(recorded - again) <= max(SLACK * max(abs(recorded), abs(again)), noise)
