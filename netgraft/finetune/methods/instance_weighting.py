"""Source images count by how much they look like the target's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from netgraft.finetune.protocol import Batch, Need, Part, Run, Update
from netgraft.finetune.toolbox.density_ratio import density_ratio
from netgraft.finetune.toolbox.domains import FEATURES, check_labels, feature_width, head_of, listening, pooled
from netgraft.finetune.toolbox.instances import InstanceWeights, over_every_image


@dataclass(frozen=True)
class InstanceWeighting:
    """Source images train too, each weighed by how much more often its like is seen in the target domain.

    L = J + weight * mean_s w(x) l(x),  w(x) = p(t|x) / p(s|x) * n_s / n_t, cut at ``most`` and divided by its mean:
    the ratio of the densities of target and source (covariate shift). p is a logistic regression between the features
    of all images of both domains, f what the classifier reads, in eval mode. The target domain is that of
    --unlabelled where it is given, else that of --data.

    Shimodaira 2000, "Improving predictive inference under covariate shift by weighting the log-likelihood function"
    (the weights); Bickel, Bruckner and Scheffer 2009, "Discriminative learning under covariate shift" (the classifier).

    Departs from the paper: the classifier is fitted before the network and apart from it; the target's labels are used
    as well; the ratio is cut and of mean 1, so that few images cannot take all of the loss.
    """

    weight: float = field(default=1.0, metadata={"help": "of the source images' loss"})
    most: float = field(default=10.0, metadata={"help": "the ratio above which images count the same"})
    penalty: float = field(default=1.0, metadata={"help": "penalty / 2 |v|^2 of the classifier's weights v"})
    refit_epochs: int = field(
        default=0, metadata={"help": "fit the classifier again after so many epochs; 0: only before the first"}
    )

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_DATA})
    category: ClassVar[str] = "instances"

    def __post_init__(self) -> None:
        if self.most <= 0 or self.penalty <= 0:
            raise ValueError("most and penalty are above 0.")
        if self.refit_epochs < 0:
            raise ValueError("refit_epochs is at least 0.")

    def parts(self, run: Run) -> Mapping[str, Part]:
        return {"target": Part(run.target_module), "images": Part(InstanceWeights(run.sizes["source"]))}

    def prepare(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> None:  # noqa: ARG002
        images = _images(parts)
        target = "unlabelled" if "unlabelled" in run.sizes else "target"
        source_features, target_features = (_features(run, name) for name in ("source", target))
        ratio = density_ratio(source_features, target_features, penalty=self.penalty, most=self.most)
        images.set(ratio.to(images.weights.dtype))

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        images = _images(parts)
        for batch in batches:
            source = batch.source
            assert source is not None, "Need.SOURCE_DATA"
            check_labels(run, source)
            seen, of_source = run.target(batch), run.target(source)
            beside = self.weight * run.task(of_source, source, images.of(source))
            yield Update(("target",), {"task": run.task(seen, batch), "instances": beside})
        run.note("images_that_count", images.weights.sum().square() / images.weights.square().sum())
        if self.refit_epochs and (run.epoch + 1) % self.refit_epochs == 0 and run.epoch + 1 < run.epochs:
            self.prepare(run, (), parts)


def _images(parts: Mapping[str, Part]) -> InstanceWeights:
    module = parts["images"].module
    assert isinstance(module, InstanceWeights)
    return module


def _features(run: Run, data: str) -> Tensor:  # [images, width]
    def measure(batch: Batch) -> Tensor:
        with listening(run.target_module, head_of(run)) as found:
            run.target(batch, train=False)
        return pooled(found[FEATURES])

    return over_every_image(run, data, measure, feature_width(run))
