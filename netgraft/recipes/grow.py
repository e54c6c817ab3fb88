"""Exact growth: the target computes what the source computes, wherever it contains the source."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from netgraft import index_map, plugins
from netgraft.errors import CheckFailed
from netgraft.graph import Layer, LayerGraph, Slot
from netgraft.groups import Groups, find_groups
from netgraft.groups.axes import Axis, Concat, Fixed, Product, Var, normal, positions
from netgraft.plan import Kept, Move, Pairing, Step


@dataclass(frozen=True)
class Grow:
    """Function-preserving growth in width, depth, kernel size and heads (Net2Net, LEMON; OPERATORS D1-D7).

    Channels that an addition, a depthwise convolution or a concatenation couples share one index map: the source's
    channels repeated in a circle. Layers that produce them are copied along the map, layers that read them share their
    weights among the copies, by unequal shares so that the copies part ways in training. Larger kernels are padded with
    zeros; extra residual blocks take a neighbour's weights and end in zero. What cannot be exact is named, done as well
    as the operators can, and refused under ``exact``.
    """

    matcher: str = field(default="contained", metadata={"help": "which layer goes to which (netgraft matchers)"})
    symmetry: Literal["break", "keep"] = field(
        default="break", metadata={"help": "share weights among copies unequally, or equally"}
    )
    shrink: Literal["uniform", "first", "fold"] = field(
        default="uniform", metadata={"help": "where the target is narrower: spread-out channels, the first, or means"}
    )
    head: Literal["same-size", "always", "never"] = field(
        default="same-size", metadata={"help": "when the classifier's weights move"}
    )
    exact: bool = field(default=False, metadata={"help": "refuse instead of approximating"})

    def plan(self, source: LayerGraph, target: LayerGraph) -> tuple[Pairing, list[Move], list[Kept]]:
        """Pairs, moves and kept keys; every key of ``target`` gets exactly one fate; ``Pairing.notes`` says what is lossy.

        Raises CheckFailed if anything is, and ``exact`` was asked for.
        """
        pairing = plugins.create("matchers", self.matcher, {})(source, target)
        if self.matcher == "contained" and _share(pairing, source) < 0.5:
            chain = plugins.create("matchers", "longest-chain", {})(source, target)
            note = "the target does not contain the source: layers are paired along the longest chains"
            pairing = replace(chain, notes=(note,))
        planner = _Planner(self, source, target, pairing)
        moves, kept = planner.run()
        notes = tuple(dict.fromkeys((*pairing.notes, *planner.notes)))
        if self.exact and notes:
            raise CheckFailed("The target cannot compute exactly what the source does.", where="\n".join(notes))
        return replace(pairing, notes=notes), moves, kept


def _share(pairing: Pairing, source: LayerGraph) -> float:
    """Share of the source's kernels that found a place."""
    kernels = {layer.name for layer in source.kernels()}
    return len(kernels & {pair.source for pair in pairing.pairs}) / max(len(kernels), 1)


class _Planner:
    def __init__(self, options: Grow, source: LayerGraph, target: LayerGraph, pairing: Pairing) -> None:
        self.options = options
        self.source, self.target, self.pairing = source, target, pairing
        self.theirs: Groups = find_groups(source)
        self.ours: Groups = find_groups(target)
        self.maps: dict[int, tuple[Var, Var]] = {}  # id of a target run -> that run and the source's run behind it
        self.notes: list[str] = []
        self.heads = {layer.name for layer in target.heads()}
        self.inserted = set(pairing.inserted)
        self.owners = {slot.key: layer.name for layer in target.layers.values() for slot in layer.tensors.values()}
        self.mirrored: set[int] = set()  # runs of inserted blocks whose second half repeats the first

    def run(self) -> tuple[list[Move], list[Kept]]:
        pairs = [(p, self.source.layers[p.source], self.target.layers[p.target]) for p in self.pairing.pairs]
        for inserted in (False, True):  # what runs through an inserted block takes the maps of its surroundings
            for _, there, here in pairs:
                if (here.name in self.inserted) is inserted:
                    self._map_layer(there, here)
        paired = {here.name for _, _, here in pairs}
        cancelled = {name for name in self.pairing.zeroed if name in paired and self._mirror(name)}
        self._check_mixing()
        moves: list[Move] = []
        zeroed = {
            move.key: move
            for name, why in self.pairing.zeroed.items()
            for move in self._zero(name, why, ("bias",) if name in cancelled else ("weight", "bias", "value"))
        }
        reasons: dict[str, str] = dict(self.pairing.unpaired)
        source_heads = {layer.name for layer in self.source.heads()}
        for pair, there, here in pairs:
            if here.name in self.heads and (reason := self._head_stays(there, here, there.name in source_heads)):
                reasons[here.name] = reason
                continue
            for role, slot in here.tensors.items():
                partner = there.tensors.get(role)
                steps = None if partner is None else self._steps(there, here, partner, slot)
                if partner is None or steps is None:
                    shape = "none" if partner is None else list(partner.shape)
                    reasons[slot.key] = f"{there.name} in the source has {role} {shape}: no operator leads from there"
                    self._note(f"{slot.key} keeps its own initialisation: {reasons[slot.key]}")
                    continue
                moves += [
                    Move(key, partner.key, slot.shape, partner.shape, steps, pair.why)
                    for key in (slot.key, *slot.aliases)
                ]
        moves = [move for move in moves if move.key not in zeroed] + list(zeroed.values())
        return moves, list(self._kept({move.key for move in moves}, reasons))

    # -- index maps ----------------------------------------------------------------------------------------------

    def _map_layer(self, there: Layer, here: Layer) -> None:
        for role, slot in here.tensors.items():
            partner = there.tensors.get(role)
            if partner is None or len(partner.shape) != len(slot.shape):
                continue
            for theirs, ours in zip(self._axes(self.theirs, partner), self._axes(self.ours, slot), strict=True):
                self._map_axis(theirs, ours)

    def _map_axis(self, theirs: Axis, ours: Axis) -> None:
        """Let the runs of one axis correspond to those of another, where the two have the same structure."""
        theirs, ours = normal(theirs), normal(ours)
        if isinstance(ours, Var) and isinstance(theirs, Var):
            self.maps.setdefault(id(ours), (ours, theirs))
        elif (
            isinstance(ours, (Product, Concat)) and type(ours) is type(theirs) and len(ours.parts) == len(theirs.parts)
        ):
            for a, b in zip(theirs.parts, ours.parts, strict=True):
                self._map_axis(a, b)

    def _channels(self, run: Var) -> index_map.Runs | None:
        """Source channel of each channel of a target run; None for a run without a partner."""
        if id(run) not in self.maps:
            return None
        there = self.maps[id(run)][1].size
        if id(run) in self.mirrored:
            half = index_map.indices(index_map.cyclic(there, run.size))[: run.size // 2]
            return index_map.runs(half * 2)
        if run.size < there and self.options.shrink == "uniform":
            return index_map.uniform(there, run.size)
        return index_map.cyclic(there, run.size)

    def _index(self, theirs: Axis, ours: Axis) -> list[int] | None:
        """Source position of each position of an axis; None where the two structures do not correspond."""
        theirs, ours = normal(theirs), normal(ours)
        if not _corresponds(theirs, ours, self.maps):
            return None
        return positions(
            ours,
            lambda run: index_map.indices(self._channels(run) or ((0, run.size),)),
            lambda run: self.maps[id(run)][1].size if id(run) in self.maps else run.size,
        )

    def _check_mixing(self) -> None:
        """Note the runs whose copies change what an operation without weights computes."""
        for group in self.ours.groups:
            run = self.ours.variables[group.name]
            if id(run) not in self.maps or all(self.owners[key] in self.inserted for key, _ in group.members):
                continue
            before = self.maps[id(run)][1].size
            if run.size == before:
                continue
            if run.size < before:
                self._note(f"{group.name}: {run.size} channels cannot hold the source's {before}")
                continue
            for how, node in group.mixed:
                if how == "mean" and run.size % before:
                    ratio = f"{before} channels grow to {run.size}, not a whole multiple"
                    self._note(f"{group.name}: {ratio}, and {node} takes a mean over them")
                    break
                if how in ("sum", "softmax", "product"):
                    self._note(
                        f"{group.name}: {before} channels grow to {run.size}, and {node} takes a {how} over them"
                    )
                    break

    # -- steps ---------------------------------------------------------------------------------------------------

    def _steps(self, there: Layer, here: Layer, partner: Slot, slot: Slot) -> tuple[Step, ...] | None:
        """From the partner's tensor to the target's; None if no operator does it."""
        if len(partner.shape) != len(slot.shape):
            return None
        steps: list[Step] = []
        theirs, ours = self._axes(self.theirs, partner), self._axes(self.ours, slot)
        kernel = here.kind.startswith("conv") and slot.shape == here.shape
        if kernel and partner.shape[2:] != slot.shape[2:]:
            steps.append(Step("centre", {"size": list(slot.shape[2:])}))
            self._check_padding(there, here)
        for dim, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            if kernel and dim >= 2:
                continue
            index = self._index(a, b)
            if index is None:
                if a.size == b.size:
                    continue  # positions with a meaning of their own, as many as in the source
                if a.size < 2 or not (here.is_kernel or here.is_norm) or dim > 1:
                    return None
                index = index_map.indices(index_map.cyclic(a.size, b.size))
                if here.name not in self.inserted:
                    self._note(f"{slot.key}: axis {dim} is built in another way than {partner.key}'s")
            elif len(set(index)) == a.size == b.size == len(index) and index == list(range(a.size)):
                continue
            clusters = self._clusters(a, b) if self.options.shrink == "fold" and len(index) < a.size else None
            steps += self._along(here, slot, dim, index, a.size, clusters)
        return tuple(steps)

    def _along(
        self, here: Layer, slot: Slot, dim: int, index: Sequence[int], before: int, clusters: list[int] | None
    ) -> Iterator[Step]:
        reads = (
            dim == (0 if here.kind.startswith("conv_transpose") else 1) and here.is_kernel and slot.shape == here.shape
        )
        if clusters is not None:
            runs = [list(run) for run in index_map.runs(clusters)]
            yield Step("fold", {"dim": dim, "index": runs, "reduce": "sum" if reads else "mean"})
            return
        runs = [list(run) for run in index_map.runs(index)]
        if not reads:
            yield Step("gather", {"dim": dim, "index": runs})
        elif self._is_mirrored(slot, dim):
            half = len(index) // 2
            yield Step("gather", {"dim": dim, "index": runs})
            yield Step("scale-part", {"dim": dim, "start": half, "count": half, "factor": -1.0})
        elif len(set(index)) == before:
            seed = zlib.crc32(f"{slot.key}:{dim}".encode()) if self.options.symmetry == "break" else None
            yield Step("share", {"dim": dim, "index": runs} | ({} if seed is None else {"seed": seed}))
        else:
            # Fewer inputs: independent ones keep the output's variance with the root of the ratio (OPERATORS D3).
            yield Step("gather", {"dim": dim, "index": runs})
            yield Step("scale", {"factor": (before / len(index)) ** 0.5})

    def _is_mirrored(self, slot: Slot, dim: int) -> bool:
        axis = normal(self._axes(self.ours, slot)[dim])
        return id(normal(axis.parts[0]) if isinstance(axis, Product) else axis) in self.mirrored

    def _clusters(self, theirs: Axis, ours: Axis) -> list[int] | None:
        """For each source position the position of the narrower target that it is folded into."""
        sizes: dict[int, int] = {}

        def walk(a: Axis, b: Axis) -> bool:
            a, b = normal(a), normal(b)
            if isinstance(a, Var) and isinstance(b, Var):
                return sizes.setdefault(id(a), b.size) == b.size and b.size <= a.size
            if isinstance(a, Fixed) or isinstance(b, Fixed) or isinstance(a, Var) or isinstance(b, Var):
                return a == b
            return len(a.parts) == len(b.parts) and all(walk(x, y) for x, y in zip(a.parts, b.parts, strict=True))

        if not walk(theirs, ours):
            return None
        return positions(
            theirs,
            lambda run: index_map.indices(index_map.cyclic(sizes[id(run)], run.size)),
            lambda run: sizes[id(run)],
        )

    def _check_padding(self, there: Layer, here: Layer) -> None:
        wider = [
            h - t == d * (b - a) // 2 and (b - a) % 2 == 0
            for h, t, d, a, b in zip(
                here.padding, there.padding, here.dilation, there.shape[2:], here.shape[2:], strict=True
            )
        ]
        if not all(wider) or there.dilation != here.dilation:
            self._note(
                f"{here.name}: the padding does not grow with the kernel from {there.shape[2:]} to {here.shape[2:]}"
            )

    # -- the rest ------------------------------------------------------------------------------------------------

    def _axes(self, groups: Groups, slot: Slot) -> tuple[Axis, ...]:
        return groups.axes.get(slot.key) or tuple(Fixed(size) for size in slot.shape)

    def _head_stays(self, there: Layer, here: Layer, from_head: bool) -> str:
        if self.options.head == "always":
            return ""
        if self.options.head == "never":
            return "the head keeps its own initialisation (head=never)"
        if not from_head or there.out_channels != here.out_channels:
            sizes = f"{there.out_channels} outputs in the source, {here.out_channels} in the target"
            return f"the head keeps its own initialisation: {sizes} (--head moves it anyway)"
        return ""

    def _mirror(self, name: str) -> bool:
        """Let the end of an inserted block cancel instead of being zero: its inputs twice, once with each sign.

        The hidden channels it reads become two equal halves, so that nothing passes although no weight is zero
        (lemon's "copymix": every weight gets a gradient at once). Needs an even run that belongs to the block alone.
        """
        layer = self.target.layers[name]
        slot = layer.tensors.get("weight")
        if slot is None or not layer.is_kernel or layer.groups > 1 or layer.kind.startswith("conv_transpose"):
            return False
        axis = normal(self._axes(self.ours, slot)[1])
        run = normal(axis.parts[0]) if isinstance(axis, Product) else axis
        if not isinstance(run, Var) or run.size % 2 or id(run) not in self.maps:
            return False
        group = next((g for g in self.ours.groups if self.ours.variables[g.name] is run), None)
        if group is None or any(self.owners[key] not in self.inserted for key, _ in group.members):
            return False
        self.mirrored.add(id(run))
        return True

    def _zero(self, name: str, why: str, roles: tuple[str, ...]) -> Iterator[Move]:
        """The end of an inserted block: zero in these roles, statistics as they are."""
        zero = (Step("fill", {"value": 0.0}),)
        for role, slot in self.target.layers[name].tensors.items():
            if role in roles:
                yield from (Move(key, "", slot.shape, slot.shape, zero, why) for key in (slot.key, *slot.aliases))

    def _note(self, text: str) -> None:
        self.notes.append(text)

    def _kept(self, moved: set[str], reasons: Mapping[str, str]) -> Iterator[Kept]:
        for name, layer in self.target.layers.items():
            for slot in layer.tensors.values():
                why = reasons.get(slot.key) or reasons.get(name) or "no counterpart in the source"
                yield from (Kept(key, slot.shape, why) for key in (slot.key, *slot.aliases) if key not in moved)
        for slot in self.target.loose.values():
            why = "a buffer outside any layer" if slot.buffer else "never used in the forward pass"
            yield from (Kept(key, slot.shape, why) for key in (slot.key, *slot.aliases) if key not in moved)


def _corresponds(theirs: Axis, ours: Axis, maps: Mapping[int, tuple[Var, Var]]) -> bool:
    """Whether the two axes have the same structure and every run of ``ours`` maps to the run of ``theirs`` in its place."""
    theirs, ours = normal(theirs), normal(ours)
    if isinstance(ours, Var):
        return isinstance(theirs, Var) and id(ours) in maps and maps[id(ours)][1].size == theirs.size
    if isinstance(ours, Fixed):
        return isinstance(theirs, Fixed) and theirs.size == ours.size
    if type(ours) is not type(theirs) or len(ours.parts) != len(theirs.parts):  # type: ignore[union-attr]
        return False
    return all(_corresponds(a, b, maps) for a, b in zip(theirs.parts, ours.parts, strict=True))  # type: ignore[union-attr]
