"""Training by a hint from the middle of the source, and then by its answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from netgraft.finetune.protocol import Batch, FeaturePair, Need, Part, Run, Update
from netgraft.finetune.toolbox.adapters import check_places, features, pairs_of
from netgraft.finetune.toolbox.labels import check_one_class
from netgraft.finetune.toolbox.momentum import begin_momentum
from netgraft.finetune.toolbox.regressor import Regressor
from netgraft.finetune.toolbox.stages import check_stage
from netgraft.finetune.toolbox.terms import soft_cross_entropy, squared_distance


@dataclass(frozen=True)
class FitNet:
    """A layer in the middle learns to predict one of the source's, then all layers the answers (FitNets).

    Stage 1, ``hint_epochs`` long: L = 1/2 mean (r(v_g(x)) - u_h(x))^2 trains the regressor r and the layers up to the
    guided one, v_g; no other runs. Stage 2: L = J + kd H(softmax(z_S / T), softmax(z / T)), a mean over samples, trains
    all of them; kd goes linearly from its start to ``kd_last`` in the last epoch.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015. r is a convolution whose
    kernel makes the maps fit, with BatchNorm, and with ReLU where the hint u_h, which is looked at in one batch before
    the training, is nowhere negative: without one in front of it no ReLU could match it. The hint and the guided layer
    are the pair in the middle: one of your own by --pairs SOURCE:TARGET. Sources with other classes: --method fm with
    hint_epochs and kd=0.

    Departs from the paper: a mean in place of a sum over the map. Where one size divides the other r has a stride, as
    in RepDistiller, not the larger kernel that fits without. One optimizer and one schedule of the learning rate go on
    through both stages. The paper begins from random weights: leave out --init for that.
    """

    hint_epochs: int | None = field(
        default=None, metadata={"help": "epochs of the first stage; none: half of --epochs, the rest is the second's"}
    )
    kd: float = field(default=4.0, metadata={"help": "weight of the source's answers at the start of stage 2"})
    kd_last: float = field(default=1.0, metadata={"help": "the same in the last epoch"})
    temperature: float = field(default=3.0, metadata={"help": "T: how soft the answers are when compared"})

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_MODEL, Need.PAIRS, Need.SAME_CLASSES})
    category: ClassVar[str] = "network"
    plain_when: ClassVar[dict[str, object]] = {"hint_epochs": 0}

    def __post_init__(self) -> None:
        if (self.hint_epochs or 0) < 0 or self.kd < 0 or self.kd_last < 0:
            raise ValueError("hint_epochs, kd and kd_last are at least 0.")
        if self.temperature <= 0:
            raise ValueError("temperature is above 0.")

    def parts(self, run: Run) -> Mapping[str, Part]:
        check_one_class(run, "The source's answers are a softmax", "Type --method fm --set hint_epochs=5 --set kd=0.")
        check_stage(run, "hint_epochs", self._hint_epochs(run))
        pair = _middle(run)
        check_places([pair])
        return {"target": Part(run.target_module), "regressor": Part(Regressor(pair))}

    def prepare(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> None:
        """See whether the hint is behind a ReLU."""
        regressor = parts["regressor"].module
        assert isinstance(regressor, Regressor)
        hint = run.source(next(iter(batches)), logits=False).at[_middle(run).source]
        regressor.rectified.copy_(run.gather(hint.min()[None]).min() >= 0)

    def stage(self, run: Run) -> str:
        return "hints" if run.epoch < self._hint_epochs(run) else "answers"

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        first = self._hint_epochs(run)
        if first:
            begin_momentum(run.optimizer("target"))
        hints = self.stage(run) == "hints"
        yield from self._hints(run, batches, parts) if hints else self._answers(run, batches, first)

    def _hints(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        pair, regressor = _middle(run), parts["regressor"].module
        for batch in batches:
            guided = features(run.target_module, run.target(batch, until=pair.target))[pair.target]
            hint = features(run.source_module, run.source(batch, logits=False))[pair.source]
            with run.autocast():
                predicted = regressor(guided, run.gather)
            yield Update(("target", "regressor"), {"hint": squared_distance(predicted, hint) / 2})

    def _answers(self, run: Run, batches: Iterable[Batch], first: int) -> Iterator[Update]:
        done = (run.epoch - first) / max(run.epochs - first - 1, 1)
        weight = self.kd + (self.kd_last - self.kd) * done
        for batch in batches:
            target, source = run.target(batch), run.source(batch)
            distance = soft_cross_entropy(target.logits, source.logits, self.temperature)
            yield Update(("target",), {"task": run.task(target, batch), "kd": weight * distance})

    def _hint_epochs(self, run: Run) -> int:
        return run.epochs // 2 if self.hint_epochs is None else self.hint_epochs


def _middle(run: Run) -> FeaturePair:
    pairs = pairs_of(run)
    return pairs[(len(pairs) - 1) // 2]
