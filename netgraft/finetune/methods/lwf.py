"""Fine-tuning that goes on giving the source's answers, by a second classifier."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from netgraft.finetune.protocol import Batch, Need, Part, Run, Update
from netgraft.finetune.toolbox.domains import FEATURES, feature_width, head_of, listening, pooled
from netgraft.finetune.toolbox.momentum import begin_momentum
from netgraft.finetune.toolbox.stages import check_stage, no_gradient_below
from netgraft.finetune.toolbox.terms import soft_cross_entropy
from netgraft.models.running import find_submodule


@dataclass(frozen=True)
class LearningWithoutForgetting:
    """A second classifier on the target's features gives the source's answers; any classes (LwF).

    L = J + old H(softmax(z_S / T), softmax(z_o / T)), a mean over samples: z_S is what the source puts out for the
    image, z_o what the second classifier makes of the features that the target's own reads. The source's images are
    not needed. For ``warmup_epochs`` the classifier trains alone on frozen features, after that everything. The second
    classifier is trained along and left out of what is saved.

    Li, Hoiem, "Learning without Forgetting", ECCV 2016; T = 2 and old = 1 are theirs. Their R is
    --weight-decay. The source is frozen, so that its answers need not be recorded beforehand: --cache records them.

    Departs from the paper: the source may be another network than the one that the target begins as. The second
    classifier begins as the source's where that is one linear layer of as many features; else it is fresh, and trains
    in the warm-up too, where the paper's, which belongs to the features, is frozen. The warm-up has a fixed length
    (the paper: until convergence).
    """

    old: float = field(default=1.0, metadata={"help": "weight of the source's answers"})
    temperature: float = field(default=2.0, metadata={"help": "T: how soft the answers are when compared"})
    warmup_epochs: int = field(default=1, metadata={"help": "epochs at first that train the classifier alone"})
    head: Literal["source", "fresh"] = field(
        default="source", metadata={"help": "the second classifier begins as the source's where it fits, or fresh"}
    )

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_MODEL})
    category: ClassVar[str] = "network"
    plain_when: ClassVar[dict[str, object]] = {"warmup_epochs": 0}

    def __post_init__(self) -> None:
        if self.warmup_epochs < 0 or self.old < 0:
            raise ValueError("warmup_epochs and old are at least 0.")
        if self.temperature <= 0:
            raise ValueError("temperature is above 0.")

    def parts(self, run: Run) -> Mapping[str, Part]:
        check_stage(run, "warmup_epochs", self.warmup_epochs)
        own = self._source_head(run)
        head = nn.Linear(feature_width(run), run.source_classes) if own is None else copy.deepcopy(own)
        return {"target": Part(run.target_module), "source_head": Part(head.requires_grad_(True))}

    def stage(self, run: Run) -> str:
        return "classifiers alone" if run.epoch < self.warmup_epochs else "everything"

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        source_head, head = parts["source_head"].module, head_of(run)
        warming, fresh = self.stage(run) == "classifiers alone", self._source_head(run) is None
        if self.warmup_epochs:
            begin_momentum(run.optimizer("target"))
        for batch in batches:
            with listening(run.target_module, head) as found:
                if warming:
                    with no_gradient_below(run.target_module, run.heads):
                        target = run.target(batch, train=False)  # frozen: no dropout, and statistics stay
                else:
                    target = run.target(batch)
            losses = {"task": run.task(target, batch)}
            if fresh or not warming:
                features = pooled(found[FEATURES])
                losses["lwf"] = self._old(run, batch, source_head, features.detach() if warming else features)
            yield Update(("target", "source_head"), losses)

    def _old(self, run: Run, batch: Batch, source_head: nn.Module, features: Tensor) -> Tensor:
        with run.autocast():
            answers = source_head(features).float()
        return self.old * soft_cross_entropy(answers, run.source(batch).logits, self.temperature)

    def _source_head(self, run: Run) -> nn.Linear | None:
        """The source's classifier, if it can read the target's features and is to."""
        if self.head == "fresh" or len(run.source_heads) != 1 or run.source_module is None:
            return None
        found = find_submodule(run.source_module, run.source_heads[0])
        shape = run.source_classes, feature_width(run)
        return found if isinstance(found, nn.Linear) and (found.out_features, found.in_features) == shape else None
