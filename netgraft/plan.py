"""What will happen to every key of the target's state_dict, before anything happens.

The law: every key of the target ends in exactly one of ``Plan.moves`` or ``Plan.kept``, each with a reason. The
report, the checkpoint's metadata and the coverage gate all read this one object. Nothing here imports torch.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from math import prod
from typing import Any

from netgraft import plugins
from netgraft.architecture.graph import Shape, Slot, to_jsonable
from netgraft.errors import PlanError, UnknownName, UsageError

VERSION = 2

EXACT, INTERPOLATED, STACKED, SET, KEPT = "exact", "interpolated", "stacked", "set", "kept"
REFITTED, DISTILLED, RECALIBRATED = "refitted", "distilled", "recalibrated"
FATES = (EXACT, INTERPOLATED, STACKED, SET, REFITTED, DISTILLED, RECALIBRATED, KEPT)
"""What can have happened to a tensor. Kernels are interpolated, channels stacked (one that was both counts as stacked);
what was set by rule, such as the zero end of an inserted block or attention to neighbours, is ``set``. The last of the
passes that run after the moves decides: layers refitted to the source's activations, trained on its answers, or given
new statistics."""

OF_OPERATORS = (EXACT, INTERPOLATED, STACKED, SET)
"""What an operator can say of a tensor as its ``fate``; of several in a row the last one here counts."""
OF_PASSES = ("", SET, REFITTED, DISTILLED, RECALIBRATED)
"""The same for passes; empty: where the numbers come from stays as it was."""


MAPPED, SKIPPED = "mapped by --map", "skipped by --skip"
"""How the reasons of what the user said about single layers begin."""


@dataclass(frozen=True)
class Pair:
    """A source layer whose weights go to a target layer, and why."""

    source: str
    target: str
    why: str


@dataclass(frozen=True)
class Pairing:
    """What a matcher decides: pairs in target order, and a reason for every target layer left without one."""

    pairs: tuple[Pair, ...]
    unpaired: Mapping[str, str] = field(default_factory=dict)
    inserted: tuple[str, ...] = ()  # target layers of extra blocks, which must pass their input through
    zeroed: Mapping[str, str] = field(default_factory=dict)  # the ends of these blocks, to be set to zero, and why
    diracs: tuple[str, ...] = ()  # target layers of a plain chain that are to pass their input through
    notes: tuple[str, ...] = ()  # what the two networks do not have in common

    @property
    def mapped(self) -> dict[str, str]:
        """The source layer of each target layer that the user mapped."""
        return {pair.target: pair.source for pair in self.pairs if pair.why.startswith(MAPPED)}

    @property
    def skipped(self) -> frozenset[str]:
        """Target layers that are to keep their own initialisation because the user says so."""
        return frozenset(name for name, why in self.unpaired.items() if why.startswith(SKIPPED))


@dataclass(frozen=True)
class Step:
    """One call of an operator from ``netgraft.operators``: its name and its options (JSON-able)."""

    operator: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Move:
    """A target tensor made from a source tensor by a sequence of steps (none: a copy)."""

    key: str
    source_key: str  # empty: made from the target's own initial values, as where they are set to zero
    shape: Shape
    source_shape: Shape
    steps: tuple[Step, ...]
    why: str

    @property
    def is_copy(self) -> bool:
        """Whether it is the source's tensor as it is."""
        return bool(self.source_key) and not self.steps

    @property
    def fate(self) -> str:
        """The weightiest of what its operators say; "stacked" for one that says nothing or is not at hand."""
        fates = {written_fate(step.operator) for step in self.steps}
        return max(fates, key=OF_OPERATORS.index, default=EXACT)


@dataclass(frozen=True)
class Kept:
    """A target tensor that keeps the target's own initialisation."""

    key: str
    shape: Shape
    why: str


WantedPass = tuple[str, Mapping[str, object]]
"""A pass by name, and its options."""


@dataclass(frozen=True)
class PlannedPass:
    """A pass from ``netgraft.passes`` that runs after the moves, and the keys it may change."""

    name: str
    options: Mapping[str, Any]
    fate: str  # empty: where the numbers come from stays as it was
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The whole transfer, on paper."""

    source: str
    target: str
    source_fingerprint: str
    target_fingerprint: str
    recipe: str
    options: Mapping[str, Any]
    pairing: Pairing
    moves: tuple[Move, ...]
    kept: tuple[Kept, ...]
    warnings: tuple[str, ...] = ()
    passes: tuple[PlannedPass, ...] = ()
    chosen: str = ""  # why this recipe, where netgraft chose it
    version: int = VERSION

    def check_law(self, keys: Iterable[str]) -> None:
        """Raise PlanError unless ``keys``, the target's state_dict, each have exactly one fate."""
        wanted = list(keys)
        fates = [move.key for move in self.moves] + [kept.key for kept in self.kept]
        twice = sorted(key for key, count in Counter(fates).items() if count > 1)
        missing = sorted(set(wanted) - set(fates))
        unknown = sorted(set(fates) - set(wanted))
        if twice or missing or unknown:
            raise PlanError(
                "The plan does not give every target key exactly one fate.",
                where=f"twice: {twice}; missing: {missing}; not in the target: {unknown}",
            )

    def coverage(self) -> dict[str, int]:
        """Elements of the target by fate (parameters and buffers together)."""
        counts = dict.fromkeys(FATES, 0)
        fates = self.fates
        entries: list[Move | Kept] = [*self.moves, *self.kept]
        for entry in entries:
            counts[fates[entry.key]] += prod(entry.shape)
        return counts

    @cached_property
    def fates(self) -> dict[str, str]:
        """What has happened to each key when all is done."""
        found = {move.key: move.fate for move in self.moves} | {kept.key: KEPT for kept in self.kept}
        for each in self.passes:
            if each.fate:
                found |= dict.fromkeys(each.keys, each.fate)
        return found

    def after_passes(self, changed: Collection[str], reports: Sequence[Mapping[str, Any]]) -> Plan:
        """The plan of what was done: of the keys that its passes may change, those that they have changed.

        A pass that reports that it was cut short has that among its options, and so has a recipe with such an option:
        with these they do the same again.
        """
        passes, options = [], dict(self.options)
        for each, report in zip(self.passes, reports, strict=True):
            cut = {"cut": report["cut"]} if report.get("cut") is not None else {}
            options |= cut if "cut" in options and each.fate == DISTILLED else {}
            keys = tuple(key for key in each.keys if key in changed)
            passes.append(replace(each, keys=keys, options={**each.options, **cut}))
        return replace(self, passes=tuple(passes), options=options)

    @cached_property
    def copied(self) -> frozenset[str]:
        """The keys of tensors that are the source's as they are."""
        return frozenset(move.key for move in self.moves if move.is_copy)

    @property
    def source_share(self) -> float:
        """Share of the target's elements that come from the source, 0 to 1."""
        coverage = self.coverage()
        total = sum(coverage.values())
        return (total - coverage[KEPT] - coverage[SET]) / total if total else 0.0

    @property
    def claims_exactness(self) -> bool:
        """Whether the recipe is one that notes what is not exact (it has the option ``exact``), and noted nothing."""
        return "exact" in self.options and not self.pairing.notes

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = to_jsonable(asdict(self))
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | str) -> Plan:
        """Inverse of ``to_json``; raises PlanError on another version or a malformed document."""
        try:
            content: Any = json.loads(document) if isinstance(document, str) else document
            version = content["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError("This is not a netgraft plan.", where=repr(error)) from error
        if version != VERSION:
            raise PlanError(f"This plan has version {version}, this netgraft reads version {VERSION}.")
        try:
            pairing = content["pairing"]
            moves = tuple(
                Move(
                    **{
                        **move,
                        "shape": tuple(move["shape"]),
                        "source_shape": tuple(move["source_shape"]),
                        "steps": tuple(Step(**step) for step in move["steps"]),
                    }
                )
                for move in content["moves"]
            )
            kept = tuple(Kept(**{**entry, "shape": tuple(entry["shape"])}) for entry in content["kept"])
            return cls(
                **{
                    **content,
                    "pairing": Pairing(
                        tuple(Pair(**pair) for pair in pairing["pairs"]),
                        pairing["unpaired"],
                        tuple(pairing["inserted"]),
                        pairing["zeroed"],
                        tuple(pairing["diracs"]),
                        tuple(pairing["notes"]),
                    ),
                    "moves": moves,
                    "kept": kept,
                    "warnings": tuple(content["warnings"]),
                    "chosen": content["chosen"],
                    "passes": tuple(PlannedPass(**{**each, "keys": tuple(each["keys"])}) for each in content["passes"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise PlanError("This is not a netgraft plan.", where=repr(error)) from error


def moves_to(slot: Slot, source_key: str, source_shape: Shape, steps: tuple[Step, ...], why: str) -> list[Move]:
    """One move per key of a target tensor: tied weights have several."""
    return [Move(key, source_key, slot.shape, source_shape, steps, why) for key in slot.keys]


def written_fate(operator: str) -> str:
    """The ``fate`` in an operator's class, read without importing it; "stacked" for one that has none or is missing."""
    return _read_fate(operator) if ".py" in operator else _known_fate(operator)


def _read_fate(operator: str) -> str:
    try:
        fate = ast.literal_eval(plugins.describe("operators", operator).variables["fate"])
    except (KeyError, SyntaxError, ValueError, UsageError, UnknownName):
        return STACKED
    return str(fate) if fate in OF_OPERATORS else STACKED


_known_fate = cache(_read_fate)
