"""Moves between two implementations of one network: what is split, joined, transposed and laid out anew."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

from netgraft.architecture.canonical import CanonicalGraph, Piece
from netgraft.architecture.graph import Layer, LayerGraph, Shape, Slot
from netgraft.channels.index_map import identity, runs
from netgraft.plan import Move, Pair, Step, moves_to
from netgraft.recipes._roles import roles_of
from netgraft.recipes.same_names import equal_names

WHY = "the same part of one network"
EPS = 1e-5


@dataclass(frozen=True)
class Meeting:
    """A part of the target, and the part of the source that it is."""

    source: Piece
    target: Piece


def meetings(source: CanonicalGraph, target: CanonicalGraph, same: Mapping[int, int]) -> dict[str, list[Meeting]]:
    """By the target's layer: its parts in order. ``same`` holds parts of the source by parts of the target."""
    found: dict[str, list[Meeting]] = {}
    for place, part in enumerate(target.parts):
        if part.layer and place in same:
            found.setdefault(part.layer, []).append(Meeting(source.parts[same[place]], part))
    return found


def pairs_of(found: Mapping[str, Sequence[Meeting]]) -> Iterator[Pair]:
    """One pair for every layer of the target, with the source layer of its first part."""
    for name, parts in found.items():
        yield Pair(parts[0].source.layer, name, WHY)
        for meeting in parts:
            given, wanted = meeting.source, meeting.target
            beside = (given.norm, wanted.norm), (given.scale, wanted.scale), (given.lent, wanted.lent)
            for donor, layer in beside:
                if layer:
                    yield Pair(donor or given.layer, layer, WHY)


def moves_of(source: LayerGraph, target: LayerGraph, parts: Sequence[Meeting]) -> list[Move]:
    """The moves for one layer of the target that has these parts, and for the norm folded into it."""
    layer = target.layers[parts[0].target.layer]
    one = parts[0].source
    whole = len(parts) == 1 and parts[0].target.rows is None
    moves = [move for meeting in parts for move in _lent(source, target, meeting)]
    if whole and one.rows is None:
        return [*moves, *_whole(source, target, parts[0])]
    roles = roles_of(layer)
    for role in ("weight", "bias"):
        if role == "bias" and "bias" in roles and whole and one.lent:
            given = roles_of(source.layers[one.lent])["value"]
            moves += moves_to(roles[role], given.key, given.shape, tuple(laid_out(given.shape, roles[role].shape)), WHY)
        elif role in roles:
            moves += _joined(source, layer, parts, role, roles[role])
    return moves


def loose_moves(source: LayerGraph, target: LayerGraph) -> Iterator[Move]:
    """Copies of numbers outside any layer, such as the buffers of a frozen norm: by name, else all in their order.

    Whole numbers stay the target's: they are tables that its constructor computes.
    """
    given, wanted = (
        [slot for slot in graph.loose.values() if "float" in slot.dtype or slot.dtype == "bfloat16"]
        for graph in (source, target)
    )
    names = equal_names(source, target)
    partners = {slot.key: source.slots[names[slot.key]] for slot in wanted if names.get(slot.key) in source.loose}
    if not partners and [slot.shape for slot in given] == [slot.shape for slot in wanted]:
        partners = {slot.key: partner for slot, partner in zip(wanted, given, strict=True)}
    for slot in wanted:
        if slot.key in partners:
            partner = partners[slot.key]
            yield from moves_to(slot, partner.key, partner.shape, (), "a number outside any layer, in the same place")


def table_moves(source: LayerGraph, target: LayerGraph, found: Mapping[str, Sequence[Meeting]]) -> Iterator[Move]:
    """Copies of tables that are a parameter in one network and a buffer in the other, where there is but one such size.

    Others are computed by the target's constructor, as it makes them anyway.
    """
    learned = {slot.key for parts in found.values() for part in parts for slot in _of(source, part.source.layer)}
    given, wanted = (_tables(source, learned), _tables(target, {s.key for name in found for s in _of(target, name)}))
    for slot in wanted:
        partners = [each for each in given if prod(each.shape) == prod(slot.shape) and each.buffer != slot.buffer]
        if len(partners) == 1:
            steps = tuple(laid_out(partners[0].shape, slot.shape))
            yield from moves_to(slot, partners[0].key, partners[0].shape, steps, "the same table of one network")


def _of(graph: LayerGraph, name: str) -> list[Slot]:
    return list(graph.layers[name].tensors.values()) if name else []


def _tables(graph: LayerGraph, known: Collection[str]) -> list[Slot]:
    """Parameters that the model's own code uses, and buffers of more than one number, without those that are known."""
    found = [slot for layer in graph.layers.values() if layer.kind == "parameter" for slot in layer.tensors.values()]
    found += [slot for slot in graph.loose.values() if "float" in slot.dtype and prod(slot.shape) > 1]
    return [slot for slot in found if slot.key not in known]


# ---------------------------------------------------------------------------------------------------------- one to one


def _whole(source: LayerGraph, target: LayerGraph, meeting: Meeting) -> Iterator[Move]:
    donor, layer = source.layers[meeting.source.layer], target.layers[meeting.target.layer]
    given, roles = roles_of(donor), roles_of(layer)
    if meeting.source.lent:
        given |= {"bias": roles_of(source.layers[meeting.source.lent])["value"]}
    if donor.is_norm and donor.rules.has_statistics and not layer.rules.has_statistics:
        yield from _regrouped(source, target, donor, layer)
        return
    fold = source.layers[meeting.source.norm] if meeting.source.norm and not meeting.target.norm else None
    for role, slot in roles.items():
        partner = given.get(role)
        if fold is not None and role in ("weight", "bias"):
            yield from _folded(source, donor, given, fold, role, slot)
        elif partner is not None and meeting.source.scale and not meeting.target.scale and role in ("weight", "bias"):
            if not donor.transposed:
                scale = roles_of(source.layers[meeting.source.scale])["value"]
                yield from _copied(donor, layer, partner, slot, [Step("scale-rows", {"by": scale.key})])
        elif partner is not None and role == "weight" and (meeting.source.cut or meeting.target.cut):
            yield from _patches(meeting, partner, slot)
        elif partner is not None:
            yield from _copied(donor, layer, partner, slot)
        elif role in ("magnitude", "direction") and "weight" in given:
            plain = [Step("row-norm")] if role == "magnitude" else []
            yield from _copied(donor, layer, given["weight"], slot, plain)
        elif role == "weight" and {"magnitude", "direction"} <= given.keys():
            step = Step("weight-norm", {"magnitude": given["magnitude"].key})
            yield from _copied(donor, layer, given["direction"], slot, [step])
        elif (value := _neutral(role, layer)) is not None:
            yield from _filled(slot, value)
    if meeting.target.scale:
        yield from _scale(source, target.layers[meeting.target.scale], meeting.source.scale)
    if meeting.target.norm:
        yield from _norm(source, target, meeting, given.get("bias"))


def _copied(donor: Layer, layer: Layer, partner: Slot, slot: Slot, first: Sequence[Step] = ()) -> list[Move]:
    """The partner's tensor with the axes of the slot; nothing where the sizes do not allow it."""
    shape = partner.shape
    steps = list(first)
    if first and first[0].operator == "row-norm":
        shape = (shape[0], *[1] * (len(shape) - 1))
    if donor.transposed != layer.transposed and len(shape) == 2 and shape == donor.shape:
        steps.append(Step("transpose"))
        shape = shape[::-1]
    if prod(shape) != prod(slot.shape):
        return []
    return moves_to(slot, partner.key, partner.shape, (*steps, *laid_out(shape, slot.shape)), WHY)


def laid_out(before: Shape, after: Shape) -> Iterator[Step]:
    """The steps to another shape of as many numbers in the same order."""
    if before == after:
        return
    if len(before) > 1:
        yield Step("flatten", {"dim": 0, "ndim": len(before)})
    if len(after) != 1:
        yield Step("unflatten", {"dim": 0, "shape": list(after)})


def _patches(meeting: Meeting, partner: Slot, slot: Slot) -> Iterator[Move]:
    """Between a convolution without overlap and a linear layer on patches that lie in another order."""
    sizes = dict(meeting.source.cut or meeting.target.cut)
    full = tuple((axis, sizes.get(axis, 1)) for axis in range(3))
    orders = []
    for cut in (meeting.source.cut, meeting.target.cut):
        left = [each for each in full if each[0] not in dict(cut)]
        orders.append((*left, *cut) if cut else full)
    before, after = orders
    out = partner.shape[0]
    steps = [Step("flatten", {"dim": 1, "ndim": len(partner.shape) - 1})] if len(partner.shape) > 2 else []
    steps.append(Step("unflatten", {"dim": 1, "shape": [n for _, n in before]}))
    current = [axis for axis, _ in before]
    for place, (axis, _) in enumerate(after):
        other = current.index(axis)
        if other != place:
            steps.append(Step("transpose", {"dim0": 1 + place, "dim1": 1 + other}))
            current[place], current[other] = current[other], current[place]
    shape = (out, *(n for _, n in after))
    if shape != slot.shape:
        steps.append(Step("flatten", {"dim": 1, "ndim": 3}))
        if len(slot.shape) > 2:
            steps.append(Step("unflatten", {"dim": 1, "shape": list(slot.shape[1:])}))
    if prod(shape) == prod(slot.shape):
        yield from moves_to(slot, partner.key, partner.shape, tuple(steps), WHY)


def _filled(slot: Slot, value: float) -> list[Move]:
    why = "not in the source: neutral"
    return moves_to(slot, "", slot.shape, (Step("fill", {"value": value}),), why)


def _neutral(role: str, layer: Layer) -> float | None:
    """The value of a tensor that does nothing, where the source has none."""
    if role == "bias":
        return 0.0
    return 1.0 if role == "weight" and layer.is_norm else None


def _lent(source: LayerGraph, target: LayerGraph, meeting: Meeting) -> Iterator[Move]:
    """The bias of some rows, where it is a parameter of the target's own code."""
    if not meeting.target.lent:
        return
    slot = roles_of(target.layers[meeting.target.lent])["value"]
    if meeting.source.lent:
        given = roles_of(source.layers[meeting.source.lent])["value"]
        yield from moves_to(slot, given.key, given.shape, tuple(laid_out(given.shape, slot.shape)), WHY)
        return
    bias = roles_of(source.layers[meeting.source.layer]).get("bias")
    if bias is None:
        yield from _filled(slot, 0.0)
        return
    steps = list(laid_out(bias.shape, (prod(bias.shape),)))
    if meeting.source.rows is not None:
        steps.append(Step("gather", {"dim": 0, "index": [list(run) for run in runs(meeting.source.rows)]}))
    yield from moves_to(slot, bias.key, bias.shape, (*steps, *laid_out((prod(slot.shape),), slot.shape)), WHY)


# --------------------------------------------------------------------------------------------------------- batch norms


def eps_of(graph: LayerGraph, name: str) -> float:
    """What a norm adds to the variance, as traced."""
    return float(facts_of(graph, name).get("eps", EPS))


def facts_of(graph: LayerGraph, name: str) -> Mapping[str, Any]:
    """The facts of a layer's first call."""
    return next((node.facts for node in graph.nodes if node.op == "layer" and node.layer == name), {})


def _folded(
    source: LayerGraph, donor: Layer, given: Mapping[str, Slot], norm: Layer, role: str, slot: Slot
) -> Iterator[Move]:
    """A kernel or its bias with the source's batch norm folded in (Jacob et al., arXiv:1712.05877)."""
    roles = roles_of(norm)
    options: dict[str, object] = {"variance": roles["running_var"].key, "eps": eps_of(source, norm.name)}
    if "weight" in roles:
        options["gamma"] = roles["weight"].key
    if role == "weight" and "weight" in given and not donor.transposed:
        before = given["weight"]
        steps = (Step("fold-norm", options), *laid_out(before.shape, slot.shape))
        yield from moves_to(slot, before.key, before.shape, steps, WHY)
    elif role == "bias":
        mean = roles["running_mean"]
        options["mean"] = mean.key
        if "bias" in given:
            options["bias"] = given["bias"].key
        # A norm without an affine part adds nothing of its own.
        start = () if "bias" in roles else (Step("fill", {"value": 0.0}),)
        before = roles.get("bias", mean)
        yield from moves_to(slot, before.key, before.shape, (*start, Step("fold-norm", options)), WHY)


def _regrouped(source: LayerGraph, target: LayerGraph, donor: Layer, layer: Layer) -> Iterator[Move]:
    """A norm without statistics from a batch norm, by the means and variances of the channels that it puts together."""
    given, found = roles_of(donor), facts_of(target, layer.name)
    groups = layer.out_channels if layer.kind == "instance_norm" else int(found.get("groups", 1))
    mean, variance = given.get("running_mean"), given.get("running_var")
    for role, slot in roles_of(layer).items():
        before = given.get(role, mean)
        if role not in ("weight", "bias") or mean is None or variance is None or before is None:
            continue
        options: dict[str, object] = {"part": role, "groups": groups, "mean": mean.key, "variance": variance.key}
        options["eps"] = eps_of(source, donor.name)
        if role == "bias" and "weight" in given:
            options["gamma"] = given["weight"].key
        start = [] if role in given else [Step("fill", {"value": float(role == "weight")})]
        if prod(before.shape) == prod(slot.shape):
            yield from moves_to(slot, before.key, before.shape, (*start, Step("regroup-norm", options)), WHY)


def _norm(source: LayerGraph, target: LayerGraph, meeting: Meeting, bias: Slot | None) -> Iterator[Move]:
    """The target's batch norm: the source's, or one that adds the source's bias and does nothing else."""
    norm = target.layers[meeting.target.norm]
    roles = roles_of(norm)
    if meeting.source.norm:
        donor = source.layers[meeting.source.norm]
        given = roles_of(donor)
        for role, slot in roles.items():
            if role in given:
                yield from _copied(donor, norm, given[role], slot)
            elif (value := _neutral(role, norm)) is not None:
                yield from _filled(slot, value)
        return
    # The kernel before it takes the source's bias where it has one of its own; else the norm does.
    spread = sqrt(1 + eps_of(target, norm.name))
    values = {"weight": spread, "running_var": 1.0, "running_mean": 0.0, "bias": 0.0}
    for role, slot in roles.items():
        if role == "bias" and bias is not None and not meeting.target.biased:
            yield from moves_to(slot, bias.key, bias.shape, (), WHY)
        elif role in values:
            yield from _filled(slot, values[role])


def _scale(source: LayerGraph, layer: Layer, donor: str) -> Iterator[Move]:
    """The target's layer scale: the source's, or ones."""
    slot = roles_of(layer)["value"]
    if not donor:
        yield from _filled(slot, 1.0)
        return
    given = roles_of(source.layers[donor])["value"]
    yield from moves_to(slot, given.key, given.shape, tuple(laid_out(given.shape, slot.shape)), WHY)


# ----------------------------------------------------------------------------------------------------- parts of layers


def _joined(source: LayerGraph, layer: Layer, parts: Sequence[Meeting], role: str, slot: Slot) -> Iterator[Move]:
    """One tensor of a layer from rows of one or several layers of the source."""
    names = list(dict.fromkeys(meeting.source.layer for meeting in parts))
    donors = [source.layers[name] for name in names]
    given = [roles_of(donor).get(role) for donor in donors]
    slots = [each for each in given if each is not None]
    if not slots and role == "bias":
        yield from _filled(slot, 0.0)
    if len(slots) < len(donors):
        return
    starts = {name: sum(donor.out_channels for donor in donors[:i]) for i, name in enumerate(names)}
    order = [0] * layer.out_channels
    for meeting in parts:
        count = layer.out_channels if meeting.target.rows is None else len(meeting.target.rows)
        wanted = meeting.target.rows or range(count)
        taken = meeting.source.rows or range(count)
        for row, origin in zip(wanted, taken, strict=True):
            order[row] = starts[meeting.source.layer] + origin
    steps = []
    turned = [donor.transposed and role == "weight" for donor in donors]
    if len(set(turned)) > 1 or len({each.shape[1:] if not turned[0] else each.shape[:1] for each in slots}) > 1:
        return
    if len(slots) > 1:
        dim = 1 if turned[0] else 0
        steps.append(Step("concatenate", {"keys": [each.key for each in slots[1:]], "dim": dim}))
    total = sum(donor.out_channels for donor in donors)
    across = slots[0].shape[0] if turned[0] else slots[0].shape[1:]
    if turned[0]:
        steps.append(Step("transpose"))
        across = (slots[0].shape[0],)
    index = runs(order)
    if index != identity(total):
        steps.append(Step("gather", {"dim": 0, "index": [list(run) for run in index]}))
    shape: Shape = (layer.out_channels, *(across if isinstance(across, tuple) else (across,)))
    if role == "weight" and layer.transposed:
        steps.append(Step("transpose"))
        shape = shape[::-1]
    if prod(shape) == prod(slot.shape):
        yield from moves_to(slot, slots[0].key, slots[0].shape, (*steps, *laid_out(shape, slot.shape)), WHY)
