"""Boosting of the images of both data sets: of the source those that help stay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from netgraft.finetune.protocol import Batch, Need, Part, Run, Update
from netgraft.finetune.toolbox.boosting import reweighted, source_factor
from netgraft.finetune.toolbox.domains import check_labels
from netgraft.finetune.toolbox.instances import InstanceWeights, over_every_image


@dataclass(frozen=True)
class TrAdaBoost:
    """Source images that are taken wrongly lose weight from round to round, target images gain it (TrAdaBoost).

    L = sum_s p_i l_i + sum_t p_i l_i, p the weights w over their sum, l the cross-entropy; estimated by batches as
    mean n_s p_i l_i + mean n_t p_i l_i. After each round, with wrong = 1 where the network is wrong and else 0:
    w_s <- w_s beta^wrong, w_t <- w_t beta_t^-wrong, beta = 1 / (1 + sqrt(2 ln n_s / N)), beta_t = e / (1 - e),
    e = sum_t w wrong / sum_t w (at most 0.49), N the number of rounds.

    Dai, Yang, Xue and Yu, "Boosting for transfer learning", ICML 2007. With --lambda below 1 the training lies
    between plain fine-tuning (0) and this (1).

    Departs from the paper: a round is some epochs of one network that goes on training, where the paper fits a new
    learner to the new weights, and what comes out is the network of the last round. The paper's vote of the rounds
    N/2 to N is of several networks: a checkpoint holds one, and what is evaluated is what is saved. The vote over any
    classifier of features is ``netgraft.finetune.baselines.tradaboost``. There are as many classes as the data have,
    where the paper has two. Each round but the last ends with a pass over all images of both data sets.
    """

    round_epochs: int = field(default=1, metadata={"help": "epochs of a round; N is --epochs over this"})
    target_share: float | None = field(
        default=None, metadata={"help": "of the target's images in the first weights; none: all images weigh the same"}
    )

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_DATA})
    category: ClassVar[str] = "instances"

    def __post_init__(self) -> None:
        if self.round_epochs < 1:
            raise ValueError("round_epochs is at least 1.")
        if self.target_share is not None and not 0 < self.target_share < 1:
            raise ValueError("target_share is above 0 and below 1.")

    def parts(self, run: Run) -> Mapping[str, Part]:
        sizes = {name: run.sizes[name] for name in ("source", "target")}
        share = sizes["target"] / sum(sizes.values()) if self.target_share is None else self.target_share
        module = nn.ModuleDict({name: InstanceWeights(images) for name, images in sizes.items()})
        for (name, images), part in zip(sizes.items(), (1 - share, share), strict=True):
            _weights(module, name).set(torch.full((images,), part / images))
        return {"target": Part(run.target_module), "images": Part(module)}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        source, target = (_weights(parts["images"].module, name) for name in ("source", "target"))
        for batch in batches:
            images = batch.source
            assert images is not None, "Need.SOURCE_DATA"
            check_labels(run, images)
            of_target, of_source = run.target(batch), run.target(images)
            beside = run.task(of_source, images, source.of(images) * run.sizes["source"])
            more = run.task(of_target, batch, target.of(batch) * run.sizes["target"] - 1)
            yield Update(("target",), {"task": run.task(of_target, batch), "boosting": beside + more})
        if (run.epoch + 1) % self.round_epochs == 0 and run.epoch + 1 < run.epochs:
            self._end_round(run, source, target)

    def _end_round(self, run: Run, source: InstanceWeights, target: InstanceWeights) -> None:
        rounds = max(1, run.epochs // self.round_epochs)
        source_wrong, target_wrong = (
            over_every_image(run, name, lambda b: _wrong(run, b)) for name in ("source", "target")
        )
        beta = source_factor(run.sizes["source"], rounds)
        new = reweighted(source.weights, target.weights, source_wrong.round(), target_wrong.round(), beta)
        run.note("round_error", new.error)
        run.note("source_share", new.source.sum())
        source.set(new.source)
        target.set(new.target)


def _weights(module: nn.Module, name: str) -> InstanceWeights:
    assert isinstance(module, nn.ModuleDict)
    found = module[name]
    assert isinstance(found, InstanceWeights)
    return found


def _wrong(run: Run, batch: Batch) -> Tensor:  # [B]
    """1 where the network, as it is used in the end, names another class than the label."""
    return (run.target(batch, train=False).logits.argmax(1) != batch.y).float()
