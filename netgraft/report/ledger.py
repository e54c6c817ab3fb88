"""The ledger of a transfer: what was paired with what, where every number came from, how to load the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netgraft.errors import CorruptFile
from netgraft.plan import DISTILLED, FATES, KEPT, RECALIBRATED, REFITTED, SET, Move, Plan, Step, numel
from netgraft.report.text import percent, safe, shape_text, some, table

if TYPE_CHECKING:
    from netgraft.models.references import Reference


MOST_NOTES = 8


def ledger(plan: Plan, receipt: Mapping[str, Any] | None = None) -> Iterator[str]:
    """A plan for people to read: the pairs, the shares by fate, what was kept and why, the warnings.

    That the target computes what the source computes is said only where the ``receipt`` of a transfer measured it.
    """
    yield f"{safe(plan.source)} -> {safe(plan.target)}   (recipe {plan.recipe}{_options(plan)})"
    yield ""
    if plan.chosen:
        yield safe(f"chosen: {plan.chosen}")
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
        for lines in (origin_lines(provenance), ledger(plan), every_tensor(plan), pass_lines(provenance)):
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
    main = max(moves, key=lambda move: numel(move.shape))
    how = _how(main)
    if target in plan.pairing.inserted:
        how += ", in an inserted block" + (" that it ends" if target in plan.pairing.zeroed else "")
    return (source, shape_text(main.source_shape), target, shape_text(main.shape), how)


def _how(move: Move) -> str:
    return (
        ", ".join(_step(step, move) for step in move.steps if step.operator not in ("flatten", "unflatten")) or "copied"
    )


def _step(step: Step, move: Move) -> str:
    """A step in a few words; sizes are those of the whole tensor, before and after."""
    options = dict(step.options)
    if step.operator == "overlay":
        return _overlaid(options)
    if step.operator == "fold-norm":
        return "norm folded in"
    unflattened = [s.options["shape"] for s in move.steps if s.operator == "unflatten"]
    folded = unflattened[0] if unflattened else move.source_shape[1:]  # channels and kernel of the input side
    if step.operator in ("bilinear", "bicubic", "centre", "pi-resize") and "size" in options:
        return f"{step.operator} {shape_text(tuple(folded[1:]))} to {shape_text(tuple(options['size']))}"
    if isinstance(options.get("dim"), int):
        dim = options["dim"]
        axis = {0: "out", 1: "in"}.get(dim, f"axis {dim}") if len(move.shape) != 1 else ""
        before = folded[0] if dim == 1 else move.source_shape[dim]
        after = options.get("size") if isinstance(options.get("size"), int) else move.shape[dim]
        words = [step.operator, axis, "" if before == after else f"{before} to {after}"]
        return " ".join(filter(None, words))
    return " ".join([step.operator, *(f"{k}={v}" for k, v in options.items())])


def _overlaid(options: Mapping[str, Any]) -> str:
    """How many channels have a source: "32 of 40 out, 16 of 24 in"."""
    words = []
    for side, runs in (("out", options["rows"]), ("in", options.get("columns"))):
        if runs:
            total, new = sum(count for _, count in runs), sum(count for start, count in runs if start < 0)
            words.append(f"{total - new} of {total} {side}" if new else f"{total} {side}")
    return ", ".join(words) + (", scale of the initialisation" if options.get("norm") == "own" else "")


def _origin(move: Move) -> str:
    return f"{move.source_key} {shape_text(move.source_shape)}" if move.source_key else "its own initial values"


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


def pass_lines(provenance: Mapping[str, Any]) -> Iterator[str]:
    """What the passes of a written checkpoint reported; nothing for a file without any."""
    for report in provenance.get("passes", ()):
        name = report["name"]
        if name == "refit":
            known = [layer["r2"] for layer in report["layers"] if layer["r2"] is not None]
            spread = f": R^2 from {min(known):.2f} to {max(known):.2f}" if known else ""
            yield f"refit: {len(report['layers'])} layers on {report['images']} images{spread}"
            rows = [
                (layer["source"], layer["layer"], "" if layer["r2"] is None else f"{layer['r2']:.2f}", layer["how"])
                for layer in report["layers"]
            ]
            yield from table(("follows", "target layer", "R^2", "how"), rows, indent="  ")
            for why in dict.fromkeys(report["left"].values()):
                yield safe(f"  {some([name for name, w in report['left'].items() if w == why])}: {why}")
        elif name == "distil":
            before, after = (100 * report["agreement"][when] for when in ("before", "after"))
            yield (
                f"distil: {report['steps']} steps on {report['images']} images; agrees with the source on "
                f"{after:.0f} % of {report['agreement']['images']} others ({before:.0f} % before)"
            )
        else:
            facts = ", ".join(f"{key} {_brief(value)}" for key, value in report.items() if key != "name")
            yield safe(f"{name}: {facts}")


def _brief(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return some([str(each) for each in value]) if isinstance(value, list) and value else str(value or 0)


def _exactness(plan: Plan, receipt: Mapping[str, Any] | None) -> Iterator[str]:
    """Whether the target computes what the source computes: what the plan says of it, and what was measured."""
    notes, planned = plan.pairing.notes, plan.recipe == "grow" and not plan.pairing.notes
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
