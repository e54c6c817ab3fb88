"""Plans passes, and runs them one after the other on the grafted target."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from netgraft import plugins
from netgraft.architecture.graph import LayerGraph
from netgraft.data.images import ImageSource
from netgraft.errors import UsageError
from netgraft.evidence.parity import Party
from netgraft.models.importance import channel_norms
from netgraft.models.normalisation import normalisation_for, normalisation_of
from netgraft.models.running import find_device, load_state
from netgraft.passes.protocol import LiveModel, Pass, SparesCopies, Stage
from netgraft.plan import OF_PASSES, Pairing, Plan, PlannedPass, WantedPass
from netgraft.trace.forward import build_on


def plan_passes(
    wanted: Sequence[WantedPass],
    source: LayerGraph,
    target: LayerGraph,
    pairing: Pairing,
    copied: Collection[str] = (),
) -> tuple[PlannedPass, ...]:
    """The passes as a plan records them, with all their options and the keys they may change.

    ``copied`` are the keys of what is copied as it is: some passes are told to leave that alone.
    """
    found = []
    for name, options in wanted:
        each = plugins.create("passes", name, options)
        if not isinstance(each, Pass) or each.fate not in OF_PASSES:
            what = f"The pass {name} lacks touches(source, target, pairing), a call with a stage, or a fate."
            raise UsageError(what, hint="See netgraft.passes.protocol and examples/own_pass.py.")
        settings = {option.name: getattr(each, option.name) for option in plugins.options(type(each))}
        spared = each.spared(target, copied) if isinstance(each, SparesCopies) else ()
        keys = tuple(key for key in each.touches(source, target, pairing) if key not in spared)
        found.append(PlannedPass(name, settings, each.fate, keys))
    return tuple(found)


def run_passes(
    plan: Plan,
    source: Party,
    target: Party,
    *,
    pictures: ImageSource,
    seed: int,
    device: str,
    progress: Callable[[str], None],
    enough: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The target's tensors after the plan's passes, in the order they had, and what each pass reports."""
    if not plan.passes:
        return dict(target.tensors), []
    where = find_device(device)
    networks = make_networks(source, target, where)
    norms = channel_norms(source.tensors)
    stage = Stage(plan, *networks, pictures, seed, where, norms=norms, progress=progress, enough=enough)
    reports = []
    with torch.random.fork_rng(devices=[]), _deterministic():
        for each in plan.passes:
            torch.manual_seed(seed)
            stage.crops = ""
            report = plugins.create("passes", each.name, each.options)(stage)
            crops = {"pictures": stage.crops} if stage.crops else {}
            reports.append({"name": each.name} | report | crops)
    state = stage.target.module.state_dict()
    return {
        key: state[key].detach().to("cpu", tensor.dtype).contiguous() for key, tensor in target.tensors.items()
    }, reports


def make_networks(source: Party, target: Party, device: torch.device) -> tuple[LiveModel, LiveModel]:
    """Both models with their weights, in eval mode on the device, and what each expects of its images."""
    modules = _module(source, device), _module(target, device)
    return (
        LiveModel(source.model, source.graph, modules[0], normalisation_of(source.model, modules[0])),
        LiveModel(target.model, target.graph, modules[1], normalisation_for(target.model, [source.model], modules[1])),
    )


def _module(party: Party, device: torch.device) -> nn.Module:
    module: nn.Module = build_on(party.model.build, "cpu")
    load_state(module, party.tensors)
    return module.to(device).eval().requires_grad_(False)


class _deterministic:
    """Deterministic algorithms inside, where there are any."""

    def __enter__(self) -> None:
        self.before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self.before[0], warn_only=self.before[1])
