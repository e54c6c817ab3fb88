"""What a transfer would do, before a tensor is touched: both models, their graphs, a recipe's moves, the passes after.

load  ->  trace  ->  choose  ->  plan
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from netgraft import plugins
from netgraft.architecture.graph import LayerGraph, to_jsonable
from netgraft.data.images import ImageSource
from netgraft.errors import CheckFailed, NothingToTransfer, UsageError
from netgraft.models.importance import channel_norms
from netgraft.models.model import Model, PretrainedWeights, read_weights
from netgraft.models.running import find_device
from netgraft.models.side import Side
from netgraft.passes.run import plan_passes
from netgraft.plan import DISTILLED, OF_OPERATORS, REFITTED, Plan, WantedPass, written_fate
from netgraft.recipes.protocol import Choice, Chooses, Competes, ReadsWeights, Recipe, RunsPasses
from netgraft.recipes.run import run_recipe
from netgraft.trace import trace

Progress = Callable[[str], None]


@dataclass(frozen=True)
class TransferRequest:
    """What is asked of a transfer. A plan takes the same, and has no use for what is said of the output."""

    source: Side
    target: Side
    output: Path | None = None
    recipe: str = "auto"
    options: Mapping[str, object] = field(default_factory=dict)  # of the recipe
    passes: Sequence[WantedPass] = ()  # to run after those of the recipe
    pictures: ImageSource | None = None  # what passes are shown; None: what the recipe says
    device: str = "auto"  # where networks run; the recipe "auto" reckons with its kind
    seed: int = 0  # of what keeps the target's own initialisation
    fail_under: float = 0.0  # percent of the target that must come from the source
    force: bool = False  # replace an existing output
    receipt: bool | None = None  # run both models once for the parity receipt; None: if that takes about a second


@dataclass(frozen=True)
class Loaded:
    """The recipe asked for, both models and their graphs; no weight has been read."""

    recipe: Recipe | Chooses
    source: Model
    target: Model
    source_graph: LayerGraph
    target_graph: LayerGraph


@dataclass(frozen=True)
class Planned(Loaded):
    """A plan and what it was made from."""

    request: TransferRequest
    choice: Choice  # the recipe that plans, and why it was taken: empty where the user named it
    plan: Plan
    candidates: tuple[Planned, ...] = ()  # what measuring will choose from, this one included; empty: no contest

    @property
    def reads_weights(self) -> bool:
        """Whether the plan may be another one once the source's weights have been read."""
        recipe = self.choice.recipe
        return isinstance(recipe, ReadsWeights) and recipe.reads_weights

    def as_candidate(self) -> dict[str, Any]:
        """The row of a contest (contest.py) that has not been held."""
        facts = {"recipe": self.choice.name, "why": self.choice.why, "taken": self.choice.expected}
        return facts | {"carried": None, "note": "expected" if self.choice.expected else "to be measured"}

    def with_weights(self, tensors: Mapping[str, Tensor]) -> Planned:
        """The plan that the recipe makes when it knows the source's weights."""
        return self._made(tensors) if self.reads_weights else self

    def without_running(self, why: str, tensors: Mapping[str, Tensor]) -> Planned | None:
        """A plan that needs no network to run, with none of the user's passes; None where the user named the recipe."""
        if not isinstance(self.recipe, Chooses):
            return None
        request = replace(self.request, passes=())
        return replace(self, request=request, choice=self.recipe.fallback(why))._made(tensors)

    def _made(self, tensors: Mapping[str, Tensor]) -> Planned:
        return replace(self, plan=_plan(self.request, self.choice, self, tensors))


def make_plan(request: TransferRequest, *, progress: Progress = lambda _: None) -> Planned:
    """What a transfer would do; no weight is read or downloaded. Raises as ``load`` and ``plan``."""
    return plan(request, load(request, progress))


def load(request: TransferRequest, progress: Progress) -> Loaded:
    """The recipe with its options, and both models, traced on the meta device.

    Raises UnknownName and UsageError for the recipe, NetgraftError for all that can be wrong with a reference.
    """
    recipe = plugins.create("recipes", request.recipe, request.options)
    if not isinstance(recipe, (Recipe, Chooses)):
        what = f"The recipe {request.recipe} has no methods pair(source, target) and plan(task)."
        raise UsageError(what, hint="See netgraft.recipes.protocol and examples/own_recipe.py.")
    source, target = request.source.load(), request.target.load()
    progress(f"tracing {request.source.reference}")
    source_graph = trace(source)
    progress(f"tracing {request.target.reference}")
    return Loaded(recipe, source, target, source_graph, trace(target))


def plan(request: TransferRequest, loaded: Loaded) -> Planned:
    """What the recipe asked for, or the one that it chooses, makes of the two graphs.

    A recipe that chooses channels by the source's weights cannot do so here, and says what it does instead
    (``Planned.with_weights``). Where measuring will choose, the plan is the one that the rule expects. Raises
    NothingToTransfer if not a single tensor of a layer would move.
    """
    graphs = loaded.source_graph, loaded.target_graph
    choices: Sequence[Choice] = ()
    if isinstance(loaded.recipe, Competes):
        choices = loaded.recipe.candidates(*graphs, find_device(request.device).type)
        choice = next(each for each in choices if each.expected)
    elif isinstance(loaded.recipe, Chooses):
        choice = loaded.recipe.choose(*graphs, find_device(request.device).type)
    else:
        choice = Choice(request.recipe, loaded.recipe, "")
    expected = Planned(**vars(loaded), request=request, choice=choice, plan=_plan(request, choice, loaded, None))
    return replace(expected, candidates=tuple(_rivals(choices, expected)))


def _rivals(choices: Sequence[Choice], expected: Planned) -> Iterator[Planned]:
    """Each choice with its plan, without those that have nothing to transfer, or less than was asked for."""
    for choice in choices:
        if choice is expected.choice:
            yield expected
            continue
        with suppress(NothingToTransfer, CheckFailed):
            plan = _plan(expected.request, choice, expected, None)
            check_coverage(plan, expected.request.fail_under)
            yield replace(expected, choice=choice, plan=plan)


def read_source(planned: Planned, progress: Progress) -> PretrainedWeights:
    """The source's weights. Raises NonFiniteWeights for NaN and infinity, unless they are allowed."""
    progress(f"reading the weights of {planned.request.source.reference}")
    return read_weights(planned.source, allow_nonfinite=planned.request.source.allow_nonfinite)


def check_operators(names: Iterable[str]) -> None:
    """Refuse, before weights are read, an operator that does not exist, or whose fate a plan cannot tell.

    Raises UnknownName, UsageError.
    """
    for name in names:
        fate = getattr(plugins.load("operators", name), "fate", None)
        if fate not in OF_OPERATORS or written_fate(name) != fate:
            what = f"The operator {name} does not say what becomes of a tensor."
            known = " or ".join(f'"{each}"' for each in OF_OPERATORS)
            raise UsageError(
                what, where=f"its fate is {fate!r}", hint=f"Write fate: ClassVar[str] = {known} in its class."
            )


def check_coverage(plan: Plan, fail_under: float) -> None:
    """Raise CheckFailed if less than ``fail_under`` percent of the target's elements come from the source."""
    percent = 100 * plan.source_share
    if percent < fail_under:
        raise CheckFailed(
            f"Only {percent:.1f} % of {plan.target} comes from {plan.source}, not the {fail_under:g} % asked for.",
            hint="`netgraft plan` shows what is kept and why.",
        )


def _plan(request: TransferRequest, choice: Choice, loaded: Loaded, weights: Mapping[str, Tensor] | None) -> Plan:
    source, target = loaded.source_graph, loaded.target_graph
    recipe, sides = choice.recipe, (request.source, request.target)
    warnings = [
        f"{side.role} {side.reference}: {text}"
        for side, model, graph in zip(sides, (loaded.source, loaded.target), (source, target), strict=True)
        for text in (*model.notes, *graph.warnings)
    ]
    norms = None
    if isinstance(recipe, ReadsWeights) and recipe.reads_weights:
        if weights is not None:
            norms = channel_norms(weights)
        else:
            warnings.append("channels are chosen by their weights when these are read; this plan spreads them evenly")
    pairing, moves, kept = run_recipe(recipe, source, target, norms)
    check_operators(dict.fromkeys(step.operator for move in moves for step in move.steps))
    copied = frozenset(move.key for move in moves if move.is_copy)
    whole = bool(moves) and not any(move.steps for move in moves)  # one architecture: nothing to improve on
    makes = recipe.passes(source, target) if isinstance(recipe, RunsPasses) else ()
    own = plan_passes(makes, source, target, pairing, copied)
    passes = (
        *(each for each in own if each.keys and (not whole or each.options.get("spare") == "copied")),
        *plan_passes(request.passes, source, target, pairing, copied),
    )
    if not moves and not any(each.keys and each.fate in (REFITTED, DISTILLED) for each in passes):
        reasons = dict.fromkeys(fate.why for fate in kept) or {"the target has no weights": None}
        raise NothingToTransfer(
            f"{request.source.reference} and {request.target.reference} have no layer in common that {choice.name} "
            "could transfer.",
            where="; ".join([choice.why] * bool(choice.why) + list(reasons)[:3]),
            hint="See what each chain holds: netgraft inspect-chains "
            f"{request.source.reference} {request.target.reference}. Another --matcher or source may fit.",
        )
    plan = Plan(
        source=request.source.reference,
        target=request.target.reference,
        source_fingerprint=source.fingerprint(),
        target_fingerprint=target.fingerprint(),
        recipe=choice.name,
        options=to_jsonable({option.name: getattr(recipe, option.name) for option in plugins.options(type(recipe))}),
        pairing=pairing,
        moves=moves,
        kept=kept,
        warnings=tuple(warnings),
        passes=passes,
        chosen=choice.why,
    )
    plan.check_law(target.slots)
    return plan
