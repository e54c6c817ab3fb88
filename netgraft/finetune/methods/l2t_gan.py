"""Feature matching and adversaries of features, by turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from netgraft.errors import UsageError
from netgraft.finetune.protocol import Batch, Need, Outputs, Part, Run, Update
from netgraft.finetune.toolbox.adapters import features
from netgraft.finetune.toolbox.adversary import recognised, reverse
from netgraft.finetune.toolbox.bilevel.discriminator import Discriminators, Gan, discriminator_loss, generator_loss
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
from netgraft.finetune.toolbox.mmd import gather, linear_mmd


@dataclass(frozen=True)
class L2TGAN:
    """Features match the source's and pass for them before discriminators; channels' weights learn (L2T-GAN).

    L_s = J + lam L_g + beta L_fm + gamma L_MMD (Eq. 6), with sums over pairs of means over samples and places:
    L_fm = sum_c w_c (phi(f^T) - f^S)_c^2 (Eq. 4), L_g = -log D(phi(f^T)), L_MMD = |mean S(I_s) - mean T(I_t)|^2.
    For each batch (Algorithm 1): A) a step on L_s. B) T times: one on beta L_fm, one of the discriminators on
    -log D(f^S) - log(1 - D(phi(f^T))), one on lam L_g. C) a step on J. D) a step of the weights w.

    The paper of L2T-GAN: Eqs. 1-6, Algorithm 1, and Figure 3b (``ablation``). It does not say what T, lam, beta and the
    discriminators are: these are ours.

    Departs from the paper: Eq. 2's log(-D) does not exist; the loss that does not saturate is taken (``gan``). D sees
    features, as phi(f^T) does, and its "real" ones are the source's of the target's batch: only L_MMD needs source
    images. w descends J after a look-ahead, as in L2T-ww; Algorithm 1's descent of L_fm (``meta=first-order``) would
    put all weight on the channel that matches best, and stops at a floor of entropy. The look-ahead starts after A)
    and keeps the discriminators as they are there. B) takes L_fm and L_g in one step from one pass (``fuse``).
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

    def parts(self, run: Run) -> Mapping[str, Part]:
        pairs = pairs_to_match(run, self.match)
        found = {"target": Part(run.target_module), "adapters": Part(Adapters(pairs))}
        weights, adversaries = self._weights(pairs), Discriminators(pairs)
        if self.learns:
            found["weights"] = Part(weights, lr=self.meta_lr, opt="adam", weight_decay=1e-4)
        if self.lam:
            betas = {"betas": (0.5, 0.999)}
            found["discriminators"] = Part(adversaries, lr=self.gan_lr, opt="adam", weight_decay=0.0, options=betas)
        return found

    def _weights(self, pairs: Sequence[object]) -> MatchingWeights:
        return MatchingWeights(pairs, networks=self.weights == "network", losses=False)  # type: ignore[arg-type]

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
            learning = self.learns and run.step % self.meta_every == 0
            meta = turn.look_ahead() if learning and self.meta == "bilevel" else None
            saved = run.snapshot("target", "adapters") if self.inner == "rollback" else None
            for _ in range(self.inner_steps):
                yield from turn.steps()
            target = run.target(batch, draw=True)
            if learning and self.meta == "first-order":
                with torch.no_grad():
                    away = distances(turn.adapted(target), turn.sources)
                meta = first_order_loss(turn.w, away, self.entropy_floor)
            yield Update(("target",), {"task": run.task(target, batch)})
            if saved is not None:
                run.restore(saved)
            if meta is not None:
                yield Update(("weights",), {"meta": meta})
            note(run, turn.w, turn.ones)

    def _mmd(self, run: Run, batch: Batch, target: Outputs) -> dict[str, Tensor]:
        """gamma |mean S(I_s) - mean T(I_t)|^2 over all processes' images; with ``ddc`` T(I_s)."""
        if not self.gamma:
            return {}
        if batch.source is None:
            raise UsageError("The MMD compares source images with the target's.", hint="Add --source-data NAME")
        source = run.source(batch.source) if self.mmd_mode == "paper" else run.target(batch.source, draw=True)
        if source.logits.shape[1] != target.logits.shape[1]:
            where = f"{source.logits.shape[1]} and {target.logits.shape[1]}"
            raise UsageError("The MMD needs a source of the target's classes.", where=where, hint="Add --set gamma=0")
        of_source, of_target = gather(run.gather, [source.logits, target.logits])
        return {"mmd": self.gamma * linear_mmd(of_source, of_target)}


class _Turn:
    """One batch: the source's features, the channels' weights, and the losses between them and the target's."""

    def __init__(self, method: L2TGAN, run: Run, batch: Batch, parts: Mapping[str, Part]) -> None:
        self.method, self.run, self.batch = method, run, batch
        self.pairs = pairs_to_match(run, method.match)
        self.adapters = parts["adapters"].module
        of_source = features(run.source_module, run.source(batch, logits=False))
        self.sources = source_features(self.pairs, of_source)
        seen = [pooled(of_source[pair.source]) for pair in self.pairs]
        weights = parts["weights"].module if method.learns else method._weights(self.pairs).to(run.device)
        self.w, self.ones = weights(seen)
        self.a = coefficients(self.w, self.ones, method.beta)
        adversaries = parts["discriminators"].module if method.lam else None
        self.adversaries = adversaries if isinstance(adversaries, Discriminators) else None

    def adapted(self, target: Outputs) -> list[Tensor]:
        with self.run.autocast():
            found: list[Tensor] = self.adapters(features(self.run.target_module, target))
        return [one.float() for one in found]

    def transfer(self, adapted: Sequence[Tensor], *, names: Sequence[str] = ("fm", "gan")) -> dict[str, Tensor]:
        """beta L_fm and lam L_g, those that count, with frozen discriminators."""
        found = {}
        if self.method.beta and "fm" in names:
            found["fm"] = matching_loss([one.detach() for one in self.a], distances(adapted, self.sources))
        if self.adversaries is not None and "gan" in names:
            found["gan"] = self.method.lam * generator_loss(self.adversaries.frozen(adapted), self.method.gan)
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
        real, fake = self.adversaries(self.sources), self.adversaries(adapted)
        self.run.note("recognised", recognised(real.flatten(), fake.flatten()))
        return discriminator_loss(real, fake, self.method.gan)

    def look_ahead(self) -> Tensor:
        """J after T steps on beta L_fm + lam L_g, with the discriminators as they are, and one on J."""

        def against(adapted: Sequence[Tensor]) -> Tensor:
            return self.transfer(adapted, names=["gan"])["gan"]

        extra = against if self.adversaries is not None else None
        steps = self.method.inner_steps
        return look_ahead(self.run, self.batch, self.adapters, self.sources, self.a, steps=steps, extra=extra)
