"""How good a network is on the test images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import nn

from netgraft.data.pictures import Pixels
from netgraft.finetune.engine.parts import eval_mode
from netgraft.finetune.engine.processes import Processes
from netgraft.finetune.toolbox.taps import first_tensor


@torch.no_grad()
def evaluate(
    module: nn.Module,
    pixels: Pixels,
    processes: Processes,
    autocast: Callable[[], AbstractContextManager[object]],
    batch_size: int,
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent and the mean cross-entropy, in eval mode; each process does its share."""
    sums = torch.zeros(4, dtype=torch.float64)  # right, right among five, loss, images
    mine = torch.arange(len(pixels))[processes.rank :: processes.world]
    with eval_mode(module):
        for ids in mine.split(batch_size):
            labels = pixels.labels[ids].to(processes.device)
            with autocast():
                logits = first_tensor(module(pixels.batch(ids.tolist()).to(processes.device))).float()
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack([hits[:, 0].sum(), hits.sum(), loss, loss.new_tensor(len(ids))]).double().cpu()
    total = torch.tensor(processes.all_objects(sums.tolist()), dtype=torch.float64).sum(0)
    right, five, loss_sum, count = total.tolist()
    return {"top1": 100 * right / count, "top5": 100 * five / count, "loss": loss_sum / count}
