"""Fine-tuning that keeps the source's features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from netgraft.finetune.protocol import Batch, FeaturePair, Need, Part, Run, Update
from netgraft.finetune.toolbox.adapters import adapter, check_places, features, pairs_of, width
from netgraft.finetune.toolbox.terms import match_size, squared_distance


@dataclass(frozen=True)
class KnowDist:
    """The outputs of paired layers stay near the source's, channel by channel.

    L = J + beta 1/n sum_j mean (F_j(theta, x) - F_j(theta^0, x))^2 over the n pairs (KnowDist as defined by Wan et
    al., "Towards Making Deep Transfer Learning Never Hurt", ICDM 2019, Eq. 3). Pairs are the last of each stage unless
    --pairs says otherwise. The paper gives neither layers nor weight.

    Departs from the paper: means over samples, channels and places in place of sums. Where the source is wider or
    narrower than the target, a 1x1 convolution of the target's features is trained along; maps of other sizes are
    resized to the target's. Between equal widths channels are compared as they are, as the paper does.
    """

    beta: float = field(default=1.0, metadata={"help": "weight of the distance"})

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_MODEL, Need.PAIRS})
    category: ClassVar[str] = "network"

    def parts(self, run: Run) -> Mapping[str, Part]:
        pairs = pairs_of(run)
        check_places(pairs)
        adapters = nn.ModuleList(_adapter(pair) for pair in pairs)
        trained = {"adapters": Part(adapters)} if any(True for _ in adapters.parameters()) else {}
        return {"target": Part(run.target_module), **trained}

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        identities = nn.ModuleList(nn.Identity() for _ in run.pairs)
        adapters = parts["adapters"].module if "adapters" in parts else identities
        for batch in batches:
            target, source = run.target(batch), run.source(batch, logits=False)
            of_target, of_source = features(run.target_module, target), features(run.source_module, source)
            distances = []
            for pair, adapt in zip(run.pairs, adapters.children(), strict=True):
                with run.autocast():
                    mapped = adapt(of_target[pair.target])
                distances.append(squared_distance(mapped, match_size(of_source[pair.source], mapped)))
            distance = torch.stack(distances).mean()
            yield Update(tuple(parts), {"task": run.task(target, batch), "knowdist": self.beta * distance})


def _adapter(pair: FeaturePair) -> nn.Module:
    channels = width(pair.source_shape)
    return nn.Identity() if channels == width(pair.target_shape) else adapter(pair.target_shape, channels)
