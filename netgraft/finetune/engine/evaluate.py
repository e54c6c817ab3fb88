"""How good a network's answers are on images that it has not learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netgraft.data.pictures import Pixels
from netgraft.finetune.engine.parts import eval_mode
from netgraft.finetune.engine.processes import Processes
from netgraft.finetune.engine.ranking import average_precisions
from netgraft.finetune.toolbox.taps import first_tensor
from netgraft.finetune.toolbox.terms import binary_cross_entropy

Autocast = Callable[[], AbstractContextManager[object]]


def evaluate(
    module: nn.Module, pixels: Pixels, processes: Processes, autocast: Autocast, batch_size: int
) -> dict[str, float]:
    """Accuracies in percent and the mean of the task's loss, by name, in eval mode; each process does its share.

    One class for each image: ``top1``, ``top5``, with more than ten classes ``top10``, and the cross-entropy. Several:
    ``map``, the mean over classes of the average precision, and the binary cross-entropy.
    """
    outputs = _outputs(module, pixels, processes, autocast, batch_size)
    if pixels.pictures.multilabel:
        return _precision(outputs, processes, pixels.labels)
    return _accuracy(outputs, processes, pixels.labels, len(pixels.pictures.classes))


@torch.no_grad()
def _outputs(
    module: nn.Module, pixels: Pixels, processes: Processes, autocast: Autocast, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers of images ``[b]`` and logits ``[b, K]`` of this process's share, batch by batch."""
    with eval_mode(module):
        for ids in torch.arange(len(pixels))[processes.rank :: processes.world].split(batch_size):
            with autocast():
                logits = first_tensor(module(pixels.batch(ids.tolist()).to(processes.device))).float()
            yield ids, logits


def _accuracy(
    outputs: Iterator[tuple[Tensor, Tensor]], processes: Processes, labels: Tensor, classes: int
) -> dict[str, float]:
    sums = torch.zeros(5, dtype=torch.float64)  # right, right among five and ten, loss, images
    for ids, logits in outputs:
        wanted = labels[ids].to(logits.device)
        hits = logits.topk(min(10, logits.shape[1]), dim=1).indices == wanted[:, None]
        right = [hits[:, :most].sum() for most in (1, 5, 10)]
        loss = F.cross_entropy(logits, wanted, reduction="sum")
        sums += torch.stack([*right, loss, loss.new_tensor(len(ids))]).double().cpu()
    *right, loss, count = torch.tensor(processes.all_objects(sums.tolist()), dtype=torch.float64).sum(0).tolist()
    found = {f"top{most}": 100 * share / count for most, share in zip((1, 5, 10), right, strict=True)}
    if classes <= 10:
        del found["top10"]
    return {**found, "loss": loss / count}


def _precision(outputs: Iterator[tuple[Tensor, Tensor]], processes: Processes, labels: Tensor) -> dict[str, float]:
    mine = [(ids, logits.cpu()) for ids, logits in outputs]
    everyone = [pair for share in processes.all_objects(mine) for pair in share]
    order, logits = (torch.cat(each) for each in zip(*everyone, strict=True))
    wanted = labels[order]
    return {
        "map": 100 * float(average_precisions(logits, wanted).nanmean()),
        "loss": float(binary_cross_entropy(logits, wanted)),
    }
