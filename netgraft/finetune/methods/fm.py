"""Fine-tuning whose features can be mapped onto the source's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from netgraft.errors import UsageError
from netgraft.finetune.protocol import Batch, FeaturePair, Need, Outputs, Part, Run, Update
from netgraft.finetune.toolbox.adapters import adapter, check_places, features, pairs_of, width
from netgraft.finetune.toolbox.terms import match_size, squared_distance


@dataclass(frozen=True)
class FeatureMatching:
    """The outputs of paired layers, mapped linearly, are drawn towards the source's; any widths.

    L = J + beta sum_(m,n) mean (r(T^n(x)) - S^m(x))^2, with a 1x1 convolution r that is trained along: FM of the
    baselines in Jang et al., "Learning What and Where to Transfer", ICML 2019, Eq. 1 with uniform weights, and in
    L2T-GAN. ``match=one-to-one`` takes the pairs, ``single`` the last of them, ``all`` every paired layer of the
    source with every one of the target.

    ``hint_epochs`` above 0 is the schedule of FitNets (Romero et al., ICLR 2015): so many epochs train the layers
    below the pairs on their distance alone, the rest of the epochs all layers on J alone. With one hint in the middle:
    --pairs SOURCE:TARGET.

    Departs from the papers: the source's maps are resized to the target's by size. r has neither BatchNorm nor ReLU,
    which cannot match a layer before its activation. FitNets' second stage adds the source's predictions to J: here
    that is --method kd, from the weights of the first.
    """

    beta: float = field(default=0.5, metadata={"help": "weight of the distances"})
    match: Literal["one-to-one", "single", "all"] = field(
        default="one-to-one", metadata={"help": "which layers are compared: the pairs, the last pair, each with each"}
    )
    hint_epochs: int = field(default=0, metadata={"help": "epochs on the distances alone; after them on J alone"})

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_MODEL, Need.PAIRS})
    category: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        if self.hint_epochs < 0:
            raise ValueError("hint_epochs is at least 0.")

    def parts(self, run: Run) -> Mapping[str, Part]:
        if self.hint_epochs >= run.epochs:
            what = "The epochs on hints leave none for the task."
            raise UsageError(what, where=f"hint_epochs={self.hint_epochs}, --epochs {run.epochs}")
        pairs = _compared(pairs_of(run), self.match)
        check_places(pairs)
        adapters = nn.ModuleList(adapter(pair.target_shape, width(pair.source_shape)) for pair in pairs)
        return {"target": Part(run.target_module), "adapters": Part(adapters)}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        pairs = _compared(pairs_of(run), self.match)
        hints = run.epoch < self.hint_epochs or not self.hint_epochs
        task = run.epoch >= self.hint_epochs
        if self.hint_epochs:
            _begin_momentum(run.optimizer("target"))
        for batch in batches:
            target, losses = run.target(batch), {}
            if task:
                losses["task"] = run.task(target, batch)
            if hints:
                source = run.source(batch, logits=False)
                losses["fm"] = self.beta * _distance(run, pairs, parts["adapters"].module, target, source)
            yield Update(("target", "adapters"), losses)


def _compared(pairs: tuple[FeaturePair, ...], match: str) -> list[FeaturePair]:
    if match == "single":
        return [pairs[-1]]
    if match == "all":
        each = (FeaturePair(a.source, b.target, a.source_shape, b.target_shape) for b in pairs for a in pairs)
        pairs = tuple(pair for pair in each if len(pair.source_shape) == len(pair.target_shape))
    return list(dict.fromkeys(pairs))


def _distance(run: Run, pairs: list[FeaturePair], adapters: nn.Module, target: Outputs, source: Outputs) -> Tensor:
    """The sum over the pairs; a map of the source is resized once for each size of the target's."""
    of_target, of_source = features(run.target_module, target), features(run.source_module, source)
    resized: dict[tuple[str, tuple[int, ...]], Tensor] = {}
    distances = []
    for pair, adapt in zip(pairs, adapters.children(), strict=True):
        with run.autocast():
            mapped = adapt(of_target[pair.target])
        key = pair.source, pair.target_shape[1:]
        if key not in resized:
            resized[key] = match_size(of_source[pair.source], mapped)
        distances.append(squared_distance(mapped, resized[key]))
    return torch.stack(distances).sum()


def _begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Momentum 0 for parameters without any: fused SGD does not take some that have moved and some that have not."""
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
