"""Networks pretrained on a domain's source task, once, into the cache folder."""

from __future__ import annotations

import functools
import math
import time
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from netgraft.models.model import load_model
from transfer_quality.domains import Domain, normalise

LR, WEIGHT_DECAY, SMOOTHING = 2e-3, 0.05, 0.1
PATIENCE = 4  # times as many steps, at half the rate, for transformers, which learn slowly without much data


def build(domain: Domain, reference: str, *, source: bool, seed: int) -> nn.Module:
    """A net with the head of the source or the target task and its own random weights."""
    side = domain.side(reference, source=source)
    model = load_model(side.reference, role="target", args=side.args, input_size=side.input_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model.build()


def pretrained(cache: Path, domain: Domain, name: str, reference: str, seed: int, steps: int) -> Path:
    """The weights of an architecture after ``steps`` of the source task; trained unless they are there."""
    file = cache / domain.name / "pretrained" / f"{name}-{seed}-{steps}.safetensors"
    if not file.exists():
        net = build(domain, reference, source=True, seed=seed)
        began = time.process_time()
        train(net, domain, cache, seed, steps)
        right = accuracy(net, domain, cache)
        facts = {"accuracy": f"{right:.4f}", "cpu_seconds": f"{time.process_time() - began:.0f}"}
        print(f"{domain.name}: {name}, seed {seed}: {right:.1%} of the source task, {facts['cpu_seconds']} s")
        write(file, net.state_dict(), facts)
    return file


def untrained(cache: Path, domain: Domain, name: str, reference: str, seed: int) -> Path:
    """The weights of an architecture before any step."""
    file = cache / domain.name / "untrained" / f"{name}-{seed}.safetensors"
    if not file.exists():
        write(file, build(domain, reference, source=True, seed=1000 + seed).state_dict())
    return file


def shuffled(cache: Path, domain: Domain, weights: Path) -> Path:
    """A copy of a weights file with every tensor's elements permuted."""
    file = cache / domain.name / "shuffled" / weights.name
    if not file.exists():
        rng = torch.Generator().manual_seed(0)
        tensors = safetensors.torch.load_file(weights)
        write(file, {key: tensor.flatten()[torch.randperm(tensor.numel(), generator=rng)].reshape(tensor.shape)
                     for key, tensor in sorted(tensors.items())})  # fmt: skip
    return file


def train(net: nn.Module, domain: Domain, cache: Path, seed: int, steps: int) -> None:
    """AdamW with a warm-up of a tenth of the steps and a cosine to nothing; longer for transformers."""
    rng, highest = torch.Generator().manual_seed(seed), LR
    if isinstance(net, VisionTransformer):
        steps, highest = PATIENCE * steps, LR / 2
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    net.train().to(memory_format=torch.channels_last)
    stream = domain.stream(cache, rng, domain.batch)
    for step, (images, labels) in zip(range(steps), stream, strict=False):
        rate = highest * min((step + 1) / (0.1 * steps), 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = F.cross_entropy(
            net(normalise(images).contiguous(memory_format=torch.channels_last)), labels, label_smoothing=SMOOTHING
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 250 == 0:
            print(f"  step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def accuracy(net: nn.Module, domain: Domain, cache: Path, batches: int = 8) -> float:
    """Share of right answers on fresh images of the source task."""
    net.eval()
    found = [(net(normalise(images)).argmax(1) == labels).float() for images, labels in _fresh(domain, cache, batches)]
    return float(torch.cat(found).mean())


@functools.cache
def _fresh(domain: Domain, cache: Path, batches: int) -> list[tuple[Tensor, Tensor]]:
    stream = domain.stream(cache, torch.Generator().manual_seed(10**6), 256)
    return [batch for _, batch in zip(range(batches), stream, strict=False)]


def write(file: Path, tensors: dict[str, Tensor], facts: dict[str, str] | None = None) -> None:
    """All or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, part, facts)
    part.rename(file)
