"""Fine-tuning that looks where the source looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from netgraft.errors import UsageError
from netgraft.finetune.protocol import Batch, FeaturePair, Need, Part, Run, Update
from netgraft.finetune.toolbox.adapters import check_places, features, pairs_of
from netgraft.finetune.toolbox.terms import match_size


@dataclass(frozen=True)
class AttentionTransfer:
    """Maps of where paired layers are active are drawn towards the source's; any widths.

    Q(A) = sum over channels of A^2, one number per place, divided by its norm over places (Zagoruyko, Komodakis,
    "Paying More Attention to Attention", ICLR 2017). Over the pairs j, and as means over samples:

    form=code:  L = J + beta sum_j mean (Q_S - Q_T)^2 over places, with beta = 1000, as in the authors' code
    form=paper: L = J + beta/2 sum_j ||Q_S - Q_T||_2

    The code's weight falls with the size of the map, the paper's does not: at 2x2 places the code's term drowns J, so
    the paper's is the default (examples/few_labels.md). Maps of tokens are taken as well; vectors have no places and
    are left out.

    Departs from the paper: where sizes differ, the source's Q is resized to the target's before it is normalised.
    """

    form: Literal["code", "paper"] = field(default="paper", metadata={"help": "which of the two distances is taken"})
    beta: float | None = field(default=None, metadata={"help": "weight of the distances; none: 1000 (code), 1 (paper)"})

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_MODEL, Need.PAIRS})
    category: ClassVar[str] = "network"

    def parts(self, run: Run) -> Mapping[str, Part]:
        check_places(with_places(run))
        return {"target": Part(run.target_module)}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:  # noqa: ARG002
        beta = self.beta if self.beta is not None else {"code": 1000.0, "paper": 1.0}[self.form]
        pairs = with_places(run)
        for batch in batches:
            target, source = run.target(batch), run.source(batch, logits=False)
            of_target, of_source = features(run.target_module, target), features(run.source_module, source)
            distances = [attention_distance(of_source[p.source], of_target[p.target], self.form) for p in pairs]
            yield Update(("target",), {"task": run.task(target, batch), "at": beta * torch.stack(distances).sum()})


def with_places(run: Run) -> list[FeaturePair]:
    """The pairs whose layers put out maps or tokens. Raises UsageError if there are none."""
    pairs = [pair for pair in pairs_of(run) if len(pair.target_shape) > 1]
    if not pairs:
        hint = "Name layers that put out maps or tokens: --pairs SOURCE:TARGET"
        raise UsageError("Attention needs layers with places, and all paired ones put out vectors.", hint=hint)
    return pairs


def attention_distance(source: Tensor, target: Tensor, form: str) -> Tensor:  # [B, C, H, W] or [B, tokens, width]
    """Of the normalised attention of two layers: the mean squared difference (code), half the norm of it (paper)."""
    source, target = attention(source), attention(target)
    difference = F.normalize(match_size(source, target).flatten(1)) - F.normalize(target.flatten(1))
    return difference.square().mean() if form == "code" else difference.norm(dim=1).mean() / 2


def attention(features: Tensor) -> Tensor:
    """The sum of squares over channels: [B, 1, H, W] of maps, [B, tokens, 1] of tokens."""
    return features.square().sum(1 if features.dim() == 4 else -1, keepdim=True)
