"""Everything that a training is in the middle of, so that a resumed one ends in the same bytes.

A state is taken between two batches. Parts (parameters and buffers), optimizers, random numbers, the factor of the
losses (float16) and the sums of the epoch's metrics are saved; batches are a function of (seed, epoch, number) and the
learning rate of the step, so their position is two numbers. Buffers (BatchNorm's statistics) and random states are
those of each process.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from netgraft.errors import CorruptFile, UsageError
from netgraft.finetune.engine.folder import STATE, Folder
from netgraft.finetune.engine.meters import Meters
from netgraft.finetune.engine.run import LiveRun
from netgraft.finetune.toolbox.random_numbers import RunNumbers

VERSION = 1


def save_state(
    folder: Folder, run: LiveRun, modules: Mapping[str, nn.Module], *, batch: int, rest: Mapping[str, Any]
) -> None:
    """Write the state after ``batch`` batches of the epoch. Every process must call it. ``rest`` is plain data."""
    processes = run.processes
    mine = {
        "rng": run.numbers.state[0],
        "device_rng": run.numbers.state[1] if len(run.numbers.state) > 1 else None,
        "buffers": {name: [b.cpu() for b in module.buffers()] for name, module in modules.items()},
    }
    everyone = processes.all_objects(mine)
    if not processes.first:
        processes.wait()
        return
    content = io.BytesIO()
    state = {
        "version": VERSION,
        "world": processes.world,
        "epoch": run.epoch,
        "batch": batch,
        "step": run.step,
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in run.optimizers.items()},
        "meters": run.meters.state(),
        "loss_scale": None if run.loss_scale is None else run.loss_scale.state_dict(),
        "processes": everyone,
        "rest": dict(rest),
    }
    torch.save(state, content)
    folder.write_bytes(STATE, content.getvalue())
    processes.wait()


def load_state(folder: Folder, run: LiveRun, modules: Mapping[str, nn.Module]) -> tuple[int, dict[str, Any]]:
    """Put everything back and return the number of batches done in ``run.epoch``, and ``rest``.

    Raises CorruptFile, and UsageError for another number of processes.
    """
    processes = run.processes
    try:
        state = torch.load(folder.state, map_location="cpu", weights_only=True)
        if state["version"] != VERSION:
            raise KeyError(f"version {state['version']}")
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        hint = "Begin anew: --force."
        raise CorruptFile("The saved state cannot be read.", where=f"{folder.state}: {error}", hint=hint) from error
    if state["world"] != processes.world:
        where = f"{state['world']} then, {processes.world} now"
        raise UsageError("A training goes on with as many processes as it began with.", where=where)
    mine = state["processes"][processes.rank]
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
        for buffer, saved in zip(module.buffers(), mine["buffers"][name], strict=True):
            buffer.copy_(saved)
    for name, optimizer in run.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    if run.loss_scale is not None:
        run.loss_scale.load_state_dict(state["loss_scale"])
    run.epoch, run.step, run.meters = state["epoch"], state["step"], Meters(state["meters"])
    of_device = (mine["device_rng"],) if mine["device_rng"] is not None and run.device.type == "cuda" else ()
    run.numbers.state = (mine["rng"], *(of_device or run.numbers.state[1:]))
    run.moved = True
    return state["batch"], state["rest"]


def random_modules(modules: Mapping[str, nn.Module], run: LiveRun) -> None:
    """The same parts everywhere, and then random numbers of each process's own, whatever the parts drew."""
    run.processes.broadcast(modules.values())
    torch.manual_seed((run.seed + 1) * 1_000_003 + run.rank)
    run.numbers = RunNumbers(run.device)
