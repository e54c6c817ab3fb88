"""Which layers' outputs are compared: by how far each network has come, the init's ledger, a matcher, or by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from netgraft import plugins
from netgraft.architecture.graph import LayerGraph
from netgraft.errors import UnknownName, UsageError
from netgraft.finetune.protocol import FeaturePair
from netgraft.finetune.toolbox.taps import shapes
from netgraft.passes.refitting.pairing import follow_points
from netgraft.plan import DISTILLED, REFITTED, Plan

Names = list[tuple[str, str]]  # source layer, target layer


def given_names(text: str) -> Names | None:
    """The pairs written as ``layer3:stage2,layer4:stage3``; None for "stages" and "all". Raises UsageError."""
    if text in ("stages", "all"):
        return None
    pairs = [tuple(part.strip() for part in entry.split(":")) for entry in text.split(",") if entry.strip()]
    if not pairs or any(len(pair) != 2 or not all(pair) for pair in pairs):
        hint = "Type --pairs stages, --pairs all, or --pairs SOURCE:TARGET,SOURCE:TARGET with layers' names."
        raise UsageError("The pairs cannot be understood.", where=f"--pairs {text}", hint=hint)
    return [(pair[0], pair[1]) for pair in pairs]


def names_of(
    plan: Plan | None, source: str, trace_both: Callable[[], tuple[LayerGraph, LayerGraph]], matcher: str | None
) -> tuple[Names, bool]:
    """Pairs of layers, and whether they stand for all that is computed up to them, rather than for their own output.

    Those of a matcher, if one is named; those of a plan that moved weights of this source and left it at that; else how
    far the source has come where the target is (``passes.refitting.pairing``), which is what a refit follows too.
    The graphs are traced only if need be.
    """
    if matcher is not None:
        pairing = plugins.create("matchers", matcher, {})(*trace_both())
        return [(pair.source, pair.target) for pair in pairing.pairs], False
    if plan is not None and plan.source == source and plan.pairing.pairs and not _computed(plan):
        return [(pair.source, pair.target) for pair in plan.pairing.pairs], False
    mapped = plan.pairing.mapped if plan is not None and plan.source == source else {}
    followed = follow_points(*trace_both())
    return [(mapped.get(target_layer, source_layer), target_layer) for source_layer, target_layer in followed], True


def _computed(plan: Plan) -> bool:
    """Whether layers got their weights from what the source computes, not from where its weights moved."""
    return any(each.fate in (REFITTED, DISTILLED) for each in plan.passes)


def measure(
    names: Names,
    source: nn.Module,
    target: nn.Module,
    images: tuple[Tensor, Tensor],  # for the source, for the target
    *,
    chosen: bool,
) -> tuple[FeaturePair, ...]:
    """The pairs with the shapes of their outputs. Both networks run once.

    Pairs that cannot be compared are left out: of maps with vectors, of layers that do not run, of classifiers.
    ``chosen`` pairs, by hand, are refused instead: raises UnknownName, UsageError.
    """
    if not chosen:
        known = [{path for path, _ in module.named_modules()} for module in (source, target)]
        names = [(a, b) for a, b in names if a in known[0] and b in known[1]]  # the rest are no modules
    source_shapes = shapes(source, [a for a, _ in names], images[0])
    target_shapes = shapes(target, [b for _, b in names], images[1])
    found = []
    for a, b in names:
        if a in source_shapes and b in target_shapes and len(source_shapes[a]) == len(target_shapes[b]):
            found.append(FeaturePair(a, b, source_shapes[a], target_shapes[b]))
        elif chosen:
            where = f"{a} {source_shapes.get(a, 'none')}, {b} {target_shapes.get(b, 'none')}"
            hint = "Outputs must have as many axes, and be none of the classifier's."
            raise UsageError("These layers cannot be compared.", where=where, hint=hint)
    return tuple(found)


def last_of_stages(pairs: Sequence[FeaturePair]) -> tuple[FeaturePair, ...]:
    """The last pair of each stage: of those whose target outputs have one height and width, or length."""
    last = {pair.target_shape[1:] if len(pair.target_shape) == 3 else len(pair.target_shape): pair for pair in pairs}
    return tuple(pair for pair in pairs if pair in last.values())


def check_some(pairs: Sequence[FeaturePair], source: str, target: str) -> None:
    if not pairs:
        hint = f"Name them: --pairs SOURCE:TARGET; netgraft inspect-chains {source} {target} shows the layers."
        raise UsageError("No layers of the source and the target are paired.", where=f"{source}, {target}", hint=hint)


def check_matcher(name: str | None) -> None:
    known = plugins.listing("matchers")
    if name is not None and name not in known and not name.endswith(".py"):
        raise UnknownName("matcher", name, known)
