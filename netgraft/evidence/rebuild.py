"""The two models of a written checkpoint, built again from what its metadata says.

Metadata comes from strangers: a Python file or module that it names is run only if the user names it too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from netgraft.architecture.graph import LayerGraph
from netgraft.errors import BuildError, CorruptFile, ForwardError, NetgraftError, UsageError
from netgraft.models.model import Model, load_model
from netgraft.models.references import Role, parse_arg, parse_reference
from netgraft.plan import Plan
from netgraft.trace import trace

Outcome = Literal["passed", "failed", "skipped"]
_NETWORK = ("timm", "torchvision", "hf-hub")  # whose pretrained weights may have to be downloaded


@dataclass(frozen=True)
class Whereabouts:
    """Where the two models are now, where the metadata does not tell or is not to be trusted."""

    source: str | None = None
    target: str | None = None
    source_weights: Path | None = None
    offline: bool = False


@dataclass(frozen=True)
class Rebuilt:
    """One of the two models, and whether it is still the recorded architecture; None where it is not at hand."""

    outcome: Outcome
    detail: str
    tensors: tuple[str, ...] = ()  # what has changed
    model: Model | None = None
    graph: LayerGraph | None = None


def recorded_request(provenance: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What was asked for when the file was written. Raises CorruptFile."""
    hint = "It was written before netgraft recorded what verify needs; `netgraft show` works."
    try:
        request = provenance["request"]
        sound = type(request["seed"]) is int and type(request["allow_nonfinite"]) is bool
        for role in ("source", "target"):
            side = request[role]
            sound &= all(isinstance(text, str) for text in side["args"]) and isinstance(side["weights"], str)
            size = side["input_size"]
            sound &= size is None or all(type(number) is int and number > 0 for number in size)
        sound &= isinstance(provenance["source"]["sha256"], str) and isinstance(provenance["kept"], dict)
    except (KeyError, TypeError) as error:
        raise CorruptFile(
            "The metadata does not say what was asked for.", where=f"{file}: {error!r}", hint=hint
        ) from error
    if not sound:
        raise CorruptFile("The metadata does not say what was asked for.", where=str(file), hint=hint)
    return dict(request)


def rebuild(role: Role, plan: Plan, request: Mapping[str, Any], where: Whereabouts) -> Rebuilt:
    """The model of this role, traced. Raises NetgraftError for one that the user names and that cannot be loaded."""
    typed, recorded = getattr(where, role), getattr(plan, role)
    try:
        model = load_recorded(role, typed or recorded, request[role], where, typed=typed is not None)
        if isinstance(model, str):
            return Rebuilt("skipped", model)
    except (BuildError, ForwardError) as error:
        return Rebuilt("failed", error.what)
    except NetgraftError as error:
        if typed:
            raise
        return Rebuilt("skipped", error.what)
    try:
        graph = trace(model)
    except NetgraftError as error:
        return Rebuilt("failed", error.what)
    if graph.fingerprint() == getattr(plan, f"{role}_fingerprint"):
        return Rebuilt("passed", f"{model.name} is still the recorded one", (), model, graph)
    if role == "target":
        shapes = {move.key: move.shape for move in plan.moves} | {kept.key: kept.shape for kept in plan.kept}
    else:
        shapes = {move.source_key: move.source_shape for move in plan.moves if move.source_key}
    slots = {key: slot.shape for key, slot in graph.slots.items()}
    changed = {key for key in shapes if slots.get(key) != shapes[key]}
    changed |= slots.keys() - shapes if role == "target" else set()
    detail = f"{model.name} is another architecture than the recorded one"
    return Rebuilt("failed", detail, tuple(sorted(changed)), model, graph)


def load_recorded(
    role: Role,
    reference: str,
    asked: Mapping[str, Any],  # what was asked for of this role
    where: Whereabouts = Whereabouts(),
    *,
    typed: bool = False,
) -> Model | str:
    """The model, with its weights if they can be had; a text saying why there is none.

    ``typed``: the user names it, not only the metadata. Raises what ``load_model`` raises.
    """
    parsed = parse_reference(reference)
    if parsed.kind in ("file", "module") and not typed:
        return f"{parsed.text} would be executed, and metadata is not trusted: add --{role} {parsed.text} if you do"
    if parsed.kind == "hf-hub" and where.offline:
        return f"{parsed.text} is on the network (--offline)"
    given = where.source_weights if role == "source" else None
    file = given or (parsed.weights if typed or (parsed.weights and parsed.weights.is_file()) else None)
    random = asked["weights"] == "random" and file is None
    model = load_model(
        parsed.text,
        role=role,
        args=arguments(asked["args"]),
        input_size=tuple(asked["input_size"]) if asked["input_size"] else None,
        weights_file=file,
        random_weights=random,
    )
    elsewhere = asked["weights"] != "pretrained" or (where.offline and parsed.kind in _NETWORK)
    return model if file or random or not elsewhere else replace(model, weights=None)


def arguments(texts: Iterable[str]) -> dict[str, object]:
    """Arguments as they were recorded; UsageError for one without a literal."""
    found = {}
    for text in texts:
        name, value = parse_arg(text)
        written = text.partition("=")[2]
        if isinstance(value, str):  # a word only where no literal stands, such as <function>
            try:
                value = ast.literal_eval(written)
            except (ValueError, SyntaxError) as error:
                raise UsageError(f"The argument {name} was {written}, which the metadata cannot hold.") from error
        found[name] = value
    return found
