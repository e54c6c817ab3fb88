"""Exact growth: the target computes what the source computes, wherever it contains the source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Literal

from netgraft import plugins
from netgraft.architecture.graph import Layer, LayerGraph, Slot, same_wiring
from netgraft.architecture.queries import Queries, queries_of
from netgraft.channels import index_map
from netgraft.channels.correspondence import Correspondence, Shrink, outermost
from netgraft.channels.groups.axes import Axis, Var, normal
from netgraft.channels.groups.find import find_groups
from netgraft.channels.layout import axes_of, paired_axes
from netgraft.channels.stretch import stretch
from netgraft.errors import CheckFailed, UsageError
from netgraft.plan import Move, Pairing, Step, WantedPass, moves_to
from netgraft.recipes import _tables
from netgraft.recipes._layout import lay, same_strides
from netgraft.recipes._norms import with_norms
from netgraft.recipes._same import loose_moves
from netgraft.recipes._scale import scaled
from netgraft.recipes._streams import stretch_step
from netgraft.recipes.protocol import Draft, LayerOptions, Task

BATCH_NORM_EPS = 1e-5
"""PyTorch's default. No state_dict holds eps; with another one an inserted norm is off by half the difference."""


@dataclass(frozen=True)
class Grow(LayerOptions):
    """Function-preserving growth in width, depth, kernel size and heads (Net2Net, LEMON; OPERATORS D1-D7).

    Channels that an addition, a depthwise convolution or a concatenation couples share one index map: the source's
    channels repeated in a circle. Layers that produce them are copied along the map, layers that read them share their
    weights among the copies, by unequal shares so that the copies part ways in training. Larger kernels are padded with
    zeros; extra residual blocks take a neighbour's weights and end in zero, or in halves that cancel. What cannot be
    exact is named, done as well as the operators can, and refused under ``exact``.
    """

    matcher: str = field(default="contained", metadata={"help": "which layer goes to which (netgraft matchers)"})
    symmetry: Literal["break", "keep"] = field(
        default="break", metadata={"help": "share weights among copies unequally, or equally"}
    )
    shrink: Shrink = field(
        default="uniform",
        metadata={
            "help": "where the target is narrower: channels spread out, the first, those of large weights, or means"
        },
    )
    labels: tuple[int, ...] | None = field(
        default=None, metadata={"help": "source class of each target class, -1 for a new one: moves the head"}
    )
    vocabulary: tuple[int, ...] | None = field(
        default=None, metadata={"help": "source number of each target token, -1 for a new one: moves tables of tokens"}
    )
    exact: bool = field(default=False, metadata={"help": "refuse instead of approximating"})
    gain: float | None = field(
        default=None,
        metadata={"help": "scale of grown kernels before a batch norm, as a multiple of He et al.'s; none: as is"},
    )

    def passes(self, source: LayerGraph, target: LayerGraph) -> tuple[WantedPass, ...]:  # noqa: ARG002
        """What runs after the moves, by name and options; it changes no function."""
        return (scaled(self.gain, spare="copied"),) if self.gain else ()

    @property
    def reads_weights(self) -> bool:
        """Whether ``plan`` wants the ``norms`` of the source's weights."""
        return self.shrink == "importance"

    def pair(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        """What the matcher says; chain by chain where the target does not contain the source."""
        pairing: Pairing = plugins.create("matchers", self.matcher, {})(source, target)
        if self.matcher == "contained" and _found(pairing, source) < 0.5:
            chain: Pairing = plugins.create("matchers", "longest-chain", {})(source, target)
            note = "the target does not contain the source: layers are paired along the longest chains"
            pairing = replace(with_norms(chain, source, target), notes=(note,))
        return pairing

    def plan(self, task: Task) -> Draft:
        """Moves, and as notes what is lossy about them.

        Raises CheckFailed if anything is, and ``exact`` was asked for; UsageError for labels that do not fit.
        """
        planner = _Planner(self, task)
        draft = planner.run()
        if self.vocabulary is not None and not planner.tokens:
            raise UsageError(
                f"The map of {len(self.vocabulary)} tokens (--vocab-map) fits no table of tokens.",
                where=f"it goes up to the source's token {max(self.vocabulary, default=-1)}",
                hint="The target's needs a row for each token of the map, the source's for each that it names.",
            )
        notes = tuple(dict.fromkeys((*task.pairing.notes, *planner.notes)))
        if self.exact and notes:
            raise CheckFailed("The target cannot compute exactly what the source does.", where="\n".join(notes))
        return draft._replace(notes=notes)

    def head_stays(self, source: Layer, target: Layer, *, from_head: bool) -> str:
        """As elsewhere, but that a map of labels moves the head, and one of tokens a head that answers with tokens."""
        if self.labels is not None and from_head:
            return ""
        sizes = source.out_channels, target.out_channels
        if self.vocabulary is not None and from_head and _tables.fits(self.vocabulary, *sizes):
            return ""
        return super().head_stays(source, target, from_head=from_head)


def _found(pairing: Pairing, source: LayerGraph) -> float:
    """Share of the source's kernels that found a place."""
    kernels = {layer.name for layer in source.kernels()}
    return len(kernels & {pair.source for pair in pairing.pairs}) / max(len(kernels), 1)


class _Planner:
    def __init__(self, options: Grow, task: Task) -> None:
        self.options = options
        source, target, pairing = self.source, self.target, self.pairing = task.source, task.target, task.pairing
        self.stays = task.stays
        self.notes: list[str] = []
        self.tokens = False  # whether a table of tokens went by the vocabulary
        self.inserted = set(pairing.inserted)
        self.pairs = [(p, source.layers[p.source], target.layers[p.target]) for p in pairing.pairs]
        # What runs through an inserted block takes the maps of its surroundings, so the others come first.
        ordered = sorted(self.pairs, key=lambda pair: pair[2].name in self.inserted)
        self.channels = Correspondence(
            find_groups(source),
            find_groups(target),
            [(source_layer, target_layer) for _, source_layer, target_layer in ordered],
            options.shrink,
            task.norms,
        )
        self.places = {key: place for place, key in enumerate(target.slots)}
        owners = {slot.key: layer.name for layer in target.layers.values() for slot in layer.tensors.values()}
        self.inner = {  # runs of channels that belong to inserted blocks alone
            id(self.channels.target.variables[group.name])
            for group in self.channels.target.groups
            if all(owners[key] in self.inserted for key, _ in group.members)
        }
        self.stretched: dict[int, str] = {}  # residual streams that grow by a ratio that is not whole, and their norm
        self.queries: dict[str, list[Step]] = {}  # layers whose query rows need another scale
        self.heads: dict[str, tuple[Queries, int, int]] = {}  # ... and heads a width that is no multiple: from, to

    def run(self) -> Draft:
        paired = {target_layer.name for _, _, target_layer in self.pairs}
        cancelled = {name for name in self.pairing.zeroed if name in paired and self._mirror(name)}
        self._check_mixing()
        heads = self.target.head_names
        moves: list[Move] = []
        reasons: dict[str, str] = {}
        for pair, source_layer, target_layer in self.pairs:
            if target_layer.name in self.stays:
                continue
            for role, slot in target_layer.tensors.items():
                partner = source_layer.tensors.get(role)
                steps = (
                    None
                    if partner is None
                    else self._steps(source_layer, target_layer, partner, slot, target_layer.name in heads)
                )
                if partner is None or steps is None or isinstance(steps, str):
                    missing = f"{source_layer.name} in the source has no {role}"
                    misfit = "" if partner is None else f"no operator makes it of {partner.key} {list(partner.shape)}"
                    reasons[slot.key] = steps if isinstance(steps, str) else misfit or missing
                    self._note(f"{slot.key} keeps its own initialisation: {reasons[slot.key]}")
                else:
                    moves += moves_to(slot, partner.key, partner.shape, steps, pair.why)
        zeroed: list[Move] = []
        for name, why in self.pairing.zeroed.items():
            zeroed += self._zero(name, why, ("bias",) if name in cancelled else ("weight", "bias", "value"))
        for name in self.pairing.diracs:
            zeroed += self._pass_through(name)
        if same_wiring(self.target, self.source) is not None:
            zeroed += loose_moves(self.source, self.target, "same place outside any layer")
        # A tied tensor stands in several layers: its first move decides.
        fates = {move.key: move for move in (*moves[::-1], *zeroed)}
        return Draft(fates.values(), reasons)

    # -- what copies cannot do -----------------------------------------------------------------------------------

    def _check_mixing(self) -> None:
        """Note the runs whose copies change what an operation without weights computes, and rescale queries."""
        for group in self.channels.target.groups:
            run = self.channels.target.variables[group.name]
            before = self.channels.source_size(run)
            if before is None or run.size == before or id(run) in self.inner:
                continue
            if run.size < before:
                self._note(f"{group.name}: {run.size} channels cannot hold the source's {before}")
                continue
            if run.size % before and (norm := stretch(self.target, self.channels.target, run)) is not None:
                self.stretched[id(run)] = norm
                eps = "eps is not in a state_dict: the target keeps its own, an error of about eps over the variance"
                self._note(f"{group.name}: {before} channels grow to {run.size} under {norm}, whose {eps}")
                continue
            for how, node in group.mixed:
                whole = run.size % before == 0
                if how == "mean" and whole:
                    continue
                if how == "product" and self._rescale_queries(node, before, run.size):
                    continue
                ratio = "" if whole else ", not a whole multiple,"
                self._note(
                    f"{group.name}: {before} channels grow to {run.size}{ratio} and {node} takes a {how} over them"
                )
                break

    def _rescale_queries(self, node: str, before: int, after: int) -> bool:
        """Wider heads: q k' sums copies of products, and logits are divided by another number (OPERATORS D5 B)."""
        found = queries_of(self.target, node)
        partners = {target_layer.name: source_layer.name for _, source_layer, target_layer in self.pairs}
        wanted = partners.get(found.layer) if found is not None else None
        scales = [
            queries.scale
            for each in self.source.nodes
            if (queries := queries_of(self.source, each.id)) is not None and queries.layer == wanted
        ]
        if found is None or not scales or found.rows % after:
            return False
        if after % before == 0:
            factor = scales[0] / found.scale * before / after
        else:
            factor = scales[0] / found.scale / sqrt(after / before)  # head-dim sees to the rest, entry by entry
            self.heads[found.layer] = found, before, after
        part = {"dim": 0, "start": found.start, "count": found.rows, "factor": factor}
        self.queries[found.layer] = [Step("scale-part", part)] if abs(factor - 1) > 1e-12 else []
        return True

    def _mirror(self, name: str) -> bool:
        """Let the end of an inserted block cancel instead of being zero: its inputs twice, once with each sign.

        The hidden channels it reads become two equal halves, so that nothing passes although no weight is zero
        (lemon's "copymix": every weight gets a gradient at once). Needs an even run that belongs to the block alone.
        """
        layer = self.target.layers[name]
        slot = layer.tensors.get("weight")
        if slot is None or not layer.is_kernel or layer.groups > 1 or (layer.is_conv and layer.in_axis == 0):
            return False
        run = outermost(axes_of(self.channels.target, slot)[1])
        if (
            not isinstance(run, Var)
            or run.size % 2
            or id(run) not in self.inner
            or self.channels.source_size(run) is None
        ):
            return False
        self.channels.mirrored.add(id(run))
        return True

    # -- steps ---------------------------------------------------------------------------------------------------

    def _steps(
        self, source_layer: Layer, target_layer: Layer, partner: Slot, slot: Slot, is_head: bool
    ) -> tuple[Step, ...] | str | None:
        """From the partner's tensor to the target's; None, or why, if no operator does it."""
        laid = lay(source_layer, target_layer, partner, slot)
        sides = paired_axes(self.channels.source, self.channels.target, source_layer, target_layer, partner, slot)
        if laid is None or sides is None:
            return None
        (source_axes, target_axes), partner = sides, laid.partner
        kernel = target_layer.is_conv and slot.shape == target_layer.shape
        resized = _tables.resize(self.source, self.target, source_layer, target_layer, partner, laid.slot)
        if target_layer.kind == "embedding" and slot.shape == target_layer.shape:
            table = _tables.rows(self.target, target_layer, partner, slot, self.options.vocabulary)
            if isinstance(table, str):
                return table
            resized = table
            self.tokens |= any(step.operator == "labels" for step in table.steps)
        steps = [*laid.before, *resized.steps]
        self.notes += (*laid.notes, *resized.notes)
        if kernel and not same_strides(source_layer, target_layer):
            self._note(f"{target_layer.name}: a stride of {list(target_layer.stride)}, not {list(source_layer.stride)}")
        for dim, (a, b) in enumerate(zip(source_axes, target_axes, strict=True)):
            if dim in resized.dims or (kernel and dim >= 2):
                continue
            if dim == 0 and is_head and self.options.labels is not None:
                steps.append(_tables.labels(self.options.labels, partner, slot))
                continue
            if dim == 0 and is_head and self._answers_tokens(a, b):
                steps.append(_tables.token_rows(self.options.vocabulary or (), b.size))
                continue
            index = self.channels.index(a, b)
            if index is None:
                if a.size == b.size:
                    continue  # positions with a meaning of their own, as many as in the source
                if a.size < 2 or not (target_layer.is_kernel or target_layer.is_norm) or dim > 1:
                    return None
                index = index_map.indices(index_map.cyclic(a.size, b.size))
                if target_layer.name not in self.inserted:
                    self._note(f"{slot.key}: axis {dim} is built in another way than {partner.key}'s")
            elif index == list(range(a.size)):
                continue
            steps += self._along(target_layer, slot, dim, index, a, b)
        if target_layer.name in self.queries and slot.shape[:1] == target_layer.shape[:1]:
            steps += self.queries[target_layer.name]
        return (*steps, *laid.after, *resized.last)

    def _answers_tokens(self, source: Axis, target: Axis) -> bool:
        """Whether a head's outputs are scores of tokens that the map is about."""
        return self.options.vocabulary is not None and _tables.fits(self.options.vocabulary, source.size, target.size)

    def _along(
        self, target_layer: Layer, slot: Slot, dim: int, index: Sequence[int], a: Axis, b: Axis
    ) -> Iterator[Step]:
        """Resize one channel axis: copied where the tensor produces the channels, shared where it reads them."""
        reads = (slot.key, dim) in self.channels.target.reads
        clusters = self.channels.clusters(a, b) if self.options.shrink == "fold" and len(index) < a.size else None
        runs = [list(run) for run in index_map.runs(index if clusters is None else clusters)]
        if id(normal(b)) in self.stretched:
            norm = self.stretched[id(normal(b))]
            yield stretch_step(norm, target_layer, slot, dim, len(index), reads=reads, seed=self._seed(slot))
        elif clusters is not None:
            yield Step("fold", {"dim": dim, "index": runs, "reduce": "sum" if reads else "mean"})
        elif not reads and dim == 0 and target_layer.name in self.heads:
            yield from self._wider_heads(target_layer.name, index)
        elif not reads:
            yield Step("gather", {"dim": dim, "index": runs})
        elif id(outermost(b)) in self.channels.mirrored:
            half = len(index) // 2
            yield Step("gather", {"dim": dim, "index": runs})
            yield Step("scale-part", {"dim": dim, "start": half, "count": half, "factor": -1.0})
        elif len(set(index)) == a.size:
            yield Step("share", {"dim": dim, "index": runs} | self._seed(slot))
        else:
            # Fewer inputs: independent ones keep the output's variance with the root of the ratio (OPERATORS D3).
            yield Step("gather", {"dim": dim, "index": runs})
            yield Step("scale", {"factor": sqrt(a.size / len(index))})

    def _wider_heads(self, name: str, index: Sequence[int]) -> Iterator[Step]:
        """Rows of queries, keys and values head by head, the queries divided by the copies of each entry."""
        queries, before, after = self.heads[name]
        blocks = [index[start] // before for start in range(0, len(index), after)]
        inner = index_map.cyclic(before, after)
        if list(index) != index_map.indices(index_map.blocks(index_map.runs(blocks), before, inner)):
            self._note(f"{name}: its heads are built in another way than those of the source")
        if len(set(blocks)) < len(blocks):
            whole = index_map.blocks(index_map.runs(blocks), before, index_map.identity(before))
            yield Step("gather", {"dim": 0, "index": [list(run) for run in whole]})
        of = [[queries.start // after, queries.rows // after]]
        sizes = {"heads": len(blocks), "size_from": before, "size_to": after}
        yield Step("head-dim", {"dim": 0, **sizes, "queries": of})

    def _seed(self, slot: Slot) -> dict[str, int]:
        """What makes shares unequal: a number that differs from tensor to tensor, whatever their names."""
        return {"seed": self.places[slot.key]} if self.options.symmetry == "break" else {}

    # -- the rest ------------------------------------------------------------------------------------------------

    def _zero(self, name: str, why: str, roles: tuple[str, ...]) -> Iterator[Move]:
        """The end of an inserted block: zero in these roles, statistics as they are."""
        for role, slot in self.target.layers[name].tensors.items():
            if role in roles:
                yield from moves_to(slot, "", slot.shape, (Step("fill", {"value": 0.0}),), why)

    def _pass_through(self, name: str) -> Iterator[Move]:
        """A step of a plain chain as the identity: a Dirac kernel, and a batch norm that undoes its own statistics."""
        why = "inserted: passes its input through"
        layer = self.target.layers[name]
        for role, slot in layer.tensors.items():
            if layer.is_kernel:
                step = Step("dirac") if slot.shape == layer.shape else Step("fill", {"value": 0.0})
            elif role in ("weight", "running_var"):
                undone = role == "weight" and layer.rules.has_statistics
                step = Step("fill", {"value": sqrt(1 + BATCH_NORM_EPS) if undone else 1.0})
            elif role in ("bias", "running_mean"):
                step = Step("fill", {"value": 0.0})
            else:
                continue
            yield from moves_to(slot, "", slot.shape, (step,), why)

    def _note(self, text: str) -> None:
        self.notes.append(text)
