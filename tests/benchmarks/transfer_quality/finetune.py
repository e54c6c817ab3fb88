"""A few labelled images, one schedule for every initialisation, and the accuracy that comes of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netgraft.models.normalisation import Normalisation
from netgraft.score.probe import Bench
from netgraft.score.settings import ScoreSettings
from transfer_quality import pretrain
from transfer_quality.domains import DOMAINS, TARGETS
from transfer_quality.nets import mean, std

LR, MOMENTUM, WEIGHT_DECAY, EPOCHS, BATCH = 0.03, 0.9, 5e-4, 20, 20
PROTOCOL = f"sgd lr {LR} momentum {MOMENTUM} decay {WEIGHT_DECAY} epochs {EPOCHS} batch {BATCH} cosine"


@dataclass(frozen=True)
class Task:
    """The images of one draw, and the probe on them."""

    bench: Bench
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@functools.lru_cache(maxsize=64)
def task(cache: Path, domain_name: str, target: str, samples: int, seed: int) -> Task:
    """The target task with ``samples`` images per class, drawn with ``seed``."""
    domain = DOMAINS[domain_name]
    settings = ScoreSettings(
        data=domain.data(cache),
        samples_per_class=samples,
        seed=seed,
        device="cpu",
        normalisation=Normalisation((mean,), (std,)),
    )
    bench = Bench(domain.side(TARGETS[target], source=False), settings, lambda _: None)
    return Task(bench, (bench.train.all(), bench.train.labels), (bench.test.all(), bench.test.labels))


def fresh(domain_name: str, target: str, tensors: Mapping[str, Tensor], seed: int) -> nn.Module:
    """The target with its own random weights and head, drawn with ``seed``, and ``tensors`` in all places but the head.

    The head is the last linear layer.
    """
    net = pretrain.build(DOMAINS[domain_name], TARGETS[target], source=False, seed=seed)
    head = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)][-1]
    body = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{head}.")}
    found = net.load_state_dict(body, strict=False)
    if found.unexpected_keys or (tensors and any(not key.startswith(f"{head}.") for key in found.missing_keys)):
        raise ValueError(f"{target}: {found}")
    return net


def tune(net: nn.Module, images: Tensor, labels: Tensor, seed: int, epochs: int = EPOCHS) -> None:
    """SGD with momentum and a cosine from LR to nothing, by step."""
    rng = torch.Generator().manual_seed(seed)
    layout = torch.channels_last
    net.train().to(memory_format=layout)
    images = images.contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, foreach=True)
    step, steps = 0, epochs * -(-len(images) // BATCH)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=rng).split(BATCH):
            optimizer.param_groups[0]["lr"] = LR * 0.5 * (1 + math.cos(math.pi * step / steps))
            loss = F.cross_entropy(net(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    net.eval()
    logits = torch.cat([net(batch) for batch in images.split(250)])
    return float((logits.argmax(1) == labels).double().mean())
