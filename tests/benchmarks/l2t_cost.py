"""What a step of L2T-ww and L2T-GAN costs: FLOPs and CPU time, beside the passes that none of them can do without.

    python tests/benchmarks/l2t_cost.py [--source resnet34 --target resnet18 --size 64 --batch 16 --steps 5]

T = 2; L2T-ww matches all four stages with one another (16 pairs), L2T-GAN one to one (4). One process, one thread,
every kind of step in turn, medians of CPU time. F is a forward pass of the target, F_s one of the source. ``official``
is the scheme of the authors' code in plain PyTorch: the meta-gradient replays each step with a double backward pass for
parameters and weight networks, and the source runs again in each.

The floors are sums of passes in plain PyTorch. ``task`` is a forward and backward pass of the target, 3 F, ``matched``
one with adapters and the matching loss. L2T-ww keeps the graphs of its steps: 3 (A) + 3 (T + 1) + 3 (the last J) + 6 T
(Hessian-vector products) + 3 (the first step, a pass in forward mode, which keeps no graph) = 30 F; L2T-GAN, fused and
without a meta step, takes 3 (T + 2) = 12 F. Both without what adapters and discriminators add, which the floors' times
have. Were the first step's activations used again in forward mode, which PyTorch cannot do, it would be 29 F, and the
share of the floor's time 0.04 more.

A step that keeps graphs takes and returns much memory, and by default glibc hands it back to the system each time: a
tenth of the time of ``l2t-ww``, and of no other line. ``netgraft finetune`` has glibc keep it, and so does this.

Bounds: l2t-ww at most 38 F + F_s, l2t-gan at most 12 F + F_s and its adapters and discriminators, and both at most 1.15
of the floor's time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from netgraft.cli.memory import keep_freed_memory
from netgraft.finetune.engine.folder import Folder
from netgraft.finetune.engine.loader import to_device
from netgraft.finetune.engine.loop import Training
from netgraft.finetune.engine.parts import set_train_mode
from netgraft.finetune.engine.prepare import prepare
from netgraft.finetune.engine.watch import Quiet
from netgraft.finetune.settings import TrainingSettings
from netgraft.finetune.toolbox.adapters import features
from netgraft.finetune.toolbox.bilevel.discriminator import Discriminators, discriminator_loss, generator_loss
from netgraft.finetune.toolbox.bilevel.matching import (
    Adapters,
    MatchingWeights,
    coefficients,
    distances,
    matching_loss,
    pairs_to_match,
    pooled,
    source_features,
)

STEPS = 2  # T
STAGES = ",".join(f"layer{i}:layer{i}" for i in (1, 2, 3, 4))
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "l2t-ww": ("l2t-ww", {}),
    "  between meta steps": ("l2t-ww", {"meta_every": 10}),
    "l2t-gan": ("l2t-gan", {"meta": "fixed"}),
    "  without D": ("l2t-gan", {"meta": "fixed", "ablation": "B"}),
    "  literal order": ("l2t-gan", {"meta": "fixed", "fuse": False}),
    "  bilevel": ("l2t-gan", {}),
}
LOOK_AHEAD = {"matched": STEPS + 2 * (STEPS - 1) + 1, "task": 4}  # steps, Hessian and Jacobian products, J
FLOORS: dict[str, dict[str, float]] = {  # forward and backward passes, of 3 F each, and those of discriminators
    "task": {"task": 1},
    "l2t-ww": {"matched": 1 + LOOK_AHEAD["matched"], "task": LOOK_AHEAD["task"], "F_s": 1},
    "  between meta steps": {"matched": 1, "F_s": 1},
    "l2t-gan": {"few matched": STEPS + 1, "task": 1, "D step": STEPS, "D pass": STEPS + 1, "F_s": 1},
    "  without D": {"few matched": STEPS + 1, "task": 1, "F_s": 1},
    "  literal order": {"few matched": 2 * STEPS + 1, "task": 1, "D step": STEPS, "D pass": STEPS + 1, "F_s": 1},
    "  bilevel": {
        "few matched": STEPS + 1 + LOOK_AHEAD["matched"],
        "task": 1 + LOOK_AHEAD["task"],
        "D step": STEPS,
        "D pass": STEPS + 1 + LOOK_AHEAD["matched"],
        "F_s": 1,
    },
    "official": {"matched": 1 + 4 * STEPS, "task": 5, "F_s": 2 * STEPS + 1},
}


class Flops(TorchDispatchMode):
    """PyTorch's FlopCounterMode without its tracker of modules, which spectral norms break."""

    total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def make(options: argparse.Namespace, folder: str, method: str, chosen: dict[str, Any]) -> Training:
    settings = TrainingSettings(
        target=options.target,
        target_arg={"num_classes": 10},
        input_size=(3, options.size, options.size),
        source=options.source,
        random_source=True,
        pairs=STAGES,
        method=method,
        set=chosen,
        data="netgraft:digits",
        out=folder,
        batch_size=options.batch,
        device="cpu",
        opt="momentum",
        lr=1e-3,
        sched="none",
    )
    training = Training(prepare(settings), Folder(Path(folder)), Quiet())
    set_train_mode(training.parts, bn="train")
    return training


def whole_batch(training: Training, batch: Any) -> Callable[[], None]:
    """All updates of a batch."""
    run, method = training.run, training.prepared.method

    def call() -> None:
        def batches() -> Iterator[Any]:
            run.begin(batch)
            yield batch

        run.step = 1 + (run.step == 0)  # no multiple of 10
        for update in method.epoch(run, batches(), training.parts):
            training.perform(update, 1.0)

    return call


def matched(training: Training, batch: Any, match: Any) -> Callable[[], None]:
    """A forward and backward pass of the target with adapters and the matching loss."""
    run = training.run
    pairs = pairs_to_match(run, match)
    adapters = Adapters(pairs)
    parameters = [*run.target_module.parameters(), *adapters.parameters()]
    sources = [one.clone() for one in source_features(pairs, features(run.source_module, run.source(batch)))]
    a = [torch.full((len(one), one.shape[1]), 1e-3) for one in sources]

    def call() -> None:
        here = run.target(batch, stats=True)
        adapted = adapters(features(run.target_module, here))
        loss = F.cross_entropy(here.logits, batch.y) + matching_loss(a, distances(adapted, sources))
        torch.autograd.grad(loss, parameters)

    return call


def adversaries(training: Training, batch: Any) -> dict[str, Callable[[], None]]:
    """A step's passes of the discriminators, and those of a generator's step."""
    run = training.run
    pairs = pairs_to_match(run, "one-to-one")
    nets = Discriminators(pairs)
    real = source_features(pairs, features(run.source_module, run.source(batch)))
    fake = [one.clone().requires_grad_() for one in real]

    def step() -> None:
        loss = discriminator_loss(nets(real), nets([one.detach() for one in fake]), "nonsat")
        torch.autograd.grad(loss, list(nets.parameters()))

    def generator() -> None:
        torch.autograd.grad(generator_loss(nets.frozen(fake), "nonsat"), fake)

    return {"D step": step, "D pass": generator}


def official(training: Training, batch: Any) -> Callable[[], None]:
    """A), the steps, and the replay of ``MetaSGD.meta_backward``, with the same losses."""
    run = training.run
    pairs = pairs_to_match(run, "all")
    modules = {"target": run.target_module, "adapters": Adapters(pairs)}
    weights = MatchingWeights(pairs)
    names = [(part, name) for part, module in modules.items() for name, _ in module.named_parameters()]

    def passed(parameters: list[torch.Tensor], *, task: bool = False, match: bool = False) -> torch.Tensor:
        given: dict[str, dict[str, torch.Tensor]] = {"target": {}, "adapters": {}}
        for (part, name), parameter in zip(names, parameters, strict=True):
            given[part][name] = parameter
        here = run.target(batch, params=given["target"])
        loss = F.cross_entropy(here.logits, batch.y) if task else here.logits.new_zeros(())
        if match:
            run.begin(batch)  # the source runs again
            there = features(run.source_module, run.source(batch))
            w, lam = weights([pooled(there[pair.source]) for pair in pairs])
            adapted = functional_call(modules["adapters"], given["adapters"], (features(run.target_module, here),))
            apart = distances(adapted, source_features(pairs, there))
            loss = loss + matching_loss(coefficients(w, lam, 0.5), apart)
        return loss

    def gradient(loss: torch.Tensor, wrt: list[torch.Tensor], *, graph: bool = False) -> list[torch.Tensor]:
        found = torch.autograd.grad(loss, wrt, create_graph=graph, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(wrt, found, strict=True)]

    def leaves(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        return [parameter.detach().requires_grad_() for parameter in parameters]

    def call() -> None:
        now = leaves([p for module in modules.values() for p in module.parameters()])
        gradient(passed(now, task=True, match=True), now)
        visited = []
        for number in range(STEPS + 1):
            now = leaves([p.detach() for p in now])
            visited.append(now)
            loss = passed(now, task=number == STEPS, match=number < STEPS)
            now = [p.detach() - 1e-3 * g for p, g in zip(now, gradient(loss, now), strict=True)]
        now = leaves(now)
        cotangent = gradient(passed(now, task=True), now)
        phi = list(weights.parameters())
        for number in range(STEPS, -1, -1):
            at = leaves(visited[number])
            loss = passed(at, task=number == STEPS, match=number < STEPS)
            products = zip(gradient(loss, at, graph=True), cotangent, strict=True)
            inner = torch.stack([(g * c).sum() for g, c in products]).sum()
            bend = gradient(inner, [*at, *phi])[: len(at)]
            cotangent = [c - 1e-3 * b for c, b in zip(cotangent, bend, strict=True)]

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", default="resnet34")
    parser.add_argument("--target", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    calls: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainings = {kind: make(options, folder, method, chosen) for kind, (method, chosen) in KINDS.items()}
        first = trainings["l2t-ww"]
        batch = to_device(next(first.prepared.loader.epoch(0)), torch.device("cpu"))
        net, run = make(options, folder, "plain", {}).run.target_module.train(), first.run
        parameters = list(net.parameters())

        def forward() -> None:
            with torch.no_grad():
                net(batch.x)

        def source() -> None:
            run.begin(batch)
            run.source(batch, logits=False)

        def both() -> None:
            torch.autograd.grad(F.cross_entropy(net(batch.x), batch.y), parameters)

        calls = {"F": forward, "F_s": source, "task": both}
        for name, match in (("matched", "all"), ("few matched", "one-to-one")):
            calls[name] = matched(first, batch, match)
        calls |= adversaries(first, batch)
        calls |= {kind: whole_batch(training, batch) for kind, training in trainings.items()}
        calls["official"] = official(first, batch)
        flops: dict[str, float] = {}
        for kind, call in calls.items():
            with Flops() as counter:
                call()
            flops[kind] = counter.total
        times: dict[str, list[float]] = {kind: [] for kind in calls}
        for _ in range(options.steps):
            for kind, call in calls.items():
                began = time.process_time()
                call()
                times[kind].append(time.process_time() - began)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    report(options, flops, medians)


def report(options: argparse.Namespace, flops: dict[str, float], medians: dict[str, float]) -> None:
    """The table: FLOPs in F less F_s, and the time as a share of the floor's."""
    images = f"{options.batch} images of {options.size}x{options.size}"
    print(f"{options.source} -> {options.target}, {images}, medians of {options.steps} steps")
    parts = ("F_s", "task", "matched", "few matched", "D step", "D pass")
    print(f"F {flops['F'] / 1e9:.2f} GFLOP; in F: " + ", ".join(f"{n} {flops[n] / flops['F']:.2f}" for n in parts))
    print(f"{'':22} {'F, less F_s':>12} {'of floor':>9} {'CPU ms':>9} {'of floor':>9}")
    for kind, floor in FLOORS.items():
        count, least = ((x - flops["F_s"] * (kind != "task")) / flops["F"] for x in (flops[kind], total(floor, flops)))
        ms, share = 1e3 * medians[kind], medians[kind] / total(floor, medians)
        print(f"{kind:22} {count:12.2f} {count / least:9.3f} {ms:9.1f} {share:9.3f}")


def total(floor: dict[str, float], of: dict[str, float]) -> float:
    return sum(times * of[name] for name, times in floor.items())


if __name__ == "__main__":
    main()
