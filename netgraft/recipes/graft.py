"""The best initialisation that can be made of weights alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Literal

from netgraft import plugins
from netgraft.architecture.endings import find_endings
from netgraft.architecture.graph import Layer, LayerGraph, Slot
from netgraft.channels import index_map
from netgraft.channels.correspondence import Correspondence
from netgraft.channels.groups.axes import normal
from netgraft.channels.groups.find import find_groups
from netgraft.channels.index_map import NEW
from netgraft.channels.layout import Axes, axes_of, paired_axes
from netgraft.plan import Move, Pairing, Step, WantedPass, moves_to
from netgraft.recipes import _tables
from netgraft.recipes._layout import Laid, lay
from netgraft.recipes._norms import with_norms
from netgraft.recipes._same import copy_all, same_backbone
from netgraft.recipes._scale import scaled
from netgraft.recipes._streams import growing_streams, stretch_step
from netgraft.recipes.protocol import Draft, LayerOptions, Task


@dataclass(frozen=True)
class Graft(LayerOptions):
    """Weights only: what training needs of a source, rather than what the source computed (OPERATORS part 2).

    Layers are paired along the wiring. Coupled channels share one map: the source's most important channels where the
    target is narrower, all of them where it is wider, and new ones start fresh, read by no transferred output. Only
    residual streams that grow under a LayerNorm or RMSNorm, which takes all channels together, are stretched so that
    the norm sees what it saw (LEMON, arXiv:2310.07999). Larger kernels are padded with zeros. A dense kernel becomes a
    depthwise and a pointwise one by its best rank-one parts, with the norm between them opened. Where a batch norm
    follows, transferred kernels get the scale that the target's own initialisation has; where none
    does, the source's norm is folded into the weights, and a target without any norm is run once, on synthetic images,
    to give its channels the moments that they have in the source (pass ``repair``). Nothing else is run.
    """

    matcher: str = field(default="wired", metadata={"help": "which layer goes to which (netgraft matchers)"})
    reuse: bool = field(default=True, metadata={"help": "let a source layer serve several in a row (matcher wired)"})
    shrink: Literal["uniform", "first", "importance"] = field(
        default="importance", metadata={"help": "which channels a narrower target takes: spread out, first, or largest"}
    )
    scale: Literal["own", "source"] = field(
        default="own", metadata={"help": "norm of kernels before a batch norm: the target's initialisation, or as is"}
    )
    repair: bool = field(
        default=True,
        metadata={"help": "settle a target without norms by running it once, where nothing is refitted"},
    )

    def passes(self, source: LayerGraph, target: LayerGraph) -> tuple[WantedPass, ...]:  # noqa: ARG002
        """What runs after the moves, by name and options."""
        settled: tuple[WantedPass, ...] = (("repair", {}),) if self.repair else ()
        return (*settled, scaled(gain=None)) if self.scale == "own" else settled

    @property
    def reads_weights(self) -> bool:
        """Whether ``plan`` wants the ``norms`` of the source's weights."""
        return self.shrink == "importance"

    def pair(self, source: LayerGraph, target: LayerGraph) -> Pairing:
        """All layers one to one where the backbones are the same, else what the matcher says, with norms."""
        if (same := self._same(source, target)) is not None:
            return same
        options = {"reuse": self.reuse} if self.matcher == "wired" else {}
        return with_norms(plugins.create("matchers", self.matcher, options)(source, target), source, target)

    def plan(self, task: Task) -> Draft:
        """Copies of one and the same backbone, else moves by which training gets the most."""
        if self._same(task.source, task.target) is not None:
            return copy_all(task, self.head)
        return _Planner(self, task).run()

    def _same(self, source: LayerGraph, target: LayerGraph) -> Pairing | None:
        return None if self.maps or self.skip else same_backbone(source, target)


class _Planner:
    def __init__(self, options: Graft, task: Task) -> None:
        source, target = self.source, self.target = task.source, task.target
        self.options, self.stays, norms = options, task.stays, task.norms
        self.pairs = [(pair, source.layers[pair.source], target.layers[pair.target]) for pair in task.pairing.pairs]
        # Dense kernels that become depthwise ones say nothing about channels: what they stand for is decided around.
        plain = [
            (source_layer, target_layer)
            for _, source_layer, target_layer in self.pairs
            if not _split(source_layer, target_layer)
        ]
        self.channels = Correspondence(
            find_groups(source), find_groups(target), plain, options.shrink, norms, fresh=True
        )
        self.endings = find_endings(source), find_endings(target)
        self.places = {key: place for place, key in enumerate(target.slots)}
        self.stretched = growing_streams(target, self.channels)
        self.notes: list[str] = []
        depthwise: set[str] = {
            source_layer.name for _, source_layer, target_layer in self.pairs if _split(source_layer, target_layer)
        }
        self.halved = {
            target_layer.name
            for _, source_layer, target_layer in self.pairs
            if source_layer.name in depthwise
            and target_layer.groups == 1
            and not set(target_layer.shape[2:]) - {1}
            and set(source_layer.shape[2:]) - {1}
        }

    def run(self) -> Draft:
        moves: dict[str, Move] = {}  # a tied tensor stands in several layers: its first move decides
        reasons: dict[str, str] = {}
        for pair, source_layer, target_layer in self.pairs:
            if target_layer.name in self.stays:
                continue
            refused = ""
            for role, slot in target_layer.tensors.items():
                found = refused or self._move(source_layer, target_layer, role, slot)
                if isinstance(found, str):
                    reasons[slot.key] = found
                    if target_layer.is_kernel and role == "weight":
                        refused = f"{slot.key} keeps its initialisation"  # and a bias says nothing without its weight
                    continue
                key, shape, steps = found
                for move in moves_to(slot, key, shape, steps, pair.why):
                    moves.setdefault(move.key, move)
        moves |= {move.key: move for move in self._open()}
        return Draft(moves.values(), reasons, notes=self.notes)

    def _move(
        self, source_layer: Layer, target_layer: Layer, role: str, slot: Slot
    ) -> tuple[str, tuple[int, ...], tuple[Step, ...]] | str:
        """(source key, its shape, steps) for one tensor, or why it is kept."""
        folded = self._folded(source_layer, target_layer)
        if role == "bias" and folded is not None and target_layer.is_kernel:
            norm = self.source.layers[folded]
            beta, mean, var, gamma = (norm.tensors.get(r) for r in ("bias", "running_mean", "running_var", "weight"))
            if beta is not None and mean is not None and var is not None:
                bias = source_layer.tensors.get("bias")
                names = {"mean": mean.key, "variance": var.key}
                names |= {"gamma": gamma.key} if gamma else {}
                names |= {"bias": bias.key} if bias else {}
                weights = source_layer.tensors["weight"], target_layer.tensors["weight"]
                if (found := self._paired(source_layer, target_layer, *weights)) is not None:
                    laid, sides = found
                    rows = self._index(laid.partner, weights[1], sides, 0)
                    return beta.key, beta.shape, (Step("fold-norm", names), _overlay(rows, None))
        partner = source_layer.tensors.get(role)
        if partner is None:
            return f"{source_layer.name} in the source has no {role}"
        if target_layer.is_kernel and _patches(source_layer) != _patches(target_layer):
            return f"{source_layer.name} in the source and it do not both read patches that do not overlap"
        if target_layer.is_norm and slot.buffer and self.options.scale == "own":
            return "statistics of inputs that have another scale now"
        if target_layer.kind == "embedding":
            rows_of = _tables.rows(self.target, target_layer, partner, slot, vocabulary=None)
            if isinstance(rows_of, str):
                return rows_of
        steps = self._steps(source_layer, target_layer, partner, slot)
        if steps is None:
            return f"no operator makes it of {partner.key} {list(partner.shape)}"
        return partner.key, partner.shape, steps

    def _steps(self, source_layer: Layer, target_layer: Layer, partner: Slot, slot: Slot) -> tuple[Step, ...] | None:
        """From the partner's tensor to the target's; None if no operator does it."""
        kernel = target_layer.is_conv and slot.shape == target_layer.shape
        steps: list[Step] = []
        if kernel and (folded := self._folded(source_layer, target_layer)) is not None:
            tensors = self.source.layers[folded].tensors
            if "running_var" in tensors:
                gamma = {"gamma": tensors["weight"].key} if "weight" in tensors else {}
                steps.append(Step("fold-norm", {"variance": tensors["running_var"].key} | gamma))
        if kernel and _split(source_layer, target_layer):
            steps += [Step("rank-one", {"part": "spatial"}), *self._kernel_size(partner, slot)]
            return (*steps, _overlay(self._split_rows(partner, slot), None, norm="own"))
        if (found := self._paired(source_layer, target_layer, partner, slot)) is None:
            return None
        if not slot.shape:
            return ()
        laid, sides = found
        steps += (*laid.before, *laid.after)  # the target's own tensor, which is laid under, is in groups already
        partner = laid.partner
        resized = _tables.resize(self.source, self.target, source_layer, target_layer, partner, slot)
        if kernel and target_layer.name in self.halved:
            steps.append(Step("rank-one", {"part": "channel"}))
        else:
            steps += resized.steps
        self.notes += (*laid.notes, *resized.notes)
        stretched = {dim: self._stretch(target_layer, slot, sides, dim) for dim in range(len(slot.shape))}
        done = {dim: step for dim, step in stretched.items() if step is not None}
        steps += done.values()
        rows = range(slot.shape[0]) if 0 in done else self._index(partner, slot, sides, 0)
        columns: Sequence[int] | None = None
        if len(slot.shape) > 1 and 1 not in resized.dims:
            columns = range(slot.shape[1]) if 1 in done else self._index(partner, slot, sides, 1)
        for dim in range(2, len(slot.shape)):
            settled = kernel or dim in done or dim in resized.dims
            if not settled and partner.shape[dim] != slot.shape[dim]:
                return None
        turned = target_layer.is_kernel and target_layer.in_axis == 0 and columns is not None
        inputs, before = (rows, partner.shape[0]) if turned else (columns, partner.shape[1] if columns else 0)
        if target_layer.is_kernel and inputs is not None and NEW not in inputs and len(inputs) < before:
            steps.append(Step("scale", {"factor": sqrt(before / len(inputs))}))
        norm = "own" if self._normed(target_layer) and target_layer.is_kernel and len(slot.shape) > 1 else "source"
        if norm == "own" and self.options.scale == "source":
            norm = "source"
        return (*steps, _overlay(rows, columns, norm, turned=turned))

    def _open(self) -> Iterator[Move]:
        """Norms between the depthwise and the pointwise half of a dense kernel, opened so that signs pass the ReLU."""
        for _, source_layer, target_layer in self.pairs:
            ending = self.endings[1].get(target_layer.name)
            if not _split(source_layer, target_layer) or ending is None or ending.norm is None or not ending.activated:
                continue
            why = f"lets what {target_layer.name} gives through the activation, as half of {source_layer.name}"
            for role, slot in self.target.layers[ending.norm].tensors.items():
                if role in ("weight", "bias"):
                    yield from moves_to(slot, "", slot.shape, (Step("fill", {"value": 1.0}),), why)

    def _paired(
        self, source_layer: Layer, target_layer: Layer, partner: Slot, slot: Slot
    ) -> tuple[Laid, tuple[Axes, Axes]] | None:
        """The partner laid out as the slot, and the axes of both; None where the two are not made alike."""
        laid = lay(source_layer, target_layer, partner, slot)
        sides = paired_axes(self.channels.source, self.channels.target, source_layer, target_layer, partner, slot)
        if laid is None or sides is None:
            return None
        if laid.after:
            groups, (rows, columns, *taps) = target_layer.groups, laid.partner.shape
            if rows % groups or columns % groups:
                return None
            laid = laid._replace(partner=replace(laid.partner, shape=(rows, columns // groups, *taps)))
        return laid, sides

    def _stretch(self, target_layer: Layer, slot: Slot, sides: tuple[Axes, Axes], dim: int) -> Step | None:
        """How an axis takes part in such a stream: writes it, normalises it or reads it. None for other axes."""
        source_run, target_run = (normal(axes[dim]) for axes in sides)
        norm = self.stretched.get(id(target_run))
        if norm is None or self.channels.runs[id(target_run)][1] is not source_run:
            return None
        reads, seed = (slot.key, dim) in self.channels.target.reads, {"seed": self.places[slot.key]}
        return stretch_step(norm, target_layer, slot, dim, target_run.size, reads=reads, seed=seed)

    def _kernel_size(self, partner: Slot, slot: Slot) -> list[Step]:
        return [Step("centre", {"size": list(slot.shape[2:])})] if partner.shape[2:] != slot.shape[2:] else []

    def _index(self, partner: Slot, slot: Slot, sides: tuple[Axes, Axes], dim: int) -> list[int]:
        """The source position of each position along an axis, -1 for new ones."""
        a, b = (axes[dim] for axes in sides)
        index = self.channels.index(a, b)
        if index is not None and (a.size, b.size) == (partner.shape[dim], slot.shape[dim]):
            return index
        return _first(partner.shape[dim], slot.shape[dim])

    def _split_rows(self, partner: Slot, slot: Slot) -> list[int]:
        """Filters stand for the source's input channels."""
        a, b = axes_of(self.channels.source, partner)[1], axes_of(self.channels.target, slot)[0]
        index = self.channels.index(a, b)
        return index if index is not None and len(index) == slot.shape[0] else _first(partner.shape[1], slot.shape[0])

    def _normed(self, target_layer: Layer) -> bool:
        ending = self.endings[1].get(target_layer.name)
        return ending is not None and ending.norm is not None

    def _folded(self, source_layer: Layer, target_layer: Layer) -> str | None:
        """The source's batch norm, where the target has none in this place."""
        ending = self.endings[0].get(source_layer.name)
        if not target_layer.is_kernel or ending is None or ending.norm is None or self._normed(target_layer):
            return None
        if (
            ending.late or source_layer.transposed or _split(source_layer, target_layer)
        ):  # an activation between, or outputs not on axis 0
            return None
        return ending.norm


def _split(source_layer: Layer, target_layer: Layer) -> bool:
    """Whether a dense kernel is to become a depthwise one."""
    depthwise = target_layer.is_conv and target_layer.groups > 1 and target_layer.shape[1:2] == (1,)
    return (
        depthwise
        and source_layer.kind == target_layer.kind
        and source_layer.groups == 1
        and len(source_layer.shape) > 2
    )


def _patches(layer: Layer) -> bool:
    """Whether a convolution reads patches side by side, as before a transformer.

    Such a kernel stands for a whole patch, one that overlaps itself for an edge. In the other's place either is worse
    than random weights.
    """
    sizes = layer.shape[2:]
    return bool(layer.is_conv and sizes and min(sizes) > 1 and layer.stride >= sizes)


def _first(before: int, after: int) -> list[int]:
    return [*range(min(before, after)), *[NEW] * (after - before)]


def _overlay(rows: Sequence[int], columns: Sequence[int] | None, norm: str = "source", *, turned: bool = False) -> Step:
    options: dict[str, object] = {"rows": [list(run) for run in index_map.runs(rows)], "norm": norm}
    if turned:
        options["turned"] = True
    if columns is not None:
        options["columns"] = [list(run) for run in index_map.runs(columns)]
    return Step("overlay", options)
