"""Where to look at what a layer leads to: the module that puts out its value after norm, addition and activation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from netgraft.architecture.endings import Ending, find_endings
from netgraft.architecture.operations import ACTIVATES
from netgraft.errors import TraceError
from netgraft.finetune.toolbox.taps import first_tensor
from netgraft.models.running import hearing_outputs
from netgraft.trace.replay import Replay

CLOSE = 1e-5
"""Largest difference, relative to the largest value, of two results of one computation."""


class _NoCopy(Exception):
    """The network cannot be copied."""


@torch.no_grad()
def places(module: nn.Module, images: Tensor, layers: Iterable[str]) -> dict[str, str]:
    """For each layer the module whose output is the value that its branch ends in.

    A convolution's own output says little where a norm follows, and an addition after that (``architecture.endings``).
    Without such a module that is the layer itself, but for a branch that is added to something: it is left out. Of
    several modules that put out the same the first to do so is taken, and none that runs more than once. A copy with
    other weights runs twice, so that no two values are equal by chance, or because blocks begin as identities.
    """
    layers = list(dict.fromkeys(layers))
    try:
        copy = _stirred(module)
        ends, wanted = _values(copy, images, layers)
        outputs = _outputs(copy, images)
    except (TraceError, _NoCopy):
        return {layer: layer for layer in layers}
    found = {}
    for layer in layers:
        matching = (name for value in wanted.get(layer, ()) for name in outputs if _same(outputs[name], value))
        added = layer in ends and ends[layer].add is not None
        if (place := next(matching, None if added else layer)) is not None:
            found[layer] = place
    return found


def _stirred(module: nn.Module) -> nn.Module:
    """A copy in eval mode whose norms and layer scales let everything through, with both signs before activations."""
    try:
        copy = deepcopy(module).eval()
    except (RuntimeError, TypeError, NotImplementedError) as error:  # weights that are computed from others, say
        raise _NoCopy from error
    generator = torch.Generator().manual_seed(0)
    for parameter in copy.parameters():
        if parameter.is_floating_point() and parameter.dim() == 1:
            sizes, signs = torch.rand(2, *parameter.shape, generator=generator)
            parameter.copy_(((0.5 + sizes) * (signs - 0.5).sign()).to(parameter))
    return copy


def _values(
    module: nn.Module, images: Tensor, layers: Iterable[str]
) -> tuple[dict[str, Ending], dict[str, list[Tensor]]]:
    """What each layer's branch ends in: behind the activation, where one follows, then before it."""
    replay = Replay(module, images)
    graph, endings = replay.graph, find_endings(replay.graph)
    found: dict[str, list[Tensor]] = {}
    wanted: dict[Any, list[tuple[str, int]]] = {}
    for layer in layers:
        if layer in endings:
            end = endings[layer].node
            behind = [id for id in graph.readers[end] if graph.by_id[id].op in ACTIVATES]
            for rank, id in enumerate([*behind[:1], end]):
                wanted.setdefault(replay.ends[id], []).append((layer, rank))
    kept: dict[tuple[str, int], Tensor] = {}

    def keep(places: list[tuple[str, int]], value: Any) -> None:
        for place in places:
            kept[place] = value.clone()  # what follows may work in place

    replay.watch({node: partial(keep, at) for node, at in wanted.items()})
    for layer, rank in sorted(kept, key=lambda place: place[1]):
        found.setdefault(layer, []).append(kept[layer, rank])
    return endings, found


def _outputs(module: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The outputs of the modules that run once, in the order in which they are done."""
    found: dict[str, Tensor] = {}
    runs: Counter[str] = Counter()

    def keep(name: str, _: nn.Module, output: Any) -> None:
        runs[name] += 1
        if isinstance(output, (Tensor, list, tuple, dict)):
            found[name] = first_tensor(output).clone()

    with hearing_outputs({name: part for name, part in module.named_modules() if name}, keep):
        module(images)
    return {name: output for name, output in found.items() if runs[name] == 1}


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs are one value, in whatever shape: tokens may come as maps."""
    if one.numel() != other.numel():
        return False
    one, other = one.flatten(), other.flatten()
    return bool((one - other).abs().max() <= CLOSE * other.abs().max())
