"""The ledger of a transfer: what was paired with what, where every number came from, how to load the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgraft import plugins
from netgraft.architecture.graph import Shape
from netgraft.errors import CorruptFile, UsageError
from netgraft.operators.protocol import InWords, LaysOutAnew
from netgraft.plan import (
    DISTILLED,
    EXACT,
    FATES,
    INTERPOLATED,
    KEPT,
    RECALIBRATED,
    REFITTED,
    SET,
    STACKED,
    Move,
    Plan,
    Step,
)
from netgraft.report.text import percent, safe, shape_text, some, table

if TYPE_CHECKING:
    from netgraft.models.references import Reference


MOST_NOTES = 8
LITTLE = 0.01
"""A smaller share of the target that comes from the source is the first thing that is said."""


def ledger(
    plan: Plan, receipt: Mapping[str, Any] | None = None, candidates: Iterable[Mapping[str, Any]] = ()
) -> Iterator[str]:
    """A plan for people to read: the verdict, the pairs, the shares by fate, what was kept and why, the warnings.

    That the target computes what the source computes is said only where the ``receipt`` of a transfer measured it.
    ``candidates`` are the rows of a contest, or those that one would have.
    """
    if plan.source_share < LITTLE:
        share = percent(round(1e6 * plan.source_share), 10**6)
        yield f"warning: next to nothing ({share} of the target's numbers) comes from the source"
    yield f"{safe(plan.source)} -> {safe(plan.target)}   (recipe {plan.recipe}{_options(plan)})"
    yield _verdict(plan)
    yield from carried_lines(receipt)
    yield from _candidates(candidates)
    yield ""
    header = ("source layer", "shape", "target layer", "shape", "how")
    yield from table(header, (_pair_row(plan, pair.source, pair.target) for pair in plan.pairing.pairs), indent="  ")
    yield ""
    yield from _shares(plan)
    yield from _passes(plan)
    yield from _kept(plan)
    yield from _exactness(plan, receipt)
    for warning in plan.warnings:
        yield f"warning: {safe(warning)}"


def every_tensor(plan: Plan) -> Iterator[str]:
    """One line per key of the target: its fate, where it came from or why it was kept."""
    fates = plan.fates
    rows = [
        (
            move.key,
            shape_text(move.shape),
            fates[move.key],
            f"{move.source_key} {shape_text(move.source_shape)}{_arrow(move)}",
        )
        for move in plan.moves
    ]
    rows += [(kept.key, shape_text(kept.shape), fates[kept.key], kept.why) for kept in plan.kept]
    yield from table(("tensor", "shape", "fate", "from, or why kept"), sorted(rows), indent="  ")


def recorded_plan(provenance: Mapping[str, Any], file: Path) -> Plan:
    """The plan in the ledger of a written checkpoint; CorruptFile if the ledger is not one of netgraft's."""
    try:
        plan = Plan.from_json(provenance["plan"])
        candidates = provenance.get("candidates", ())
        for lines in (
            origin_lines(provenance),
            ledger(plan, None, candidates),
            every_tensor(plan),
            pass_lines(provenance),
        ):
            list(lines)  # whoever wrote the file may have put anything anywhere
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        where = f"{file}: {type(error).__name__}: {error}"
        raise CorruptFile("The ledger in the file's metadata is not one that netgraft wrote.", where=where) from error
    return plan


def origin_lines(provenance: Mapping[str, Any]) -> Iterator[str]:
    """Where the weights of a written checkpoint came from."""
    yield f"written by netgraft {safe(str(provenance['version']))}"
    for title in ("source", "kept"):
        origin = provenance[title]
        digest = f", sha256 of the {origin['hashed']} {origin['sha256']}" if "sha256" in origin else ""
        yield safe(f"{title}: {origin['description']}{digest}")
        yield from (f"  {safe(note)}" for note in origin.get("notes", ()))


def training_lines(provenance: Mapping[str, Any]) -> Iterator[str]:
    """What is known of a fine-tuned checkpoint: settings, data, where it began, what it reached."""
    yield f"fine-tuned by netgraft {safe(str(provenance.get('version')))}"
    training = provenance["finetune"]
    for name, value in sorted(training.items()) if isinstance(training, Mapping) else ():
        if value not in (None, [], {}):
            yield safe(f"  {name}: {_facts(value)}")


def _facts(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_facts(each)}" for name, each in value.items() if each not in (None, [], {}))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def notes(provenance: Mapping[str, Any]) -> Iterator[str]:
    """What was remarkable about the weights that were read: an average taken, keys converted."""
    for title in ("source", "kept"):
        yield from (f"note: {safe(note)}" for note in provenance[title].get("notes", ()))


def how_to_load(path: str, target: Reference, target_args: Mapping[str, object]) -> Iterator[str]:
    """The lines that load the written file in PyTorch and, for a timm architecture, in timm."""
    args = [f"{name}={value!r}" for name, value in target_args.items()]
    built = f" with {', '.join(args)}" if args else ""
    yield "Load it in PyTorch:"
    yield "    from safetensors.torch import load_file"
    yield safe(f"    model.load_state_dict(load_file({path!r}))  # model is {target.text}{built}")
    if target.kind == "timm":
        yield "Load it in timm:"
        call = ", ".join([repr(target.name), f"checkpoint_path={path!r}", *args])
        yield safe(f"    model = timm.create_model({call})")


def carried_lines(receipt: Mapping[str, Any] | None) -> Iterator[str]:
    """How much of what the source sees the target carries; nothing where that was not measured."""
    carried = (receipt or {}).get("carried")
    if carried is None or "share" not in carried:
        return
    before = next((f" ({name}: {carried[name]:.2f})" for name in ("random", "own") if name in carried), "")
    line = f"carries {carried['share']:.2f} of what the source sees{before}"
    if "agreement" in carried:
        line += f", the same top class on {100 * carried['agreement']:.0f} %"
    yield f"{line}, on {carried['held_out']} held-out images ({safe(carried['images'])})"


def _verdict(plan: Plan) -> str:
    """What became of how many tensors, and why this recipe."""
    counts = Counter(plan.fates.values())
    total = sum(counts.values())
    parts = [f"{counts[EXACT]} of {total} tensor{'s' * (total != 1)} copied"]
    for fates, word in (
        ((INTERPOLATED, STACKED), "converted"),
        ((REFITTED, DISTILLED, RECALIBRATED), "fitted"),
        ((SET, KEPT), "new"),
    ):
        if number := sum(counts[fate] for fate in fates):
            parts.append(f"{number} {word}")
    return ", ".join(parts) + (safe(f"; chosen because {plan.chosen}") if plan.chosen else "")


def _candidates(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """One row for each; the one that was taken, or is expected to be, has a star."""
    cells = [
        (
            ("* " if row["taken"] else "  ") + row["recipe"],
            "" if row["carried"] is None else f"{row['carried']:.3f}",
            "; ".join(filter(None, (row["note"], row["why"]))),
        )
        for row in rows
    ]
    if cells:
        yield from table(("  candidate", "carries", ""), cells, indent="  ")


def _options(plan: Plan) -> str:
    """The options that say something: switched off and absent ones do not."""
    told = {name: value for name, value in sorted(plan.options.items()) if value not in (None, False, (), [])}
    if "maps" in told:  # pairs; older ledgers hold them as text
        told["maps"] = ["=".join(pair) if isinstance(pair, (list, tuple)) else pair for pair in told["maps"]]
    return "".join(f", {name} {value}" for name, value in told.items())


def _pair_row(plan: Plan, source: str, target: str) -> tuple[str, ...]:
    moves = [m for m in plan.moves if m.key == target or m.key.startswith(f"{target}.") or target == "(model)"]
    if not moves:
        reasons = [kept.why for kept in plan.kept if kept.key == target or kept.key.startswith(f"{target}.")]
        return (source, "", target, "", f"kept: {reasons[0]}" if reasons else "kept")
    main = max(moves, key=lambda move: prod(move.shape))
    how = _how(main)
    if target in plan.pairing.inserted:
        how += ", in an inserted block" + (" that it ends" if target in plan.pairing.zeroed else "")
    return (source, shape_text(main.source_shape), target, shape_text(main.shape), how)


def _how(move: Move) -> str:
    words, before = [], move.source_shape
    for step in move.steps:
        operator = _operator(step)
        if isinstance(operator, InWords):
            words.append(operator.in_words(before, move.shape))
        elif not isinstance(operator, LaysOutAnew):
            words.append(_in_words(step, before, move.shape))
        if isinstance(operator, LaysOutAnew):
            before = operator.laid_out(before)
    return ", ".join(words) or "copied"


def _operator(step: Step) -> object:
    """The operator of a step; None if it cannot be had without running a file that has not run."""
    if plugins.known("operators", step.operator) is None:
        return None
    try:
        return plugins.create("operators", step.operator, step.options)
    except UsageError:
        return None


def _in_words(step: Step, before: Shape, after: Shape) -> str:
    """A step by its name and its sizes, which are those of the whole tensor, before and after."""
    dim, size = step.options.get("dim"), step.options.get("size")
    if not isinstance(dim, int):
        return " ".join([step.operator, *(f"{name}={value}" for name, value in step.options.items())])
    axis = {0: "out", 1: "in"}.get(dim, f"axis {dim}") if len(after) != 1 else ""
    goal = size if isinstance(size, int) else after[dim]
    return " ".join(filter(None, [step.operator, axis, "" if before[dim] == goal else f"{before[dim]} to {goal}"]))


def _arrow(move: Move) -> str:
    return f" ({_how(move)})" if move.steps else ""


def _shares(plan: Plan) -> Iterator[str]:
    coverage = plan.coverage()
    total = sum(coverage.values())
    rare = (SET, REFITTED, DISTILLED, RECALIBRATED)  # few recipes do that
    fates = (fate for fate in FATES if fate not in rare or coverage[fate])
    shares = "   ".join(f"{fate} {percent(coverage[fate], total)}" for fate in fates)
    yield f"{total:,} numbers in {len(plan.moves) + len(plan.kept)} tensors of the target:   {shares}"


def _passes(plan: Plan) -> Iterator[str]:
    for each in plan.passes:
        options = ", ".join(f"{name} {value}" for name, value in sorted(each.options.items()))
        yield safe(f"then {each.name}: {len(each.keys)} tensors{f' ({options})' if options else ''}")


_OF_ALL_PASSES = ("name", "pictures")  # of a report, whatever the pass


def pass_lines(provenance: Mapping[str, Any]) -> Iterator[str]:
    """What the passes of a written checkpoint reported; nothing for a file without any."""
    if not (reports := provenance.get("passes", ())):
        return
    from netgraft.passes.protocol import ReportsLines

    for report in reports:
        each = plugins.known("passes", report["name"])
        if isinstance(each, ReportsLines):
            yield from _set(each.lines(report))
        else:
            facts = ", ".join(f"{key} {_brief(value)}" for key, value in report.items() if key not in _OF_ALL_PASSES)
            yield safe(f"{report['name']}: {facts}")
        if "pictures" in report:
            yield safe(f"{report['name']}: {report['pictures']}")


def _set(lines: Iterable[str | tuple[str, ...]]) -> Iterator[str]:
    for is_table, group in groupby(lines, key=lambda line: isinstance(line, tuple)):
        if is_table:
            header, *rows = group
            yield from table(header, rows, indent="  ")
        else:
            yield from (safe(str(line)) for line in group)


def _brief(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return some([str(each) for each in value]) if isinstance(value, list) and value else str(value or 0)


def _exactness(plan: Plan, receipt: Mapping[str, Any] | None) -> Iterator[str]:
    """Whether the target computes what the source computes: what the plan says of it, and what was measured."""
    notes, planned = plan.pairing.notes, plan.claims_exactness
    output = receipt["output"] if receipt and "skipped" not in receipt else {}
    measured = f"relative error {output['error']:.2g} of the {output['compared']}" if "error" in output else ""
    holds = bool(receipt and measured and receipt["exact"]["holds"])
    if holds and (planned or notes):
        what = "the target computes" if output["compared"] == "output" else "up to its head the target computes"
        yield f"exact: {what} what the source computes (measured: {measured})"
    elif planned and measured:
        yield f"planned as exact, but measured otherwise: {measured}"
    elif planned:
        why = (receipt.get("skipped") or output.get("skipped")) if receipt else "no receipt"
        yield f"planned as exact; not measured ({safe(str(why))})"
    if notes:
        yield "not known to be exact from the plan alone:" if holds else "not exact:"
        yield from (f"  {safe(note)}" for note in notes[:MOST_NOTES])
        if len(notes) > MOST_NOTES:
            yield f"  and {len(notes) - MOST_NOTES} more (--format json has them all)"


def _kept(plan: Plan) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for kept in plan.kept:
        if plan.fates[kept.key] != KEPT:
            continue
        by_reason.setdefault(kept.why, []).append(kept.key)
    if by_reason:
        yield "kept at the target's own initialisation:"
        for why, keys in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            yield f"  {some(keys)}: {safe(why)}"
