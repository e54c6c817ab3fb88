"""Learning what and where to transfer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from netgraft.finetune.protocol import Batch, Need, Part, Run, Update
from netgraft.finetune.toolbox.adapters import features
from netgraft.finetune.toolbox.bilevel.look_ahead import look_ahead
from netgraft.finetune.toolbox.bilevel.matching import (
    Adapters,
    Match,
    MatchingWeights,
    coefficients,
    distances,
    matching_loss,
    note,
    pairs_to_match,
    pooled,
    source_features,
)


@dataclass(frozen=True)
class L2TWW:
    """Features match the source's; how much each channel and pair counts learns from the task (L2T-ww).

    d = grad (J + L_wfm),  L_wfm = beta sum over pairs of mean_b lambda_b sum_c w_bc mean_ij (phi(f^T) - f^S)^2_bcij
    w = softmax(W g + bias), lambda = relu6(u g + c), g = f^S averaged over places: the weight networks. They descend
    J(theta^(T+1)), where theta^(T+1) is T steps on L_wfm and one on J away from here and is then forgotten.

    Jang, Lee, Hwang and Shin, "Learning What and Where to Transfer", ICML 2019; defaults of the authors'
    code. The gradient of the weight networks is exact, through SGD with its momentum and weight decay.

    Departs from the paper: the T + 1 steps are those of the run's optimizer, with momentum and weight decay, where the
    paper writes plain gradient descent. Unlike in the authors' code, weights that L_wfm does not reach (the
    classifier's) are left alone by its steps, and so are not decayed in the meta-gradient. In these steps, which are
    forgotten, L_wfm is not scaled by --lambda, nor are gradients clipped.
    """

    beta: float = field(default=0.5, metadata={"help": "weight of the matching loss"})
    inner_steps: int = field(default=2, metadata={"help": "T: steps on the matching loss alone before each look at J"})
    meta_every: int = field(default=1, metadata={"help": "the weight networks learn in every so many batches"})
    loss_weights: bool = field(default=True, metadata={"help": "weigh pairs too, not only channels"})
    weight_start: float = field(default=1.0, metadata={"help": "the pairs' weights before they learn"})
    match: Match = field(
        default="all", metadata={"help": "the pairs, or each of their source layers with each target's"}
    )
    meta_lr: float = field(default=1e-4, metadata={"help": "Adam's learning rate of the weight networks"})

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_MODEL, Need.PAIRS})
    category: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        if self.inner_steps < 1 or self.meta_every < 1:
            raise ValueError("inner_steps and meta_every are at least 1.")

    def parts(self, run: Run) -> Mapping[str, Part]:
        pairs = pairs_to_match(run, self.match)
        weights = MatchingWeights(pairs, losses=self.loss_weights, start=self.weight_start)
        return {
            "target": Part(run.target_module),
            "adapters": Part(Adapters(pairs)),
            "weights": Part(weights, lr=self.meta_lr, opt="adam", weight_decay=1e-4),
        }

    def stage(self, run: Run) -> str:
        return "with weights" if run.step % self.meta_every == 0 else "network alone"

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        pairs = pairs_to_match(run, self.match)
        adapters, weights = parts["adapters"].module, parts["weights"].module
        for batch in batches:
            of_source = features(run.source_module, run.source(batch, logits=False))
            sources = source_features(pairs, of_source)
            w, lam = weights([pooled(of_source[pair.source]) for pair in pairs])
            a = coefficients(w, lam, self.beta)
            target = run.target(batch)
            with run.autocast():
                adapted = adapters(features(run.target_module, target))
            loss = matching_loss([one.detach() for one in a], distances(adapted, sources))
            yield Update(("target", "adapters"), {"task": run.task(target, batch), "wfm": loss})
            if self.stage(run) == "with weights":
                yield Update(
                    ("weights",), {"meta": look_ahead(run, batch, adapters, sources, a, steps=self.inner_steps)}
                )
            note(run, w, lam)
