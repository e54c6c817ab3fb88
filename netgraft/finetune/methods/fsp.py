"""Fine-tuning whose layers solve the problem in the source's steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from netgraft.errors import UsageError
from netgraft.finetune.protocol import Batch, FeaturePair, Need, Part, Run, Update
from netgraft.finetune.toolbox.adapters import adapters_of, features, pairs_of, parts_with_adapters
from netgraft.finetune.toolbox.momentum import begin_momentum
from netgraft.finetune.toolbox.stages import check_stage


@dataclass(frozen=True)
class FlowOfSolution:
    """How the channels of one layer go with those of the next is drawn towards the source's (FSP).

    G_cd(x) = 1/(HW) sum over places of F1_c F2_d, for layers F1, F2 of one network: a paired layer and the next paired
    one. L = J + beta sum_i mean (G_i^T - G_i^S)^2 over samples and entries. ``pretrain_epochs`` above 0 is the paper's
    schedule: so many epochs on the distances alone, the rest on J alone.

    Yim et al., "A Gift from Knowledge Distillation", CVPR 2017. Where F1 and F2 have other
    sizes the larger is max-pooled to the smaller. The sizes of source and target need not agree.

    Departs from the paper: a mean over entries. Where the source is wider or narrower than the target, which the paper
    does not allow, a 1x1 convolution of the target's features is trained along, one for each layer.
    """

    beta: float = field(default=1.0, metadata={"help": "weight of the distances"})
    pretrain_epochs: int = field(default=0, metadata={"help": "epochs on the distances alone; after them on J alone"})

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_MODEL, Need.PAIRS})
    category: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        if self.pretrain_epochs < 0:
            raise ValueError("pretrain_epochs is at least 0.")

    def parts(self, run: Run) -> Mapping[str, Part]:
        if self.pretrain_epochs:
            check_stage(run, "pretrain_epochs", self.pretrain_epochs)
        return parts_with_adapters(run, _with_places(run))

    def stage(self, run: Run) -> str:
        if not self.pretrain_epochs:
            return "all losses"
        return "distances" if run.epoch < self.pretrain_epochs else "task"

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        pairs = _with_places(run)
        adapters = adapters_of(parts, pairs)
        distances, task = self.stage(run) != "task", self.stage(run) != "distances"
        if self.pretrain_epochs:
            begin_momentum(run.optimizer("target"))
        for batch in batches:
            target, losses = run.target(batch), {}
            if task:
                losses["task"] = run.task(target, batch)
            if distances:
                of_target = features(run.target_module, target)
                of_source = features(run.source_module, run.source(batch, logits=False))
                with run.autocast():
                    adapted = [adapt(of_target[pair.target]) for pair, adapt in zip(pairs, adapters, strict=True)]
                losses["fsp"] = self.beta * flow_distance([of_source[pair.source] for pair in pairs], adapted)
            yield Update(tuple(parts), losses)


def _with_places(run: Run) -> list[FeaturePair]:
    """The pairs of layers with places, all maps or all tokens: the kind that there is more of."""
    pairs = pairs_of(run)
    kinds = [[pair for pair in pairs if len(pair.target_shape) == axes] for axes in (3, 2)]
    found = max(kinds, key=len)
    if len(found) < 2:
        hint = "Name several that put out maps: --pairs SOURCE:TARGET,SOURCE:TARGET"
        raise UsageError("A flow is between two layers with places, and fewer are paired.", hint=hint)
    return found


def flow_distance(source: list[Tensor], target: list[Tensor]) -> Tensor:
    """The sum over neighbours in the lists of the mean squared difference of their flows; widths agree."""
    flows = zip(_flows(source), _flows(target), strict=True)
    return torch.stack([F.mse_loss(of_target, of_source) for of_source, of_target in flows]).sum()


def _flows(layers: list[Tensor]) -> list[Tensor]:
    maps = [layer.float() if layer.dim() == 4 else layer.float().transpose(1, 2).unsqueeze(3) for layer in layers]
    return [flow(one, other) for one, other in pairwise(maps)]


def flow(one: Tensor, other: Tensor) -> Tensor:
    """The FSP matrix ``[B, C, D]`` of maps ``[B, C, H, W]`` and ``[B, D, h, w]``, at the smaller of their sizes."""
    size = [min(sides) for sides in zip(one.shape[2:], other.shape[2:], strict=True)]
    one, other = (F.adaptive_max_pool2d(maps, size).flatten(2) for maps in (one, other))
    return one @ other.transpose(1, 2) / one.shape[2]
