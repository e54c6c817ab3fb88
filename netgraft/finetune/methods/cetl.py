"""Two encoders, one of them the frozen source, that share a decoder: CETL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from netgraft.errors import UsageError
from netgraft.finetune.methods.kd import soft_divergence
from netgraft.finetune.protocol import Batch, Need, Outputs, Part, Penalty, Run, Update
from netgraft.finetune.toolbox.allocation import AllocationMemory, AllocationRule
from netgraft.finetune.toolbox.domains import check_labels
from netgraft.finetune.toolbox.generalized_fisher import flat, random_direction
from netgraft.finetune.toolbox.labels import check_one_class
from netgraft.finetune.toolbox.momentum import begin_momentum
from netgraft.finetune.toolbox.shared_decoder import DECODER, SOURCE_ADAPTER, TARGET_ADAPTER, SharedDecoder
from netgraft.finetune.toolbox.shared_decoder import decoder_modules as build_decoder
from netgraft.finetune.toolbox.terms import squared_distance
from netgraft.finetune.toolbox.transfer_bound import note_bound
from netgraft.finetune.toolbox.turns import Stages, StageUnit, stage_length

Config = Literal["f", "u", "e", "fi", "cetl", "coupled"]
S1, S2, S3 = 0, 1, 2


@dataclass(frozen=True)
class CoupledEndToEnd:
    """The source's and the target's features are decoded to images by one decoder, by turns with the task (CETL).

    T1 is the decoder, S the source, T2 the target. Three stages take turns (Algorithm 1) until their losses settle:
    S1  T1 on L_r^s = mean (T1 o S(x) - x)^2 + DWA2;
    S2  T2 on L_r^t = mean (T1 o T2(x) - T1 o S(x))^2, T1 on L_r^t + DWA1;
    S3  T2 on J + DWA3.
    DWA = sum_i strength/2 GFI_i (theta_i - theta*_i)^2 (Eq. 11), with theta* the weights when the stage that measured
    GFI ended: DWA1 after S1, DWA2 (of T1) and DWA3 (of T2) after S2. GFI_i (Eq. 10) is F_i of the task before, kept
    with probability p where RF_i >= u and 1 - p elsewhere; RF_i (Eq. 9) is that of L_r^s and L_r^t in T1, of L_r^t and
    J in T2. ``config``: f, S1 until it settles, then J + beta L_r^t (Eq. 3) with T1 frozen; u, the same with T1
    trained; e, the stages without DWA; fi, with GFI = F; cetl, all of it; coupled, alpha L_r^s + J + beta L_r^t in
    every step (Eq. 6).

    Chen, Zhang, Dong, "Coupled End-to-end Transfer Learning with Generalized Fisher Information", CVPR 2018. For
    knowledge distillation (Table 4) add ``soft_targets``; with --unlabelled ``reconstruct`` takes these images too,
    and with --source-data ``labels=source`` takes the source's labels: the domain adaptations of section 3.4.3. T1 is
    the mirror of the target, from its layers (``toolbox/mirror.py``), for the features of the last pair: --pairs
    SOURCE:TARGET takes others. Reconstructions of test images are saved as pictures.

    Departs from the paper: T1 o S(x) is a constant in L_r^t. Eq. 3 and Eq. 6 are divided by J's weight. 1x1
    convolutions bring both networks' features to the decoder's width, which the paper does not mention. How RF is
    estimated, over which batches and how F is scaled are ours (``toolbox/generalized_fisher.py``), and so are T1's
    first weights and optimizer, the length of a stage and when a loss has settled.
    In f and u S1 takes no more than half of the training. A stage of one step would end where DWA begins to draw: it is
    refused. --lambda multiplies L_r^t and the DWAs of S2 and S3; S1 trains T1 alone.
    """

    config: Config = field(default="cetl", metadata={"help": "f, u, e, fi, cetl of Table 2; coupled for Eq. 6"})
    stage_unit: StageUnit = field(
        default="epoch", metadata={"help": "of a stage's length; no stage is longer than a third of the training"}
    )
    stage_count: int = field(default=1, metadata={"help": "units that a stage lasts"})
    tolerance: float = field(default=1e-3, metadata={"help": "relative change of a stage's mean loss that has settled"})
    strength: float = field(default=1.0, metadata={"help": "lambda of DWA"})
    threshold: float = field(default=0.5, metadata={"help": "u: least relative Fisher information of shared weights"})
    probability: float = field(
        default=0.9, metadata={"help": "p: how probably a shared weight keeps its F; others 1 - p"}
    )
    fisher: Literal["loss", "output"] = field(
        default="loss", metadata={"help": "gradients of a batch's loss, or of its output in a random direction"}
    )
    fisher_batches: int = field(default=16, metadata={"help": "batches at the end of a stage that F is estimated from"})
    cap: float = field(default=10.0, metadata={"help": "largest F, in units of its mean; 0: no bound"})
    alpha: float = field(default=1.0, metadata={"help": "weight of L_r^s with coupled: lambda_1 / lambda_2 of Eq. 6"})
    beta: float = field(default=1.0, metadata={"help": "weight of L_r^t beside J: (1 - lambda) / lambda of Eq. 3"})
    soft_targets: float = field(default=0.0, metadata={"help": "weight of the source's predictions beside J, as in kd"})
    temperature: float = field(default=4.0, metadata={"help": "T of the soft targets"})
    reconstruct: Literal["data", "unlabelled", "both"] = field(
        default="data", metadata={"help": "the images that are reconstructed"}
    )
    labels: Literal["target", "source"] = field(default="target", metadata={"help": "the images whose labels J takes"})
    decoder_width: float = field(default=1.0, metadata={"help": "widths inside of T1 over those of the target"})
    decoder_lr: float = field(default=1e-3, metadata={"help": "Adam's learning rate of T1"})
    bound: bool = field(default=False, metadata={"help": "log both sides of Eq. 14; the source has the same classes"})

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_MODEL, Need.PAIRS})
    category: ClassVar[str] = "network"
    plain_when: ClassVar[dict[str, object]] = {"config": "coupled"}

    def __post_init__(self) -> None:
        if self.stage_count < 1 or self.fisher_batches < 1:
            raise ValueError("stage_count and fisher_batches are at least 1.")
        if self.regularised and self.stage_unit == "step" and self.stage_count == 1:
            raise ValueError("In a stage of one step DWA is 0: add --set stage_count=10, or take config=e.")
        if not 0 <= self.probability <= 1 or self.decoder_width <= 0 or self.temperature <= 0:
            raise ValueError("probability is from 0 to 1; decoder_width and temperature are above 0.")

    @property
    def regularised(self) -> bool:
        return self.config in ("fi", "cetl")

    @property
    def rule(self) -> AllocationRule:
        return AllocationRule(self.config == "cetl", self.threshold, self.probability, self.cap)

    @property
    def alternates(self) -> bool:
        """Whether the three stages take turns."""
        return self.config in ("e", "fi", "cetl")

    def parts(self, run: Run) -> Mapping[str, Part]:
        if self.soft_targets or self.bound:
            check_one_class(run, "Soft targets and the bound are of a softmax", "Leave out soft_targets and bound.")
        built = build_decoder(run, self.decoder_width)
        found = {"target": Part(run.target_module)}
        found |= {name: Part(m, lr=self.decoder_lr, opt="adam", weight_decay=0.0) for name, m in built.items()}
        found["stages"] = Part(Stages(3))
        if self.regularised:
            shared, own = (flat(trained(m)).numel() for m in (built[DECODER], run.target_module))
            found["memory"] = Part(AllocationMemory(shared, own))
        return found

    def stage(self, run: Run) -> str:
        if self.config == "coupled":
            return "all losses"
        if not self.alternates:
            return "S1, until it has settled" if run.step < run.steps // 2 else "task and L_r^t"
        length = stage_length(run, self.stage_unit, self.stage_count, 3)
        stage, place = run.step // length % 3, run.step % length
        measures = self.regularised and stage != S3 and place >= length - self.fisher_batches
        return f"S{stage + 1}{', measuring' if measures else ''}, until all have settled"

    def epoch(self, run: Run, batches: Iterable[Batch], parts: Mapping[str, Part]) -> Iterator[Update]:
        if self.config != "coupled":  # some steps of the target leave its classifier alone
            begin_momentum(run.optimizer("target"))
        stages = parts["stages"].module
        assert isinstance(stages, Stages)
        length = stage_length(run, self.stage_unit, self.stage_count, 3)
        done = stages.done() if self.alternates else stages.done(S1)
        for batch in batches:
            turn = _Turn(self, run, batch, parts, run.step % length, length)
            if self.config == "coupled":
                yield turn.joint(source=True)
            elif not self.alternates and (done or run.step >= run.steps // 2):
                yield turn.joint(source=False)
            elif not (self.alternates and done):
                stage = run.step // length % 3 if self.alternates else S1
                run.note("stage", float(stage + 1))
                updates = (turn.first, turn.second, turn.third)[stage]
                yield updates()
                turn.end(stage)
                if turn.is_last:
                    stages.end_turn(stage, self.tolerance)
                    done = stages.done() if self.alternates else stages.done(S1)

    def pictures(self, run: Run, images: Tensor, parts: Mapping[str, Part]) -> Mapping[str, Tensor]:
        """Test images, and what T1 makes of the source's and of the target's features of them."""
        decoder = SharedDecoder(run, parts)
        by_target = decoder.of_target(run.target(images, train=False))
        return {"x": images, "T1 o S(x)": decoder.of_source(images), "T1 o T2(x)": by_target}


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


class _Turn:
    """One batch in its stage."""

    def __init__(
        self, method: CoupledEndToEnd, run: Run, batch: Batch, parts: Mapping[str, Part], place: int, length: int
    ) -> None:
        self.method, self.run, self.batch, self.parts = method, run, batch, parts
        self.measures = place >= length - method.fisher_batches
        self.begins = place == max(0, length - method.fisher_batches)  # to measure
        self.is_last = place == length - 1
        self.first_cycle = run.step < 3 * length
        self.decoder = SharedDecoder(run, parts)
        self.target = trained(run.target_module)
        memory = parts["memory"].module if method.regularised else None
        assert memory is None or isinstance(memory, AllocationMemory)
        self.memory = memory
        self.loss: Tensor | None = None

    # ------------------------------------------------------------------------------------------------------- stages

    def first(self) -> Update:
        """S1: T1 reconstructs the images from the source's features."""
        images, outputs, loss = self._reconstruct()
        if self.memory is not None and self.measures:
            first = self._gradient(loss, outputs, images, self.decoder.parameters, "recons1")
            second = None
            if self.method.config == "cetl":
                with torch.no_grad():
                    seen = [self.run.target(one, stats=False) for one in images]
                again = [self.decoder.of_target(one) for one in seen]
                other = _mean([squared_distance(a, b.detach()) for a, b in zip(again, outputs, strict=True)])
                second = self._gradient(other, again, images, self.decoder.parameters, "recons2")
            self.memory.of_decoder.add(first, second, anew=self.begins)
        self.loss = loss
        penalties = {} if self.first_cycle else self._penalty("dwa2", self.decoder.parameters)
        return Update((DECODER, SOURCE_ADAPTER), {"recons1": loss}, penalties)

    def second(self) -> Update:
        """S2: T2 and T1 reconstruct what T1 makes of the source's features."""
        both_tasks = self.measures and self.method.config == "cetl"
        images, wanted, source_loss = self._reconstruct(graph=both_tasks)
        seen = [self.run.target(one, stats=one is images[0]) for one in images]
        outputs = [self.decoder.of_target(one) for one in seen]
        loss = _mean([squared_distance(a, b.detach()) for a, b in zip(outputs, wanted, strict=True)])
        if self.memory is not None and self.measures:
            both = [*self.decoder.parameters, *self.target]
            found = self._gradient(loss, outputs, images, both, "recons2")
            of_decoder, of_target = found.split([flat(self.decoder.parameters).numel(), flat(self.target).numel()])
            other = task = None
            if both_tasks:
                other = self._gradient(source_loss, wanted, images, self.decoder.parameters, "recons1")
                labelled = self._labelled()
                known = seen[0] if labelled is images[0] else self.run.target(labelled, stats=False)
                task = self._gradient(self.run.task(known, labelled), [known.logits], [labelled], self.target, "task")
            self.memory.of_decoder.add(of_decoder, other, anew=self.begins)
            self.memory.of_target.add(of_target, task, anew=self.begins)
        self.loss = loss
        penalties = self._penalty("dwa1", self.decoder.parameters)
        return Update(("target", DECODER, TARGET_ADAPTER), {"recons2": loss}, penalties)

    def third(self) -> Update:
        """S3: T2 learns the task."""
        labelled = self._labelled()
        seen = self.run.target(labelled)
        losses = self._task(labelled, seen)
        self.loss = losses["task"]
        if self.method.bound:
            with torch.no_grad():
                here = seen if labelled is self.batch else self.run.target(self.batch, stats=False)
                self._note_bound(here, self.decoder.of_source(self.batch), self.decoder.of_target(here))
        return Update(("target",), losses, self._penalty("dwa3", self.target))

    def joint(self, *, source: bool) -> Update:
        """Eq. 3; with ``source`` Eq. 6."""
        images, wanted, source_loss = self._reconstruct(graph=source)
        labelled = self._labelled()
        seen = self.run.target(labelled)
        owner = labelled if labelled is self.batch else images[0]  # of BatchNorm's statistics: a batch of the target's
        passes = [seen if one is labelled else self.run.target(one, stats=one is owner) for one in images]
        outputs = [self.decoder.of_target(one) for one in passes]
        loss = _mean([squared_distance(a, b.detach()) for a, b in zip(outputs, wanted, strict=True)])
        losses = {**self._task(labelled, seen), "recons2": self.method.beta * loss}
        if source:
            losses["recons1"] = self.method.alpha * source_loss
        if self.method.bound and images[0] is self.batch:
            self._note_bound(passes[0], wanted[0], outputs[0])
        trains = {"f": (), "u": (DECODER,)}.get(self.method.config, (DECODER, SOURCE_ADAPTER))
        return Update(("target", TARGET_ADAPTER, *trains), losses)

    @torch.no_grad()
    def end(self, stage: int) -> None:
        """After the step: keep the loss, and at the end of the stage what the next ones are held to."""
        stages = self.parts["stages"].module
        assert isinstance(stages, Stages)
        assert self.loss is not None
        stages.add(stage, self.run.reduce([self.loss.detach()])[0])
        if self.memory is None or not self.is_last or stage == S3:
            return
        memory, rule = self.memory, self.method.rule
        memory.keep(self.run, "dwa1" if stage == S1 else "dwa2", memory.of_decoder, self.decoder.parameters, rule)
        if stage == S2:
            memory.keep(self.run, "dwa3", memory.of_target, self.target, rule)

    # ------------------------------------------------------------------------------------------------ passes, losses

    def _reconstruct(self, *, graph: bool = True) -> tuple[list[Batch], list[Tensor], Tensor]:
        """The batches that are reconstructed, what T1 makes of the source's features of them, and L_r^s."""
        others = [] if self.batch.unlabelled is None else [self.batch.unlabelled]
        images = {"data": [self.batch], "unlabelled": others, "both": [self.batch, *others]}[self.method.reconstruct]
        if self.method.reconstruct != "data" and not others:
            raise UsageError("There are no images without labels.", where="reconstruct", hint="Add --unlabelled NAME")
        with torch.set_grad_enabled(graph):
            outputs = [self.decoder.of_source(one) for one in images]
            return images, outputs, _mean([squared_distance(a, b.x) for a, b in zip(outputs, images, strict=True)])

    def _labelled(self) -> Batch:
        """The images whose labels count."""
        if self.method.labels == "target":
            return self.batch
        if self.batch.source is None:
            raise UsageError("labels=source takes labels of source images.", hint="Add --source-data NAME")
        check_labels(self.run, self.batch.source)
        return self.batch.source

    def _task(self, labelled: Batch, seen: Outputs) -> dict[str, Tensor]:
        losses = {"task": self.run.task(seen, labelled)}
        if self.method.soft_targets:
            source = self._source_logits(labelled, seen)
            losses["kd"] = self.method.soft_targets * soft_divergence(seen.logits, source, self.method.temperature)
        return losses

    def _source_logits(self, batch: Batch, seen: Outputs) -> Tensor:
        logits = self.run.source(batch).logits
        if logits.shape != seen.logits.shape:
            what = "soft_targets and bound compare the predictions of source and target: their classes differ."
            where = f"{logits.shape[1]} and {seen.logits.shape[1]}"
            raise UsageError(what, where=where, hint="Take a source of the same classes.")
        return logits

    def _note_bound(self, seen: Outputs, by_source: Tensor, by_target: Tensor) -> None:
        note_bound(self.run, self.batch, seen.logits, self._source_logits(self.batch, seen), by_source, by_target)

    # -------------------------------------------------------------------------------------------------- Fisher, DWA

    def _gradient(
        self, loss: Tensor, outputs: Sequence[Tensor], images: Sequence[Batch], wrt: Sequence[Tensor], name: str
    ) -> Tensor:
        """The gradient, as one vector, of the loss or of a random direction of the outputs."""
        scalar = random_direction(self.run, outputs, images, name) if self.method.fisher == "output" else loss
        return flat(self.run.grad(scalar, list(wrt), keep=True))

    def _penalty(self, name: str, parameters: Sequence[Tensor]) -> dict[str, Penalty]:
        memory = self.memory
        return {} if memory is None else {name: memory.dwa[name].penalty(parameters, self.method.strength)}


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()
