from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netgraft.architecture.cost import distil_images
from netgraft.architecture.graph import LayerGraph
from netgraft.data.mixing import Mixing
from netgraft.errors import NonFiniteWeights, UsageError
from netgraft.models.batch_norm import batch_norms, recalibrating
from netgraft.passes._drawing import Choice, choice_lines, draw
from netgraft.passes._learner import Learner
from netgraft.passes.protocol import Stage
from netgraft.plan import DISTILLED, Pairing

HELD_OUT = 256
EVERY = 0.5
"""Seconds between two lines of progress."""
FULL = 0.1
"""The share of the steps that are on images of full size, where the others are on smaller ones."""
CLOSING = 10
"""Where steps are cut short, one for so many that were taken brings the learning rate to zero."""


@dataclass(frozen=True)
class Distil:
    """Train the whole target for a few hundred steps to answer synthetic images as the source does: no data, no labels.

    OPERATORS part 4; the loss is T^2 KL(source || target) of Hinton et al., arXiv:1503.02531. A temporary head gives
    the target the source's classes; it starts from the source's classifier and is dropped at the end. Dropout is off
    and batch norms use the statistics of their batch, which are re-estimated when all is done.
    """

    steps: int = field(default=300, metadata={"help": "gradient steps"})
    images: int = field(default=4096, metadata={"help": "different images; fewer where they are large"})
    batch: int = field(default=64, metadata={"help": "images per step"})
    lr: float = field(default=2e-3, metadata={"help": "peak learning rate of Adam, reached after a tenth of the steps"})
    temperature: float = field(default=2.0, metadata={"help": "softens the source's answers"})
    head: Literal["temporary", "keep"] = field(
        default="temporary", metadata={"help": "keep: the target's own head learns the source's classes and stays"}
    )

    spare: Literal["nothing", "copied"] = field(
        default="nothing", metadata={"help": "copied: what was copied as it is stays so, statistics included"}
    )
    side: int | None = field(
        default=None,
        metadata={
            "help": f"pixels that images are shrunk to for all but the last {FULL:.0%} of the steps, of convolutional "
            "networks; none: full size"
        },
    )
    mixing: Mixing = field(
        default="none",
        metadata={
            "help": "mix half of the images with the others before the source is asked: a rectangle of another one "
            "(cutmix), a blend (mixup), or each in turn (both)"
        },
    )
    choose: Choice = field(
        default="any",
        metadata={"help": "statistics: of more images take those nearest to what the source's batch norms remember"},
    )
    candidates: int = field(default=3, metadata={"help": "images to choose from for each that is taken (choose)"})
    also: tuple[str, ...] = field(default=(), metadata={"help": "layers that are trained even so"})
    cut: int | None = field(
        default=None,
        metadata={"help": f"after so many steps the rate falls to 0, within a {CLOSING}th as many; none: by schedule"},
    )

    fate = DISTILLED

    def __post_init__(self) -> None:
        if min(self.steps, self.images) < 1 or not (self.lr > 0 and self.temperature > 0):
            raise ValueError("steps, images, lr and temperature must be positive")
        if self.cut is not None and self.cut < 1:
            raise ValueError("cut must be 1 or more")
        if self.candidates < 2:
            raise ValueError("candidates must be 2 or more: of one there is no choice")
        if self.batch < 2:
            raise ValueError("batch must be 2 or more: one image has no variance")

    def touches(self, source: LayerGraph, target: LayerGraph, pairing: Pairing) -> tuple[str, ...]:  # noqa: ARG002
        """Everything that the forward pass uses, but for the head, unless that is kept, and what the user skips."""
        spared = () if self.head == "keep" else target.head_names
        keys: dict[str, None] = {}
        for layer in target.layers.values():
            for slot in layer.tensors.values():
                counted = slot.buffer and "num_batches_tracked" in layer.tensors
                trained = not (slot.buffer or layer.name in pairing.skipped) or counted
                if trained and layer.name not in spared:
                    keys.update(dict.fromkeys(slot.keys))
        for layer in target.heads():  # tied to something else, it changes with that
            for slot in layer.tensors.values():
                if self.head != "keep":
                    for key in slot.keys:
                        keys.pop(key, None)
        return tuple(keys)

    def spared(self, target: LayerGraph, copied: Collection[str]) -> frozenset[str]:
        """What was copied, without the layers named by ``also``, if it is told so."""
        if self.spare == "nothing":
            return frozenset()
        trained = {slot.key for name in self.also for slot in target.layers[name].tensors.values()}
        return frozenset(copied) - trained

    def __call__(self, stage: Stage) -> dict[str, Any]:
        """Train the stage's target; steps, loss, and how often it agrees with the source on images it has not seen."""
        lessons = [self._lesson(stage, 1 if self.side is None else FULL, HELD_OUT, seed=1)]
        if self.side is not None:
            lessons.insert(0, self._lesson(stage.shrunk(self.side), 1, 0, seed=11))
        last = lessons[-1]
        held_out = len(last.images) - last.seen
        learner = Learner(stage, last.answers.shape[1], self.head)
        unseen = last.images[last.seen :], last.answers[last.seen :]
        with learner.prepared() as net:
            before = _agreement(stage, net, *unseen, self.batch)
            losses, cut = self._train(stage, net, lessons)
            with recalibrating(net, self._copied_norms(stage)), torch.no_grad():
                shown = last.images[: min(last.seen, 512)]
                for part in shown.tensor_split(-(-len(shown) // self.batch)):  # of equal size: no batch of one image
                    net(stage.shown(part, stage.target))
            after = _agreement(stage, net, *unseen, self.batch)
        return {
            "images": sum(each.seen for each in lessons),
            "steps": self.steps if cut is None else min(cut + closing(cut), self.steps),
            "cut": cut,
            "loss": {"first": round(losses[0], 4), "last": round(losses[-1], 4)},
            "agreement": {"before": round(before, 3), "after": round(after, 3), "images": held_out},
            "head": learner.what,
            **({"side": self.side} if self.side is not None else {}),
            **lessons[0].report,
        }

    def _lesson(self, stage: Stage, share: float, held_out: int, seed: int) -> _Lesson:
        """Images and the source's answers to them: a share of those that are wanted, and some that are held out."""
        count = max(round(share * distil_images(stage.source.image_size, self.images)), self.batch)
        held_out = min(held_out, count)
        images, report = draw(
            stage,
            count,
            held_out,
            seed,
            mixing=self.mixing,
            choose=self.choose,
            candidates=self.candidates,
            batch=self.batch,
        )
        stage.progress(f"asking {stage.source.model.name} about {len(images)} images")
        return _Lesson(stage, images, _answers(stage, images, self.batch), count, report)

    @staticmethod
    def lines(report: Mapping[str, Any]) -> Iterator[str]:
        """How often the target agrees with the source on images it has not seen."""
        agreement = report["agreement"]
        before, after = (100 * agreement[when] for when in ("before", "after"))
        cut = " (cut short)" if report.get("cut") else ""
        yield (
            f"distil: {report['steps']} steps{cut} on {report['images']} images; agrees with the source on "
            f"{after:.0f} % of {agreement['images']} others ({before:.0f} % before)"
        )
        yield from choice_lines(report)

    def _train(self, stage: Stage, net: nn.Module, lessons: Sequence[_Lesson]) -> tuple[list[float], int | None]:
        """Losses on the way, and the step at which the end began, if that was before its time."""
        skipped = {
            slot.key for name in stage.plan.pairing.skipped for slot in stage.target.graph.layers[name].tensors.values()
        }
        left = skipped | self.spared(stage.target.graph, stage.plan.copied)
        parameters = [p for key, p in net.named_parameters() if p.is_floating_point() and key not in left]
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(parameters, lr=self.lr)
        warm = max(0.1, 2 / (self.steps + 1))  # at least one step
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, self.steps + 1, pct_start=warm)
        generator = torch.Generator().manual_seed(stage.seed)
        left_norms = self._copied_norms(stage)
        norms = [m for name, m in batch_norms(net).items() if name not in left_norms]
        for norm in norms:
            norm.train()
        losses: list[float] = []
        total, said = torch.zeros((), device=stage.device), 0.0
        began, cut, last = time.monotonic(), self.cut, self.steps
        low = torch.autocast(stage.device.type, torch.bfloat16, enabled=stage.device.type == "cuda")
        with torch.enable_grad():
            for step in range(self.steps):
                if cut is None and step and stage.enough():
                    cut = step
                if cut is not None and step >= cut:
                    last = min(cut + closing(cut), self.steps)
                    if step >= last:
                        break
                    optimizer.param_groups[0]["lr"] *= (last - step) / (last - step + 1)
                lesson = lessons[-1 if (cut is not None and step >= cut) or step >= (1 - FULL) * self.steps else 0]
                chosen = torch.randint(lesson.seen, (self.batch,), generator=generator)
                inputs = stage.shown(lesson.images[chosen], lesson.stage.target)
                with low:
                    given = net(inputs)
                loss = self._loss(given.float(), lesson.answers[chosen].to(stage.device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if cut is None or step < cut:
                    schedule.step()
                total = total + loss.detach()
                now = time.monotonic()
                if step in (0, last - 1) or now - said > EVERY:
                    losses.append(loss.item())
                    _check_finite(losses[-1], step, stage)
                    rest = (now - began) / (step + 1) * (last - step - 1)
                    stage.progress(
                        f"distilling: step {step + 1} of {last}, loss {losses[-1]:.3f}, about {rest:.0f} s left"
                    )
                    said = now
        _check_finite(float(total), self.steps, stage)
        for norm in norms:
            norm.eval()
        for parameter in parameters:
            parameter.requires_grad_(False)
        return losses, cut

    def _copied_norms(self, stage: Stage) -> frozenset[str]:
        """Batch norms whose statistics are the source's and stay so."""
        end, spared = ".running_mean", self.spared(stage.target.graph, stage.plan.copied)
        return frozenset(key.removesuffix(end) for key in spared if key.endswith(end))

    def _loss(self, given: Tensor, wanted: Tensor) -> Tensor:
        """T^2 KL(softmax(wanted / T) || softmax(given / T)), the mean over images: [batch, classes] each."""
        t = self.temperature
        return F.kl_div(F.log_softmax(given / t, 1), F.softmax(wanted / t, 1), reduction="batchmean") * t * t


def closing(cut: int) -> int:
    """How many steps bring the learning rate to zero after so many."""
    return max(cut // CLOSING, 1)


def _check_finite(loss: float, step: int, stage: Stage) -> None:
    if not math.isfinite(loss):
        raise NonFiniteWeights(
            f"Distilling {stage.target.model.name} diverged: the loss is {loss} after {step} steps.",
            hint="Try a smaller learning rate, or --recipe refit, which takes no steps.",
        )


class _Lesson(NamedTuple):
    """What is learned from: images at one size, and what the source says to them."""

    stage: Stage  # at that size
    images: Tensor
    answers: Tensor
    seen: int  # how many of them are learned from: the others are held out
    report: Mapping[str, Any]


def _batches(stage: Stage, images: Tensor, size: int) -> Iterator[Tensor]:
    """Images as the target is shown them."""
    for part in images.split(size):
        yield stage.shown(part, stage.target)


def _answers(stage: Stage, images: Tensor, size: int) -> Tensor:
    """The source's logits, [count, classes], on the CPU."""
    found = []
    with torch.no_grad():
        for part in images.split(size):
            answer = stage.source.module(stage.shown(part, stage.source))
            if not isinstance(answer, Tensor) or answer.dim() != 2 or answer.shape[1] < 2:
                shape = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
                raise UsageError(
                    f"{stage.source.model.name} does not answer with a score per class.",
                    where=f"its output is {shape}",
                    hint="Distillation needs a source with a classifier; --recipe refit does not.",
                )
            found.append(answer.float().cpu())
    return torch.cat(found)


@torch.no_grad()
def _agreement(stage: Stage, net: nn.Module, images: Tensor, answers: Tensor, size: int) -> float:
    """Share of the images that both give the same class first."""
    given = torch.cat([net(batch).argmax(1).cpu() for batch in _batches(stage, images, size)])
    return float((given == answers.argmax(1)).double().mean())
