"""Fine-tuning that keeps those channels of the source's features that the task needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from netgraft.finetune.protocol import Batch, Need, Part, Run, Update
from netgraft.finetune.toolbox.adapters import (
    adapters_of,
    check_places,
    features,
    pairs_of,
    parts_with_adapters,
    width,
)
from netgraft.finetune.toolbox.channel_attention import (
    Classified,
    attention,
    estimated_increase,
    exact_increase,
    source_head,
    train_probe,
)
from netgraft.finetune.toolbox.labels import check_one_class
from netgraft.finetune.toolbox.stages import check_same_classes
from netgraft.finetune.toolbox.terms import l2_penalty, match_size, scratch


@dataclass(frozen=True)
class Delta:
    """The outputs of paired layers stay near the source's, most where the task's loss needs the channel (DELTA).

    L = J + alpha/2 sum_j sum_c a_jc mean (F_jc(theta, x) - F_jc(theta^0, x))^2 + beta/2 ||theta_head||^2 over pairs j
    and the source's channels c, means over samples and places. The attention a_j sums to 1 over c. It comes from
    delta_c, how much the loss of the source on the target's images grows where channel c is zeroed, before the first
    step: a = softmax(z / 5), z = delta at mean 0 and variance 1 (``form=code``), or softmax(delta) (``form=paper``).

    ``attention=exact`` zeroes each channel and runs what is behind the layer; ``first-order`` is
    delta_c = -<dJ / dF_c, F_c>, one backward pass for all; ``uniform`` is the paper's ablation without attention.
    The source's loss is that of a linear layer on its features, trained for ``probe_epochs`` on the first epoch's
    images; with 0 that of its own answers, which must then be the target's classes.

    Li et al., "DELTA: Deep Learning Transfer using Feature Map with Attention for Convolutional Networks", ICLR 2019,
    and the authors' code (z / 5; SGD 0.01, ten times less after 6 epochs; beta = 0.01).

    Departs from the paper: means, where its sums grow with the batch. Where the source is wider or narrower than the
    target, a 1x1 convolution of the target's features is trained along. Layers are the pairs, behind their norms, where
    the code takes convolutions before theirs. The linear layer begins at 0. Of ``attention_batches`` batches.
    """

    alpha: float = field(default=1.0, metadata={"help": "weight of the distances"})
    beta: float = field(default=0.01, metadata={"help": "strength of the pull of the classifier's weights towards 0"})
    attention: Literal["exact", "first-order", "uniform"] = field(
        default="exact", metadata={"help": "how the loss without a channel is found; uniform: all channels alike"}
    )
    form: Literal["code", "paper"] = field(default="code", metadata={"help": "how the attention follows from it"})
    attention_batches: int = field(default=4, metadata={"help": "batches that the attention is computed on"})
    probe_epochs: int = field(
        default=10, metadata={"help": "epochs of a classifier on the source's features; 0: its own answers"}
    )

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_GRADIENTS, Need.PAIRS})
    category: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        if self.attention_batches < 1 or self.probe_epochs < 0 or self.alpha < 0 or self.beta < 0:
            raise ValueError("attention_batches is at least 1; probe_epochs, alpha and beta at least 0.")

    def parts(self, run: Run) -> Mapping[str, Part]:
        pairs = pairs_of(run)
        check_places(pairs)
        if self.attention != "uniform":
            check_one_class(
                run, "The attention is that of a classifier's cross-entropy", "Add --set attention=uniform."
            )
        if self.attention != "uniform" and self.probe_epochs:
            source_head(run)
        elif self.attention != "uniform":
            check_same_classes(run, "Leave out probe_epochs=0: a classifier for the data's classes is trained then.")
        weights = nn.Module()
        for i, pair in enumerate(pairs):
            channels = width(pair.source_shape)
            weights.register_buffer(f"pair{i}", torch.full((channels,), 1 / channels))
        return {**parts_with_adapters(run, pairs), "attention": Part(weights)}

    def prepare(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> None:
        """Compute the attention."""
        if self.attention == "uniform":
            return
        classified = train_probe(run, batches, self.probe_epochs) if self.probe_epochs else Classified(run, None)
        layers = list(dict.fromkeys(pair.source for pair in run.pairs))
        sums: list[Tensor] = []
        for count, batch in enumerate(islice(batches, self.attention_batches), 1):
            if self.attention == "exact":
                found = [exact_increase(classified, layer, batch) for layer in layers]
            else:
                found = estimated_increase(classified, layers, batch)
            sums = found if count == 1 else [one + other for one, other in zip(sums, found, strict=True)]
        increases = dict(zip(layers, run.reduce([one / count for one in sums]), strict=True))
        for pair, buffer in zip(run.pairs, parts["attention"].module.buffers(), strict=True):
            buffer.copy_(attention(increases[pair.source], self.form))

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        pairs = pairs_of(run)
        adapters, weights = adapters_of(parts, pairs), list(parts["attention"].module.buffers())
        inside = tuple(f"{head}." for head in run.heads)
        head = [p for n, p in run.target_module.named_parameters() if n.startswith(inside) and p.requires_grad]
        out, trained = scratch(head), tuple(name for name in parts if name != "attention")
        for batch in batches:
            target, source = run.target(batch), run.source(batch, logits=False)
            of_target, of_source = features(run.target_module, target), features(run.source_module, source)
            distances = []
            for pair, adapt, weight in zip(pairs, adapters, weights, strict=True):
                with run.autocast():
                    mapped = adapt(of_target[pair.target])
                apart = channel_distances(mapped, match_size(of_source[pair.source], mapped))
                distances.append((weight * apart).sum())
            losses = {"task": run.task(target, batch), "delta": self.alpha / 2 * torch.stack(distances).sum()}
            yield Update(trained, losses, {"head": l2_penalty(head, self.beta, out=out)} if head else {})


def channel_distances(one: Tensor, other: Tensor) -> Tensor:
    """The mean squared difference of each channel, ``[C]``, of maps [B, C, H, W], tokens [B, T, C] or vectors."""
    squares = (one.float() - other.float()).square()
    return squares.mean((0, 2, 3)) if squares.dim() == 4 else squares.flatten(0, -2).mean(0)
