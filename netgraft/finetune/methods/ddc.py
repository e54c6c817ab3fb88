"""Deep domain confusion: the means of the features of both domains at one place."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from netgraft.errors import UsageError
from netgraft.finetune.protocol import Batch, Part, Run, Update
from netgraft.finetune.toolbox import mmd
from netgraft.finetune.toolbox.adversary import ramp
from netgraft.finetune.toolbox.bottleneck import Bottleneck, Candidates
from netgraft.finetune.toolbox.domains import FEATURES, INPUT, DomainAdaptation, Sides, head_of
from netgraft.finetune.toolbox.taps import submodule

WIDTHS = 64, 128, 256, 512, 1024
"""Candidates of width=auto, those that are less than what the layer reads."""


@dataclass(frozen=True)
class DeepDomainConfusion(DomainAdaptation):
    """The means of both domains' features are drawn together (DDC, a linear MMD).

    L = J + weight * |mean f(x_s) - mean f(x_t)|^2, f what the classifier reads; with ``width`` f is an adaptation layer
    of that width before the layer ``place``, which is drawn anew. Where several are named the smallest MMD chooses,
    first the place, by what the layers of the initialisation read, then the width: each candidate descends L alone for
    ``trial`` steps of Adam (1e-3), then its f are compared. "auto" are the linear layers beside the classifier, and
    widths from 64 to 1024. For choosing, MMDs are divided by the mean squared distance between two images, over up to
    ``trial`` batches.

    Tzeng et al. 2014, "Deep domain confusion: maximizing for domain invariance"; the paper's own: --set width=256.

    Departs from the paper: width=0, no adaptation layer, is the default; candidates train for a few steps with the rest
    of the network as it is, where the paper trains whole networks; their MMDs are relative, since wider layers and
    larger features have larger ones. No ReLU follows the adaptation layer, so that its product with the next layer is
    written as the network's own layer.
    """

    weight: float = field(default=0.25, metadata={"help": "weight of the distance"})
    estimator: mmd.Estimator = field(default="biased", metadata={"help": "the distance of the means, or unbiased"})
    steepness: float = field(default=0.0, metadata={"help": "of the weight's growth from 0, 10 for DANN's; 0: none"})
    width: str = field(
        default="0", metadata={"help": "of the adaptation layer; 0: none; auto, or several (64,256): chosen by the MMD"}
    )
    place: str = field(
        default="features",
        metadata={"help": "layer that reads it; features: the classifier; auto, or several paths: chosen by the MMD"},
    )
    trial: int = field(default=20, metadata={"help": "steps that each width is tried for, where several are named"})

    def __post_init__(self) -> None:
        widths = self.width.split(",")
        if self.width not in ("0", "auto") and not all(w.strip().isdecimal() and int(w) for w in widths):
            raise ValueError("width is 0, auto, or one or several widths above 0: width=64,256.")
        if self.width == "0" and self.place != FEATURES:
            raise ValueError("place is that of an adaptation layer: add width=256 or width=auto.")
        if self.trial < 1:
            raise ValueError("trial is at least 1.")

    category: ClassVar[str] = "mapping"

    def parts(self, run: Run) -> Mapping[str, Part]:
        if self.width == "0":
            return {"target": Part(run.target_module)}
        kinds = [(place, width) for place in self._places(run) for width in self._widths(run, place)]
        return {"target": Part(run.target_module), "adaptation": Part(Candidates(run.target_module, kinds))}

    def prepare(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> None:
        """Choose the place and the width."""
        if self.width == "0":
            return
        candidates = _candidates(parts)
        places = tuple(dict.fromkeys(place for place, _ in candidates.kinds))
        place = places[0] if len(places) == 1 else places[self._closest_place(run, batches, places)]
        numbers = [number for number, (at, _) in enumerate(candidates.kinds) if at == place]
        if len(numbers) > 1:
            found = [self._tried(run, batches, candidates.get(number), place) for number in numbers]
            numbers = [numbers[int(torch.stack(found).argmin())]]
        candidates.chosen.fill_(numbers[0])

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        place, bottleneck = FEATURES, None
        if self.width != "0":
            candidates = _candidates(parts)
            number = int(candidates.chosen)
            (place, width), bottleneck = candidates.kinds[number], candidates.get(number)
        for batch in batches:
            sides = self.sides(run, batch, bottleneck=bottleneck, place=place)
            distance = self.weight * ramp(run, self.steepness) * self._distance(run, sides)
            yield Update(tuple(parts), {"task": sides.task, "mmd": distance})
            if bottleneck is not None:
                bottleneck.fold(submodule(run.target_module, place))
                run.note("adaptation_width", width)

    def _distance(self, run: Run, sides: Sides) -> torch.Tensor:
        source, target = mmd.gather(run.gather, [sides.source[FEATURES], sides.target[FEATURES]])
        return mmd.linear_mmd(source, target, self.estimator)

    def _places(self, run: Run) -> Sequence[str]:
        """Module paths."""
        head = head_of(run)
        if self.place != "auto":
            return [head if name == FEATURES else name for name in self.place.split(",")]
        parent, _, _ = head.rpartition(".")
        beside = submodule(run.target_module, parent) if parent else run.target_module
        names = [f"{parent}.{name}".lstrip(".") for name, one in beside.named_children() if isinstance(one, nn.Linear)]
        return [head, *(name for name in names if name != head)]

    def _widths(self, run: Run, place: str) -> Sequence[int]:
        if self.width != "auto":
            return [int(width) for width in self.width.split(",")]
        layer = submodule(run.target_module, place)
        inputs = getattr(layer, "in_features", getattr(layer, "in_channels", None))
        if not isinstance(inputs, int):
            what = "The layer does not say how many features it reads."
            raise UsageError(what, where=place, hint="Name the width: --set width=256.")
        return [width for width in WIDTHS if width < inputs] or [inputs]

    @torch.no_grad()
    def _closest_place(self, run: Run, batches: Iterable[Batch], places: Sequence[str]) -> int:
        """Where what the layer reads has the smallest relative MMD."""
        names = [f"{INPUT}{place}" for place in places]
        seen = [self.sides(run, batch, names, stats=False) for batch in itertools.islice(batches, self.trial)]
        return int(torch.stack([_relative(run, seen, name) for name in names]).argmin())

    def _tried(self, run: Run, batches: Iterable[Batch], bottleneck: Bottleneck, place: str) -> torch.Tensor:
        """Train this layer alone for a few steps; the relative MMD of its features then."""
        parameters = list(bottleneck.parameters())
        optimizer = torch.optim.Adam(parameters, 1e-3)
        endless = itertools.chain.from_iterable(itertools.repeat(batches))
        for batch in itertools.islice(endless, self.trial):
            sides = self.sides(run, batch, bottleneck=bottleneck, place=place, stats=False)
            loss = sides.task + self.weight * self._distance(run, sides)
            for parameter, gradient in zip(parameters, run.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            some = itertools.islice(batches, self.trial)
            seen = [self.sides(run, batch, bottleneck=bottleneck, place=place, stats=False) for batch in some]
        return _relative(run, seen, FEATURES)


def _relative(run: Run, seen: Sequence[Sides], name: str) -> torch.Tensor:
    """Of a layer's features in all batches of all processes."""
    source, target = (torch.cat([side[name] for side in sides]) for sides in zip(*(s[:2] for s in seen), strict=True))
    return mmd.relative_mmd(*mmd.gather(run.gather, [source, target]))


def _candidates(parts: Mapping[str, Part]) -> Candidates:
    module = parts["adaptation"].module
    assert isinstance(module, Candidates)
    return module
