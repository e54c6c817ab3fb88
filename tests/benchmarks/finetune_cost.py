"""What the engine costs: FLOPs and CPU time of a step, beside the forward and backward passes it cannot do without.

    python tests/benchmarks/finetune_cost.py [--arch resnet18 --size 128 --batch 32 --steps 7]

One process and one thread; every kind of step in turn, so that all of them see the same machine; medians of CPU time.
``passes`` is a forward and a backward pass in plain PyTorch; ``plain`` a step of the engine on it (with the optimizer),
``dtnh`` one of DTNH(L2-SP), whose regulariser has an analytic gradient, ``dtnh-2`` the same with the regulariser as an
ordinary loss. Bounds: plain at most 1.05 of the FLOPs and 1.15 of the time of the passes; dtnh at most 1.05 of plain.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from netgraft.finetune.combine import dtnh
from netgraft.finetune.engine.folder import Folder
from netgraft.finetune.engine.loader import to_device
from netgraft.finetune.engine.loop import Training
from netgraft.finetune.engine.parts import set_train_mode
from netgraft.finetune.engine.prepare import prepare
from netgraft.finetune.engine.watch import Quiet
from netgraft.finetune.protocol import Part, Update
from netgraft.finetune.settings import TrainingSettings
from netgraft.finetune.toolbox.terms import l2_penalty, scratch


@dataclass(frozen=True)
class Near:
    """L2-SP on all weights, with its gradient or as an ordinary loss."""

    analytic: bool
    needs: ClassVar[frozenset[Any]] = frozenset()

    def parts(self, run: Any) -> Any:
        return {"target": Part(run.target_module)}

    def epoch(self, run: Any, batches: Any, parts: Any) -> Any:  # noqa: ARG002
        parameters, start = list(run.target_module.parameters()), list(run.start.values())
        out = scratch(parameters)
        for batch in batches:
            task = {"task": run.task(run.target(batch), batch)}
            if self.analytic:
                yield Update(("target",), task, {"sp": l2_penalty(parameters, 0.01, start, out=out)})
            else:
                away = sum((p - s).square().sum() for p, s in zip(parameters, start, strict=True))
                yield Update(("target",), {**task, "sp": 0.005 * away})


def make(options: argparse.Namespace, folder: str, method: Any, rule: Any) -> Training:
    settings = TrainingSettings(
        target=options.arch,
        target_arg={"num_classes": 10},
        input_size=(3, options.size, options.size),
        data="netgraft:digits",
        out=folder,
        batch_size=options.batch,
        device="cpu",
        lr=1e-4,
        sched="none",
    )
    prepared = prepare(settings)
    prepared.method, prepared.rule = method or prepared.method, rule or prepared.rule
    return Training(prepared, Folder(Path(folder)), Quiet())


def step(training: Training, batch: Any) -> Callable[[], None]:
    run, method = training.run, training.prepared.method

    def batches() -> Iterator[Any]:
        while True:
            run.begin(batch)
            yield batch

    updates = method.epoch(run, batches(), training.parts)
    return lambda: training.perform(next(updates), 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainings = {
            "plain": make(options, folder, None, None),
            "dtnh": make(options, folder, Near(True), dtnh),
            "dtnh-2": make(options, folder, Near(False), dtnh),
        }
        for training in trainings.values():
            set_train_mode(training.parts, bn="train")
            _ = training.run.start
        plain = trainings["plain"]
        batch = to_device(next(plain.prepared.loader.epoch(0)), torch.device("cpu"))
        net = make(options, folder, None, None).run.target_module.train()

        def passes() -> None:
            net.zero_grad()
            F.cross_entropy(net(batch.x), batch.y).backward()

        kinds = {"passes": passes} | {name: step(training, batch) for name, training in trainings.items()}
        flops = {}
        for name, call in kinds.items():
            with FlopCounterMode(display=False) as counter:
                call()
            flops[name] = counter.get_total_flops()
            call()
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(options.steps):
            for name, call in kinds.items():
                began = time.process_time()
                call()
                times[name].append(time.process_time() - began)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{options.arch}, {options.batch} images of {options.size}x{options.size}, medians of {options.steps} steps")
    print(f"{'':8} {'GFLOP':>8} {'of passes':>10} {'CPU ms':>9} {'of passes':>10} {'of plain':>9}")
    for name in kinds:
        share, slower = flops[name] / flops["passes"], medians[name] / medians["passes"]
        extra = medians[name] / medians["plain"]
        print(f"{name:8} {flops[name] / 1e9:8.2f} {share:10.3f} {1e3 * medians[name]:9.1f} {slower:10.3f} {extra:9.3f}")


if __name__ == "__main__":
    main()
