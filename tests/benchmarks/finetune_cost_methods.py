"""What a step of every matching method costs: FLOPs beside the least that it cannot do without.

    python tests/benchmarks/finetune_cost_methods.py [--source resnet34 --target resnet18 --size 128 --batch 16]

The floor is counted in plain PyTorch, without the engine: a forward and a backward pass of the target; of the source
the layers up to the deepest that is compared, all of it for its logits; a forward and a backward pass of the adapters;
under DTNH one more backward pass of what lies below the compared outputs. Analytic gradients cost nothing. The bound
is 1.05 of the floor. Time is CPU time, the median of some steps, beside plain fine-tuning's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from netgraft.finetune.engine.folder import Folder
from netgraft.finetune.engine.loader import to_device
from netgraft.finetune.engine.loop import Training
from netgraft.finetune.engine.parts import set_train_mode
from netgraft.finetune.engine.prepare import prepare
from netgraft.finetune.engine.watch import Quiet
from netgraft.finetune.settings import TrainingSettings

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "l2": {},
    "l2-sp": {},
    "dtnh": {},
    "kd": {},
    "fm": {},
    "fm all": {"set": {"match": "all"}},
    "at": {},
    "knowdist": {},
} | {f"{name}, dtnh": {"combine": "dtnh"} for name in ("kd", "fm", "at", "knowdist")}


class Counted(NamedTuple):
    """FLOPs of a step, and of its floor."""

    step: int
    floor: int


class _Enough(Exception):
    """The deepest layer has run."""


def kinds(settings: Callable[..., TrainingSettings]) -> Iterator[tuple[str, Training]]:
    """A training of each kind; ``settings`` makes them from a method and what else is given."""
    for name, more in KINDS.items():
        chosen = settings(method=name.partition(" ")[0].rstrip(","), **more)
        prepared = prepare(chosen)
        yield name, Training(prepared, Folder(Path(chosen.out)), Quiet())


def stepper(training: Training) -> Callable[[], None]:
    """Performs the update of the first batch, again and again."""
    run = training.run
    batch = to_device(next(training.prepared.loader.epoch(0)), run.device)
    set_train_mode(training.parts, bn=training.settings.bn)

    def batches() -> Iterator[Any]:
        while True:
            run.begin(batch)
            yield batch

    updates = training.prepared.method.epoch(run, batches(), training.parts)
    return lambda: training.perform(next(updates), 1.0)


def count(training: Training) -> Counted:
    method = training.settings.method
    batch = next(training.prepared.loader.epoch(0))
    floor = _flops(lambda: F.cross_entropy(training.run.target_module(batch.x), batch.y).backward())
    training.run.target_module.zero_grad()
    matching = method in ("fm", "at", "knowdist")
    if method == "kd" or matching:
        floor += _flops(lambda: _forward(training, batch.x, whole=not matching))
    if matching and "adapters" in training.parts:
        targets = [pair.target_shape for pair in training.run.pairs]
        if training.settings.set.get("match") == "all":
            targets = [shape for shape in targets for _ in targets]
        for shape, adapter in zip(targets, training.parts["adapters"].module.children(), strict=True):
            places = torch.Size(shape[1:]).numel()
            floor += 3 * 2 * len(batch.x) * places * sum(p.numel() for p in adapter.parameters() if p.dim() > 1)
    if training.prepared.rule_name == "dtnh" and (method == "kd" or matching):
        floor += _backward(training, batch, whole=not matching)
    return Counted(_flops(stepper(training)), floor)


def _flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _forward(training: Training, images: torch.Tensor, whole: bool) -> None:
    """The source, as far as it must run."""
    net = training.run.net
    assert net is not None
    left = {pair.source for pair in training.run.pairs}

    def stop(name: str) -> None:
        left.discard(name)
        if not left and not whole:
            raise _Enough

    handles = [
        net.module.get_submodule(name).register_forward_hook(lambda *_, name=name: stop(name)) for name in set(left)
    ]
    try:
        with torch.no_grad():
            net.module(net.adapt(images))
    except _Enough:
        pass
    for handle in handles:
        handle.remove()


def _backward(training: Training, batch: Any, whole: bool) -> int:
    """A backward pass from the compared outputs alone."""
    module, found = training.run.target_module, []
    layers = [] if whole else [pair.target for pair in training.run.pairs]
    handles = [
        module.get_submodule(n).register_forward_hook(lambda _, __, out: found.append(out.mean())) for n in set(layers)
    ]
    logits = module(batch.x)
    for handle in handles:
        handle.remove()
    loss = sum(found) if found else logits.square().mean()
    return _flops(lambda: torch.autograd.grad(loss, list(module.parameters()), allow_unused=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", default="resnet34")
    parser.add_argument("--target", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:

        def settings(**more: Any) -> TrainingSettings:
            return TrainingSettings(
                target=options.target,
                target_arg={"num_classes": 10},
                init=f"{folder}/init.safetensors",
                input_size=(3, options.size, options.size),
                source=options.source,
                source_arg={"num_classes": 10},
                random_source=True,
                data="netgraft:digits",
                out=folder,
                batch_size=options.batch,
                device="cpu",
                lr=1e-4,
                sched="none",
                **more,
            )

        _write_start(Path(folder), options.target)
        trainings = dict(kinds(settings))
        counted = {name: count(training) for name, training in trainings.items()}
        calls = {name: stepper(training) for name, training in trainings.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(options.steps + 1):
            for name, call in calls.items():
                began = time.process_time()
                call()
                times[name].append(time.process_time() - began)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    print(f"{options.source} -> {options.target}, {options.batch} images of {options.size}x{options.size}")
    print(f"{'':15} {'GFLOP':>8} {'floor':>8} {'of floor':>9} {'of plain':>9} {'CPU ms':>9} {'of plain':>9}")
    for name, (step, floor) in counted.items():
        share, extra, slower = step / floor, step / counted["plain"].step, medians[name] / medians["plain"]
        ms = 1e3 * medians[name]
        print(f"{name:15} {step / 1e9:8.2f} {floor / 1e9:8.2f} {share:9.3f} {extra:9.3f} {ms:9.1f} {slower:9.3f}")


def _write_start(folder: Path, target: str) -> None:
    import safetensors.torch
    import timm

    safetensors.torch.save_file(timm.create_model(target, num_classes=10).state_dict(), folder / "init.safetensors")


if __name__ == "__main__":
    main()
