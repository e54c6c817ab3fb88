"""Images of two domains through one network: one pass of both, their features, and the task's loss.

The target domain is that of ``--data``, or of ``--unlabelled`` where it is given; the source domain is that of
``--source-data``, with labels, and the same classes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netgraft.errors import UsageError
from netgraft.finetune.protocol import Batch, Need, Outputs, Run
from netgraft.finetune.toolbox.bottleneck import Bottleneck, inserted
from netgraft.finetune.toolbox.taps import first_tensor, submodule
from netgraft.models.running import hearing_inputs, hearing_outputs

FEATURES, LOGITS = "features", "logits"
"""Names of layers beside module paths: what the classifier reads, and what it puts out."""

INPUT = "input of "
"""Before a module path: what this layer reads, instead of what it puts out."""

Labels = Literal["source", "target", "both"]
Statistics = Literal["each", "joint"]


class Sides(NamedTuple):
    """What both domains' images gave, layer by layer: ``[B, width]``; and the loss on those with labels."""

    source: Mapping[str, Tensor]
    target: Mapping[str, Tensor]
    task: Tensor
    own: Tensor | None = None  # logits [B, K] of the images of --data; None where their labels are not learnt


@dataclass(frozen=True)
class DomainAdaptation:
    """What methods between two domains have in common."""

    labels: Labels = field(default="source", metadata={"help": "the images whose labels the task's loss takes"})
    norm: Statistics = field(
        default="each",
        metadata={"help": "BatchNorm by each domain's own statistics (the target's are kept), or by those of both"},
    )

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SOURCE_DATA})
    plain_when: ClassVar[None] = None  # the source's images are in the same pass

    def sides(
        self,
        run: Run,
        batch: Batch,
        layers: Sequence[str] = (FEATURES,),
        *,
        bottleneck: Bottleneck | None = None,
        place: str = FEATURES,
        stats: bool = True,
    ) -> Sides:
        """One pass of all images. Maps and tokens are averaged over places.

        With a bottleneck before the layer ``place``, the classifier by default, ``features`` are those of the
        bottleneck. ``stats`` says whether the pass is the training's own.
        """
        source_batch = batch.source
        assert source_batch is not None, "Need.SOURCE_DATA"
        check_labels(run, source_batch)
        target_batches = [batch] if batch.unlabelled is None else [batch.unlabelled]
        if batch.unlabelled is not None and self.labels != "source":
            target_batches.append(batch)
        sizes = [sum(len(b.x) for b in target_batches), len(source_batch.x)]
        groups = sizes if self.norm == "each" else sizes[:0]
        net, at = run.target_module, layer_of(run, place)
        with (
            inserted(submodule(net, at), bottleneck) as narrow,
            listening(net, head_of(run), layers) as found,
            statistics_of(net, groups),
        ):
            seen = run.target(torch.cat([b.x for b in (*target_batches, source_batch)]), stats=stats)
        found[LOGITS] = seen.logits
        if bottleneck is not None:
            found[FEATURES] = narrow[0].float()
        compared, end = len(target_batches[0].x), sizes[0]  # the target domain's images stand before the source's
        source = {name: pooled(found[name][end:]) for name in layers}
        target = {name: pooled(found[name][:compared]) for name in layers}
        labelled, own = [], None
        if self.labels != "target":
            labelled.append((seen.logits[end:], source_batch))
        if self.labels != "source":
            own = seen.logits[end - len(batch.x) : end]
            labelled.append((own, batch))
        return Sides(source, target, _task(run, labelled), own)


def _task(run: Run, labelled: Sequence[tuple[Tensor, Batch]]) -> Tensor:
    """The mean cross-entropy over all images that have labels."""
    logits = torch.cat([logits for logits, _ in labelled])
    x, y, ids = (torch.cat([getattr(batch, name) for _, batch in labelled]) for name in ("x", "y", "ids"))
    return run.task(Outputs(logits, {}), Batch(x, y, ids))


def head_of(run: Run) -> str:
    """The module path of the classifier. Raises UsageError for a network without any."""
    if not run.heads:
        raise UsageError("The network has no classifier whose features could be compared.")
    return run.heads[0]


def layer_of(run: Run, place: str) -> str:
    """The module path of the layer before which something stands: the classifier for ``features``."""
    return head_of(run) if place == FEATURES else place


def feature_width(run: Run) -> int:
    """How many features the classifier reads. Raises UsageError where it does not say."""
    head = submodule(run.target_module, head_of(run))
    width = getattr(head, "in_features", getattr(head, "in_channels", None))
    if not isinstance(width, int):
        what = "The classifier does not say how many features it reads."
        raise UsageError(what, where=f"{head_of(run)}: {type(head).__name__}")
    return width


def layer_width(run: Run, name: str) -> int:
    """How many channels a layer puts out, as its last module that says so has it. Raises UsageError, UnknownName."""
    if name in (FEATURES, LOGITS):
        return feature_width(run) if name == FEATURES else run.classes
    for module in reversed(list(submodule(run.target_module, name).modules())):
        for attribute in ("out_features", "out_channels", "num_features", "embed_dim"):
            if isinstance(width := getattr(module, attribute, None), int):
                return width
    raise UsageError("A layer does not say how many channels it puts out.", where=name, hint="Name one inside it.")


def layer_names(run: Run, text: str) -> tuple[str, ...]:
    """The layers in ``features,logits,PATH``. Raises UsageError, UnknownName."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UsageError("No layer is named.", where=f"layers={text!r}", hint="For example --set layers=features.")
    for name in names:
        if name not in (FEATURES, LOGITS):
            submodule(run.target_module, name)
    return names


def check_labels(run: Run, source: Batch) -> None:
    """Raise UsageError, once an epoch, if a label of the source's images is none of the target's classes."""
    if run.step * run.epochs % run.steps == 0 and int(source.y.max()) >= run.classes:
        what = f"The source's images have more classes than the target's {run.classes}."
        raise UsageError(what, hint="Both domains must have the same classes, in the same order.")


def pooled(x: Tensor) -> Tensor:
    """``[B, width]`` of maps ``[B, width, H, W]`` or tokens ``[B, T, width]``, averaged over places."""
    return x.mean(1) if x.dim() == 3 else x.flatten(2).mean(2) if x.dim() > 3 else x


@contextmanager
def listening(module: nn.Module, head: str, layers: Sequence[str] = (FEATURES,)) -> Iterator[dict[str, Tensor]]:
    """What ``layers`` put out in the first pass inside, in float32; ``features`` is what ``head`` reads.

    ``input of PATH`` is what that layer reads.

    Raises UnknownName for a layer that does not exist.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, value: Any) -> None:
        found.setdefault(name, first_tensor(value).float())

    read = {name: name.removeprefix(INPUT) for name in layers if name.startswith(INPUT)}
    read |= {FEATURES: head} if FEATURES in layers else {}
    outputs = {name: submodule(module, name) for name in layers if name not in read and name != LOGITS}
    inputs = {name: submodule(module, path) for name, path in read.items()}
    with (
        hearing_outputs(outputs, lambda name, _, output: keep(name, output)),
        hearing_inputs(inputs, lambda name, args, _: keep(name, args)),
    ):
        yield found


@contextmanager
def statistics_of(module: nn.Module, sizes: Sequence[int]) -> Iterator[None]:
    """BatchNorm in train mode takes rows of these sizes for batches of their own; the first updates what it keeps.

    Without ``sizes`` everything is as it was. Norms in eval mode are left alone.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training] if sizes else []
    plain = {norm: vars(norm).get("forward") for norm in norms}
    for norm in norms:
        norm.forward = functools.partial(_by_groups, norm, norm.forward, list(sizes))  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm, before in plain.items():
            if before is None:
                del norm.forward
            else:
                norm.forward = before  # type: ignore[method-assign]


def _by_groups(norm: _BatchNorm, forward: Any, sizes: list[int], x: Tensor) -> Tensor:
    first, *others = x.split(sizes)
    outputs = [forward(first)]
    kept = norm.running_mean, norm.running_var, norm.track_running_stats
    norm.running_mean, norm.running_var, norm.track_running_stats = None, None, False
    try:
        outputs += [forward(other) for other in others]
    finally:
        norm.running_mean, norm.running_var, norm.track_running_stats = kept
    return torch.cat(outputs)
