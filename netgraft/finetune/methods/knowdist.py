"""Fine-tuning that keeps the source's features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from netgraft.finetune.protocol import Batch, Need, Part, Run, Update
from netgraft.finetune.toolbox.adapters import adapters_of, check_places, features, pairs_of, parts_with_adapters
from netgraft.finetune.toolbox.terms import match_size, squared_distance, summed_distance


@dataclass(frozen=True)
class KnowDist:
    """The outputs of paired layers stay near the source's, channel by channel.

    KnowDist as defined by Wan et al., "Towards Making Deep Transfer Learning Never Hurt", ICDM 2019, Eq. 3. With
    D_l = F_l(theta, x) - F_l(theta^0, x) at the pair l, and as means over samples:

    form=mean:  L = J + beta times the mean over the pairs of the mean of D_l^2 over channels and places
    form=paper: L = J + beta times the sum over the pairs of ||D_l||^2, the sum over channels and places (Eq. 3)

    Pairs are the last of each stage unless --pairs says otherwise. The paper gives neither layers nor weight. Its sums
    grow with the size of the maps, to a thousand times the means and more: take a beta as much smaller.

    Departs from the paper: means by default, so that beta does not depend on sizes. Where the source is wider or
    narrower than the target, a 1x1 convolution of the target's features is trained along; maps of other sizes are
    resized to the target's. Between equal widths channels are compared as they are, as the paper does.
    """

    beta: float = field(default=1.0, metadata={"help": "weight of the distance"})
    form: Literal["mean", "paper"] = field(
        default="mean", metadata={"help": "means over channels, places and pairs; or Eq. 3's sums over them"}
    )

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_MODEL, Need.PAIRS})
    category: ClassVar[str] = "network"

    def parts(self, run: Run) -> Mapping[str, Part]:
        pairs = pairs_of(run)
        check_places(pairs)
        return parts_with_adapters(run, pairs)

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        adapters = adapters_of(parts, run.pairs)
        of_pair = squared_distance if self.form == "mean" else summed_distance
        for batch in batches:
            target, source = run.target(batch), run.source(batch, logits=False)
            of_target, of_source = features(run.target_module, target), features(run.source_module, source)
            distances = []
            for pair, adapt in zip(run.pairs, adapters, strict=True):
                with run.autocast():
                    mapped = adapt(of_target[pair.target])
                distances.append(of_pair(mapped, match_size(of_source[pair.source], mapped)))
            together = torch.stack(distances)
            distance = together.mean() if self.form == "mean" else together.sum()
            yield Update(tuple(parts), {"task": run.task(target, batch), "knowdist": self.beta * distance})
