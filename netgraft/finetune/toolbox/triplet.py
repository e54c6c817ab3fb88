"""The triplet loss on what the classifier reads: images of one class nearer to each other than to those of others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netgraft.errors import UsageError
from netgraft.finetune.protocol import Batch, Outputs, Run
from netgraft.finetune.toolbox.domains import FEATURES, listening, pooled

HEARD = "(features)"
"""Where a pass keeps what the classifier reads, beside the paired layers."""
LEAST = 1e-12  # of a squared distance: the root has no derivative at 0


@dataclass(frozen=True)
class TripletLoss:
    """weight * L_BH, a part of the task's loss: HMT trains person re-identification on it and the cross-entropy.

    Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017, by the hardest images of
    a batch, as a mean over its images, of all processes. HMT names neither weight, nor margin, nor the batch. Weight 1,
    margin 0.3 and four images of each class are those of Luo et al., "Bag of Tricks and A Strong Baseline for Deep
    Person Re-identification", 2019; Hermans et al. do best with a soft margin.

    From weights that do not tell classes apart yet, or at large rates, all images may fall onto one point, and the loss
    stays at the margin (log 2 with a soft one): it is logged. Begin from trained weights, or take a smaller --lr.
    """

    weight: float
    margin: float | None  # None: a soft one
    head: str  # module path of the classifier

    @contextmanager
    def hearing(self, module: nn.Module) -> Iterator[dict[str, Tensor]]:
        """What the classifier reads in the pass inside, pooled over places: ``HEARD``, ``[B, width]``."""
        heard: dict[str, Tensor] = {}
        with listening(module, self.head) as found:
            yield heard
        if FEATURES in found:
            heard[HEARD] = pooled(found[FEATURES])

    def loss(self, run: Run, seen: Outputs, batch: Batch) -> Tensor:
        """The weighted loss, over the images of all processes. Raises UsageError for what is no pass of the target."""
        features = seen.at.get(HEARD)
        if features is None or len(features) != len(batch.y):
            what = "The method's loss on the task is not of one pass of the target, which the triplet loss looks at."
            raise UsageError(what, where="--triplet", hint="Leave out --triplet, or take another method.")
        start = run.rank * len(features)
        own = slice(start, start + len(features))
        found = batch_hard(run.gather(features), run.gather(batch.y), self.margin, own)
        run.note("triplet", found)
        return self.weight * found


def batch_hard(
    features: Tensor,  # [N, width]
    labels: Tensor,  # [N]
    margin: float | None,
    anchors: slice = slice(None),
) -> Tensor:
    """The mean over ``anchors`` a of [margin + max_p D(a, p) - min_n D(a, n)]_+, of log(1 + exp(.)) without a margin.

    D is the Euclidean distance, p are images of a's class, n are those of others. An anchor without any counts as 0.
    """
    own = features[anchors]
    with torch.no_grad():
        distances = torch.cdist(own, features, compute_mode="donot_use_mm_for_euclid_dist")
        same = labels[anchors][:, None] == labels
        furthest = distances.masked_fill(~same, -torch.inf).argmax(1)
        nearest = distances.masked_fill(same, torch.inf).argmin(1)
    excess = _distance(own, features[furthest]) - _distance(own, features[nearest])
    losses = F.softplus(excess) if margin is None else (excess + margin).relu()
    return torch.where(same.all(1), 0.0, losses).mean()


def _distance(one: Tensor, other: Tensor) -> Tensor:  # [A, width] twice -> [A]
    return (one - other).square().sum(1).clamp(min=LEAST).sqrt()
