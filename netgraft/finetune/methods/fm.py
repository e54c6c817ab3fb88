"""Fine-tuning whose features can be mapped onto the source's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from netgraft.finetune.methods.kd import soft_divergence
from netgraft.finetune.protocol import Batch, FeaturePair, Need, Outputs, Part, Run, Update
from netgraft.finetune.toolbox.adapters import adapter, check_places, features, pairs_of, width
from netgraft.finetune.toolbox.labels import check_one_class
from netgraft.finetune.toolbox.momentum import begin_momentum
from netgraft.finetune.toolbox.stages import check_same_classes, check_stage
from netgraft.finetune.toolbox.terms import match_size, squared_distance


@dataclass(frozen=True)
class FeatureMatching:
    """The outputs of paired layers, mapped linearly, are drawn towards the source's; any widths.

    L = J + beta sum_(m,n) mean (r(T^n(x)) - S^m(x))^2, with a 1x1 convolution r that is trained along: FM of the
    baselines in Jang et al., "Learning What and Where to Transfer", ICML 2019, with uniform weights, and Eq. 3 of
    L2T-GAN. ``match=one-to-one`` takes the pairs, ``single`` the last of them, ``all`` every paired layer of the
    source with every one of the target.

    ``hint_epochs`` above 0 is the schedule of FitNets (Romero et al., ICLR 2015): so many epochs train the layers
    below the pairs on their distance alone, the rest of the epochs all layers on J + kd T^2 KL(softmax(z_S / T) ||
    softmax(z / T)), as --method kd. The source must then put out the target's classes, or kd is 0. With one hint in
    the middle: --pairs SOURCE:TARGET. FitNets as its authors train them are --method fitnet.

    Departs from the papers: the source's maps are resized to the target's by size. r has neither BatchNorm nor ReLU,
    which cannot match a layer before its activation.
    """

    beta: float = field(default=0.5, metadata={"help": "weight of the distances"})
    match: Literal["one-to-one", "single", "all"] = field(
        default="one-to-one", metadata={"help": "which layers are compared: the pairs, the last pair, each with each"}
    )
    hint_epochs: int = field(default=0, metadata={"help": "epochs on the distances alone; after them on J and kd"})
    kd: float = field(default=1.0, metadata={"help": "weight of the source's predictions after the hints"})
    temperature: float = field(default=4.0, metadata={"help": "T: how soft the predictions are when compared"})

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_MODEL, Need.PAIRS})
    category: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        if self.hint_epochs < 0 or self.kd < 0:
            raise ValueError("hint_epochs and kd are at least 0.")
        if self.temperature <= 0:
            raise ValueError("temperature is above 0.")

    def parts(self, run: Run) -> Mapping[str, Part]:
        if self.hint_epochs:
            check_stage(run, "hint_epochs", self.hint_epochs)
            if self.kd:
                check_one_class(run, "The source's predictions are a softmax", "Add --set kd=0.")
                check_same_classes(run, "Add --set kd=0: the second stage is then J alone.")
        pairs = _compared(pairs_of(run), self.match)
        check_places(pairs)
        adapters = nn.ModuleList(adapter(pair.target_shape, width(pair.source_shape)) for pair in pairs)
        return {"target": Part(run.target_module), "adapters": Part(adapters)}

    def stage(self, run: Run) -> str:
        if not self.hint_epochs:
            return "all losses"
        return "hints" if run.epoch < self.hint_epochs else "task"

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        pairs = _compared(pairs_of(run), self.match)
        hints, task = self.stage(run) != "task", self.stage(run) != "hints"
        if self.hint_epochs:
            begin_momentum(run.optimizer("target"))
        for batch in batches:
            target, losses = run.target(batch), {}
            if task:
                losses["task"] = run.task(target, batch)
            if task and not hints and self.kd:
                losses["kd"] = self.kd * soft_divergence(target.logits, run.source(batch).logits, self.temperature)
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
