"""What a recipe is: a frozen dataclass that says, from two graphs alone, how a target is made from a source.

A recipe answers two questions. ``pair``: which layer's weights go to which layer. ``plan``: from what, and by which
steps, each tensor is made. Between the two the user has the last word on single layers (``--map``, ``--skip``), and
after them every key of the target that no move makes keeps its own initialisation, with a reason: a recipe need not
see to either (``recipes.run``). What else a recipe can do it shows by having the methods of one of the capabilities
below. The smallest one is ``examples/own_recipe.py``. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from netgraft.architecture.graph import Layer, LayerGraph
from netgraft.channels.correspondence import Norms
from netgraft.plan import Move, Pairing, WantedPass


@dataclass(frozen=True)
class Task:
    """What a recipe has to plan."""

    source: LayerGraph
    target: LayerGraph
    pairing: Pairing  # the recipe's own, with --map and --skip over it
    stays: Mapping[str, str] = field(default_factory=dict)  # paired heads that keep their initialisation, and why
    norms: Norms | None = None  # of the source's weights, where these have been read


class Draft(NamedTuple):
    """What a recipe makes of a task. Keys of the target without a move are kept."""

    moves: Iterable[Move]
    reasons: Mapping[str, str] = {}  # why a key, or all keys of a layer, are kept, where the pairing does not say so
    otherwise: str = "no counterpart in the source"  # the reason for all other layers
    notes: Iterable[str] = ()  # what is not exact, after the notes of the pairing


@runtime_checkable
class Recipe(Protocol):
    """See the module's text."""

    def pair(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        """Which layer goes to which."""

    def plan(self, task: Task) -> Draft:
        """From what each tensor of the target is made. Of several moves to one key the first counts."""


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """Options about single layers. A recipe that inherits them takes ``--head``, ``--map`` and ``--skip``."""

    head: Literal["same-size", "always", "never"] = field(
        default="same-size", metadata={"help": "when the classifier's weights move"}
    )
    maps: tuple[tuple[str, str], ...] = field(
        default=(), metadata={"help": "SOURCE=TARGET layers to pair, whatever the matcher says"}
    )
    skip: tuple[str, ...] = field(
        default=(), metadata={"help": "globs of target layers that keep their initialisation"}
    )

    def head_stays(self, source: Layer, target: Layer, *, from_head: bool) -> str:
        """Why the target's head keeps its own initialisation; empty if it takes the weights of ``source``.

        ``from_head``: whether ``source`` is the source's head.
        """
        if self.head == "always":
            return ""
        if self.head == "never":
            return "the head keeps its own initialisation (head=never)"
        if not from_head:
            return f"the head keeps its own initialisation: its partner {source.name} is not the source's head"
        if source.out_channels != target.out_channels:
            sizes = f"{source.out_channels} outputs in the source, {target.out_channels} in the target"
            return f"the head keeps its own initialisation: {sizes} (--head moves it anyway)"
        return ""


# --------------------------------------------------------------------------------------------------------- capabilities


class Choice(NamedTuple):
    """A recipe that another one took."""

    name: str
    recipe: Recipe
    why: str
    expected: bool = False  # of several candidates the one that the rule would take


@runtime_checkable
class Chooses(Protocol):
    """Takes another recipe, which then does all the rest. It needs neither ``pair`` nor ``plan``."""

    def choose(self, source: LayerGraph, target: LayerGraph, device: str) -> Choice:
        """The recipe for these two architectures on "cpu" or "cuda"."""

    def fallback(self, why: str) -> Choice:
        """The recipe where it turns out, and ``why``, that the networks of the one chosen cannot be run."""


@runtime_checkable
class Competes(Chooses, Protocol):
    """Leaves the last word to measuring, where the networks can be run: what each candidate carries (contest.py)."""

    def candidates(self, source: LayerGraph, target: LayerGraph, device: str) -> Sequence[Choice]:
        """What may be taken, the cheapest first; one of them is ``expected``, which ``choose`` would take."""

    def unproven(self) -> Competes:
        """The same without the candidate that is ``IsProven``, whose proof has failed."""


@runtime_checkable
class IsProven(Protocol):
    """Is taken only if both networks, run on the same inputs, differ by at most ``tolerance``, a relative error."""

    @property
    def tolerance(self) -> float: ...


@runtime_checkable
class ReadsWeights(Protocol):
    """Plans better once the source's weights have been read: ``Task.norms``."""

    @property
    def reads_weights(self) -> bool:
        """Whether it does with the options it has."""


@runtime_checkable
class RunsPasses(Protocol):
    """Goes on after the moves."""

    def passes(self, source: LayerGraph, target: LayerGraph) -> Sequence[WantedPass]:
        """Passes by name, with their options, in order."""


@runtime_checkable
class ShowsImages(Protocol):
    """Says which images its passes are shown, if the user does not: a generator, a folder or a picture."""

    @property
    def generator(self) -> str: ...


@runtime_checkable
class HasBudget(Protocol):
    """Says how long a transfer may take: passes that are at it then come to an end."""

    @property
    def budget(self) -> float:
        """Minutes."""
