"""Feature matching and adversaries of features, by turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from netgraft.errors import UsageError
from netgraft.finetune.protocol import Batch, FeaturePair, Need, Outputs, Part, Run, Update
from netgraft.finetune.toolbox.adapters import features, pairs_of
from netgraft.finetune.toolbox.adversary import recognised, reverse
from netgraft.finetune.toolbox.bilevel.discriminator import Discriminators, Gan, discriminator_loss, generator_loss
from netgraft.finetune.toolbox.bilevel.layer_sets import LOGITS, compared, layers_of, numbers_of
from netgraft.finetune.toolbox.bilevel.look_ahead import look_ahead
from netgraft.finetune.toolbox.bilevel.matching import (
    Adapters,
    Match,
    MatchingWeights,
    coefficients,
    distances,
    first_order_loss,
    matching_loss,
    note,
    pairs_to_match,
    pooled,
    source_features,
)
from netgraft.finetune.toolbox.mmd import Estimator, gather, gaussians, linear_mmd, mmd


@dataclass(frozen=True)
class L2TGAN:
    """Features match the source's and pass for them before discriminators; channels' weights learn (L2T-GAN).

    L_s = J + lam L_g + beta L_fm + gamma L_MMD (Eq. 6), with sums over pairs of means over samples and places:
    L_fm = sum_c w_c (phi(f^T) - f^S)_c^2 (Eq. 4), L_g = -log D(phi(f^T)), L_MMD = |mean S(I_s) - mean T(I_t)|^2, or
    an MMD with the Gaussian kernels of ``dan``, summed over ``mmd_layers``.
    For each batch (Algorithm 1): A) a step on L_s. B) T times: one on beta L_fm, one of the discriminators on
    -log D(f^S) - log(1 - D(phi(f^T))), one on lam L_g. C) a step on J. D) a step of the weights w.

    The paper of L2T-GAN: Eqs. 1-6, Algorithm 1, and Figure 3b (``ablation``). Its text does not say what T, lam, beta
    and the discriminators are: these are ours. It gives general and middle layers to the adversaries, middle ones to
    the matching and fully connected ones to the MMD: --set gan_layers=general,middle match_layers=middle mmd_layers=fc.
    The first half of the paired layers is taken as general, the rest as middle; vectors and logits are "fc".

    Departs from the paper: Eq. 2's log(-D) does not exist; the loss that does not saturate is taken (``gan``). D sees
    features, as phi(f^T) does, and its "real" ones are the source's of the target's batch: only L_MMD needs source
    images. w descends J after a look-ahead, as in L2T-ww; Algorithm 1's descent of L_fm (``meta=first-order``) would
    put all weight on the channel that matches best, and stops at a floor of entropy. The look-ahead starts after A)
    and keeps the discriminators as they are there. B) takes L_fm and L_g in one step from one pass (``fuse``), weighed
    by beta and lam as in A), where Algorithm 1 has them without weights.
    """

    lam: float = field(default=0.1, metadata={"help": "weight of the adversarial loss"})
    beta: float = field(default=0.5, metadata={"help": "weight of the matching loss"})
    gamma: float = field(default=0.0, metadata={"help": "weight of the MMD; needs --source-data of the same classes"})
    ablation: Literal["A", "B", "C", "D"] = field(
        default="A", metadata={"help": "of Figure 3b: B without adversaries, C without matching, D without MMD"}
    )
    inner_steps: int = field(default=2, metadata={"help": "T: turns of B) for each batch; 0 leaves out B, C and D too"})
    inner: Literal["persist", "rollback"] = field(
        default="persist", metadata={"help": "whether the target keeps the steps of B) and C)"}
    )
    fuse: bool = field(default=True, metadata={"help": "one step and pass for matching and adversary; no: two"})
    gan: Gan = field(default="nonsat", metadata={"help": "the adversarial losses"})
    meta: Literal["bilevel", "first-order", "fixed"] = field(
        default="bilevel", metadata={"help": "channels' weights descend J after a look-ahead, or L_fm, or are uniform"}
    )
    meta_every: int = field(default=1, metadata={"help": "channels' weights learn in every so many batches"})
    weights: Literal["network", "parameters"] = field(
        default="network", metadata={"help": "channels' weights for each image, from the source's features, or for all"}
    )
    entropy_floor: float = field(default=0.5, metadata={"help": "of the weights with first-order, 1 for uniform"})
    mmd_mode: Literal["paper", "ddc"] = field(
        default="paper", metadata={"help": "source images through the source, or as in DDC through the target"}
    )
    mmd_kernel: Literal["linear", "gaussians"] = field(
        default="linear", metadata={"help": "of the MMD: distance of the means, or five Gaussians"}
    )
    mmd_estimator: Estimator = field(
        default="biased", metadata={"help": "of the MMD; unbiased and linear may be below 0"}
    )
    gan_layers: str = field(
        default="all", metadata={"help": "paired layers with adversaries: all, general, middle, fc, or target paths"}
    )
    match_layers: str = field(default="all", metadata={"help": "paired layers that are matched, named likewise"})
    mmd_layers: str = field(
        default="logits", metadata={"help": "layers of the MMD: logits, fc (and logits), or paired ones likewise"}
    )
    match: Match = field(default="one-to-one", metadata={"help": "the pairs, or all their layers with one another"})
    meta_lr: float = field(default=1e-4, metadata={"help": "Adam's learning rate of the channels' weights"})
    gan_lr: float = field(default=2e-4, metadata={"help": "Adam's learning rate of the discriminators"})

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_MODEL, Need.PAIRS})
    category: ClassVar[str] = "adversarial"
    plain_when: ClassVar[dict[str, object]] = {"inner_steps": 0}

    def __post_init__(self) -> None:
        if self.inner_steps < 0 or self.meta_every < 1:
            raise ValueError("inner_steps is at least 0 and meta_every at least 1.")
        for letter, name in (("B", "lam"), ("C", "beta"), ("D", "gamma")):
            if self.ablation == letter:
                object.__setattr__(self, name, 0.0)
        if not self.lam and not self.beta:
            raise ValueError("Without lam and beta nothing is transferred.")

    @property
    def learns(self) -> bool:
        """Whether the channels' weights do."""
        return self.beta > 0 and self.inner_steps > 0 and self.meta != "fixed"

    def sets(self, run: Run) -> _Sets:
        """The pairs in use, and which of them are matched and judged. Raises UsageError."""
        pairs = pairs_to_match(run, self.match)
        matched = numbers_of(pairs, self.match_layers, "match_layers") if self.beta else ()
        judged = numbers_of(pairs, self.gan_layers, "gan_layers") if self.lam else ()
        used = sorted({*matched, *judged})
        place = {number: i for i, number in enumerate(used)}
        return _Sets([pairs[i] for i in used], [place[i] for i in matched], [place[i] for i in judged])

    def parts(self, run: Run) -> Mapping[str, Part]:
        sets = self.sets(run)
        layers_of(pairs_of(run), self.mmd_layers, "mmd_layers", more=[LOGITS])
        found = {"target": Part(run.target_module), "adapters": Part(Adapters(sets.pairs))}
        weights, adversaries = self._weights(sets.of(sets.matched)), Discriminators(sets.of(sets.judged))
        if self.learns:
            found["weights"] = Part(weights, lr=self.meta_lr, opt="adam", weight_decay=1e-4)
        if self.lam:
            betas = {"betas": (0.5, 0.999)}
            found["discriminators"] = Part(adversaries, lr=self.gan_lr, opt="adam", weight_decay=0.0, options=betas)
        return found

    def _weights(self, pairs: Sequence[FeaturePair]) -> MatchingWeights:
        return MatchingWeights(pairs, networks=self.weights == "network", losses=False)

    def stage(self, run: Run) -> str:
        return "with weights" if self.learns and run.step % self.meta_every == 0 else "without weights"

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        for batch in batches:
            turn = _Turn(self, run, batch, parts)
            target = run.target(batch)
            losses = turn.transfer(turn.adapted(target))
            yield Update(
                ("target", "adapters"), {"task": run.task(target, batch), **losses, **self._mmd(run, batch, target)}
            )
            if not self.inner_steps:
                continue
            learning = self.stage(run) == "with weights"
            meta = turn.look_ahead() if learning and self.meta == "bilevel" else None
            saved = run.snapshot("target", "adapters") if self.inner == "rollback" else None
            for _ in range(self.inner_steps):
                yield from turn.steps()
            target = run.target(batch, draw=True)
            if learning and self.meta == "first-order":
                with torch.no_grad():
                    away = turn.away(turn.adapted(target))
                meta = first_order_loss(turn.w, away, self.entropy_floor)
            yield Update(("target",), {"task": run.task(target, batch)})
            if saved is not None:
                run.restore(saved)
            if meta is not None:
                yield Update(("weights",), {"meta": meta})
            if turn.w:
                note(run, turn.w, turn.ones)

    def _mmd(self, run: Run, batch: Batch, target: Outputs) -> dict[str, Tensor]:
        """gamma L_MMD over all processes' images, a sum over layers; with ``ddc`` T(I_s) takes S(I_s)'s place."""
        if not self.gamma:
            return {}
        if batch.source is None:
            raise UsageError("The MMD compares source images with the target's.", hint="Add --source-data NAME")
        through_target = self.mmd_mode == "ddc"
        seen = run.target(batch.source, draw=True) if through_target else run.source(batch.source)
        net, pairs = run.target_module if through_target else run.source_module, pairs_of(run)
        sides = [features(net, seen) | {LOGITS: seen.logits}]
        sides.append(features(run.target_module, target) | {LOGITS: target.logits})
        layers = layers_of(pairs, self.mmd_layers, "mmd_layers", more=[LOGITS])
        each = compared(pairs, layers, *sides, through_target=through_target)
        gathered = gather(run.gather, [x for both in each for x in both])
        found = [self._discrepancy(s, t) for s, t in zip(gathered[::2], gathered[1::2], strict=True)]
        return {"mmd": self.gamma * torch.stack(found).sum()}

    def _discrepancy(self, source: Tensor, target: Tensor) -> Tensor:
        if self.mmd_kernel == "linear":
            return linear_mmd(source, target, self.mmd_estimator)
        return mmd([source], [target], [gaussians()], self.mmd_estimator)


class _Sets(NamedTuple):
    """Pairs of layers, and the numbers of those that are matched and of those with adversaries."""

    pairs: Sequence[FeaturePair]
    matched: Sequence[int]
    judged: Sequence[int]

    def of(self, numbers: Sequence[int]) -> list[FeaturePair]:
        return [self.pairs[number] for number in numbers]


class _Turn:
    """One batch: the source's features, the channels' weights, and the losses between them and the target's."""

    def __init__(self, method: L2TGAN, run: Run, batch: Batch, parts: Mapping[str, Part]) -> None:
        self.method, self.run, self.batch = method, run, batch
        self.sets = method.sets(run)
        matched = self.sets.of(self.sets.matched)
        self.adapters = parts["adapters"].module
        of_source = features(run.source_module, run.source(batch, logits=False))
        self.sources = source_features(self.sets.pairs, of_source)
        seen = [pooled(of_source[pair.source]) for pair in matched]
        weights = parts["weights"].module if method.learns else method._weights(matched).to(run.device)
        self.w, self.ones = weights(seen)
        self.a = coefficients(self.w, self.ones, method.beta)
        adversaries = parts["discriminators"].module if method.lam else None
        self.adversaries = adversaries if isinstance(adversaries, Discriminators) else None

    def adapted(self, target: Outputs) -> list[Tensor]:
        with self.run.autocast():
            found: list[Tensor] = self.adapters(features(self.run.target_module, target))
        return [one.float() for one in found]

    def away(self, adapted: Sequence[Tensor]) -> list[Tensor]:
        """The distances of the pairs that are matched."""
        return distances(_some(adapted, self.sets.matched), _some(self.sources, self.sets.matched))

    def transfer(self, adapted: Sequence[Tensor], *, names: Sequence[str] = ("fm", "gan")) -> dict[str, Tensor]:
        """beta L_fm and lam L_g, those that count, with frozen discriminators."""
        found = {}
        if self.method.beta and "fm" in names:
            found["fm"] = matching_loss([one.detach() for one in self.a], self.away(adapted))
        if self.adversaries is not None and "gan" in names:
            logits = self.adversaries.frozen(_some(adapted, self.sets.judged))
            found["gan"] = self.method.lam * generator_loss(logits, self.method.gan)
        return found

    def steps(self) -> Iterator[Update]:
        """One turn of B)."""
        both, beta = ("target", "adapters"), self.method.beta
        adapted = self.adapted(self.run.target(self.batch, draw=True))
        matched = self.transfer(adapted, names=["fm"])
        if matched and (self.adversaries is None or not self.method.fuse):
            yield Update(both, matched)
            matched = {}
        if self.adversaries is None:
            return
        if beta and not self.method.fuse:
            adapted = self.adapted(self.run.target(self.batch, draw=True))
        if self.method.gan == "grl":
            reversed_ = [reverse(one, self.method.lam) for one in adapted]
            yield Update((*both, "discriminators"), {**matched, "grl": self._discriminator_loss(reversed_)})
            return
        yield Update(("discriminators",), {"discriminator": self._discriminator_loss([f.detach() for f in adapted])})
        yield Update(both, {**matched, **self.transfer(adapted, names=["gan"])})

    def _discriminator_loss(self, adapted: Sequence[Tensor]) -> Tensor:
        assert self.adversaries is not None
        real, fake = (self.adversaries(_some(each, self.sets.judged)) for each in (self.sources, adapted))
        self.run.note("recognised", recognised(real.flatten(), fake.flatten()))
        return discriminator_loss(real, fake, self.method.gan)

    def look_ahead(self) -> Tensor:
        """J after T steps on beta L_fm + lam L_g, with the discriminators as they are, and one on J."""

        def against(adapted: Sequence[Tensor]) -> Tensor:
            return self.transfer(adapted, names=["gan"])["gan"]

        extra = against if self.adversaries is not None else None
        steps, matched = self.method.inner_steps, self.sets.matched
        return look_ahead(
            self.run, self.batch, self.adapters, self.sources, self.a, steps=steps, matched=matched, extra=extra
        )


def _some(each: Sequence[Tensor], numbers: Sequence[int]) -> list[Tensor]:
    return [each[number] for number in numbers]
