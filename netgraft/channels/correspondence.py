"""Which channel of the source each channel of the target stands for, once layers have been paired.

Paired layers have paired tensors, their axes have structures made of channel runs, and runs in the same place
correspond. One map per run then serves every tensor the run goes through, which is what keeps producers and consumers
of channels in agreement. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from netgraft.architecture.graph import Layer
from netgraft.architecture.layout import regrouped
from netgraft.channels import index_map
from netgraft.channels.groups.axes import Axis, Concat, Fixed, Product, Var, normal, positions, variables
from netgraft.channels.groups.find import Groups
from netgraft.channels.layout import axes_of, paired_axes

Shrink = Literal["uniform", "first", "importance", "fold"]
Norms = Callable[[str, int], Sequence[float]]  # squared norms of the slices of a source tensor along an axis


class Correspondence:
    """Maps between the channel runs of a source and a target architecture.

    ``pairs`` are layers (source, target); where two pairs disagree about a run, the earlier one decides. ``norms`` rank
    the source's channels where ``shrink`` keeps the most important ones; without them they are spread evenly.
    """

    def __init__(
        self,
        source: Groups,
        target: Groups,
        pairs: Iterable[tuple[Layer, Layer]],
        shrink: Shrink,
        norms: Norms | None = None,
        *,
        fresh: bool = False,
    ) -> None:
        """With ``fresh`` the channels a target has beyond the source's stand for none, instead of being copies."""
        self.source, self.target, self.shrink, self.norms, self.fresh = source, target, shrink, norms, fresh
        self.runs: dict[int, tuple[Var, Var]] = {}  # id of a target run -> that run and the source's run behind it
        self.mirrored: set[int] = set()  # target runs whose second half repeats the first
        pairs = list(pairs)
        self.regrouped = {  # target runs of the same channels in other groups: these stay where they are
            id(run)
            for source_layer, target_layer in pairs
            if regrouped(source_layer, target_layer)
            for axis in axes_of(target, target_layer.tensors["weight"])[:2]
            for run in variables(axis)
        }
        for source_layer, target_layer in pairs:
            for role, slot in target_layer.tensors.items():
                partner = source_layer.tensors.get(role)
                both = partner and paired_axes(source, target, source_layer, target_layer, partner, slot)
                for a, b in zip(*both, strict=True) if both else ():
                    self._connect(a, b)

    def _connect(self, source: Axis, target: Axis) -> None:
        source, target = normal(source), normal(target)
        if isinstance(target, Var) and isinstance(source, Var) and id(target) not in self.regrouped:
            self.runs.setdefault(id(target), (target, source))
            return
        parts = [axis.parts if isinstance(axis, (Product, Concat)) else () for axis in (source, target)]
        if type(source) is type(target) and len(parts[0]) == len(parts[1]):
            for a, b in zip(*parts, strict=True):
                self._connect(a, b)

    def source_size(self, run: Var) -> int | None:
        """Number of source channels behind a target run; None where nothing corresponds to it."""
        return self.runs[id(run)][1].size if id(run) in self.runs else None

    def channels(self, run: Var) -> index_map.Runs:
        """The source channel of each channel of a target run; itself where nothing corresponds to it."""
        before = self.source_size(run)
        if before is None:
            return index_map.identity(run.size)
        if id(run) in self.mirrored:
            return index_map.runs(index_map.indices(index_map.cyclic(before, run.size))[: run.size // 2] * 2)
        if run.size < before and self.shrink == "importance" and self.norms is not None:
            scores = self._importance(self.runs[id(run)][1], self.norms)
            best = sorted(range(before), key=lambda channel: (-scores[channel], channel))[: run.size]
            return index_map.runs(sorted(best))
        if run.size < before and self.shrink in ("uniform", "importance"):
            return index_map.uniform(before, run.size)
        if run.size > before and self.fresh:
            return ((0, before), (index_map.NEW, run.size - before))
        return index_map.cyclic(before, run.size)

    def _importance(self, run: Var, norms: Norms) -> list[float]:
        """Score of each channel of a source run: its share of the weights it goes through, summed over the tensors."""
        scores = [0.0] * run.size
        for key, sides in self.source.axes.items():
            for number, axis in enumerate(sides):
                if normal(axis) is run:
                    squares = norms(key, number)
                    total = sum(squares) or 1.0
                    scores = [score + square / total for score, square in zip(scores, squares, strict=True)]
        return scores

    def index(self, source: Axis, target: Axis) -> list[int] | None:
        """The source position of each position of an axis; None where the two axes are not built alike."""
        if not self._alike(source, target):
            return None
        return positions(
            target,
            lambda run: index_map.indices(self.channels(run)),
            lambda run: self.source_size(run) or run.size,
        )

    def _alike(self, source: Axis, target: Axis) -> bool:
        source, target = normal(source), normal(target)
        if isinstance(target, Var):
            return isinstance(source, Var) and self.source_size(target) == source.size
        if isinstance(target, Fixed):
            return source == target
        if not isinstance(source, type(target)) or len(source.parts) != len(target.parts):
            return False
        return all(self._alike(a, b) for a, b in zip(source.parts, target.parts, strict=True))

    def clusters(self, source: Axis, target: Axis) -> list[int] | None:
        """For each source position the position of the narrower target axis that it is folded into.

        The inverse of cyclic widening (OPERATORS D2); None where the axes are not built alike, or one grows.
        """
        sizes: dict[int, int] = {}

        def walk(a: Axis, b: Axis) -> bool:
            a, b = normal(a), normal(b)
            if isinstance(a, Var) and isinstance(b, Var):
                return sizes.setdefault(id(a), b.size) == b.size <= a.size
            if isinstance(a, (Var, Fixed)) or not isinstance(b, type(a)) or len(a.parts) != len(b.parts):
                return a == b
            return all(walk(x, y) for x, y in zip(a.parts, b.parts, strict=True))

        if not walk(source, target):
            return None
        return positions(
            source,
            lambda run: index_map.indices(index_map.cyclic(sizes[id(run)], run.size)),
            lambda run: sizes[id(run)],
        )


def outermost(axis: Axis) -> Axis:
    """The run that changes slowest along an axis: heads, in heads x head dim."""
    axis = normal(axis)
    return normal(axis.parts[0]) if isinstance(axis, Product) else axis
