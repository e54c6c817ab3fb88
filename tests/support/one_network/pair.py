"""A pair of implementations of one network, and the copy that proves that it is one."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

NETS = Path(__file__).parent / "nets"
State = dict[str, Tensor]
Truth = Callable[[nn.Module, nn.Module, Tensor | None], State]
"""(source, target, an input) -> what the target's tensors must be; buffers that carry nothing may be missing."""


@dataclass(frozen=True)
class Pair:
    """Two references that build one network, as ``netgraft transfer`` takes them."""

    name: str
    source: str
    target: str
    size: tuple[int, ...] | None  # of the input, without the batch axis; None: the file's example_inputs
    truth: Truth
    needs: tuple[str, ...] = ()  # modules to import beside netgraft's own dependencies
    source_args: Mapping[str, object] | None = None
    target_args: Mapping[str, object] | None = None

    @property
    def missing(self) -> list[str]:
        """The modules that are not installed here."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def net(file: str, name: str) -> str:
    """The reference of a factory in ``nets/``."""
    return f"{NETS / file}.py:{name}"


def pairs(file: str, size: tuple[int, ...], *rows: tuple[str, str, Truth]) -> list[Pair]:
    """One pair for each (source, target, truth) of a file in ``nets/``."""
    return [
        Pair(f"{source}->{target}", net(file, source), net(file, target), size, how) for source, target, how in rows
    ]


# ------------------------------------------------------------------------------------------------------------- truths


def in_order(source: nn.Module, target: nn.Module, _: Tensor | None) -> State:
    """The n-th number tensor goes to the n-th, reshaped: both register in one order."""
    given = list(_carrying(source).values())
    wanted = _carrying(target)
    if len(given) != len(wanted):
        raise ValueError(f"{len(given)} tensors, but {len(wanted)} to fill")
    return {key: _shaped(value, own) for (key, own), value in zip(wanted.items(), given, strict=True)}


def first_in_order(source: nn.Module, target: nn.Module, _: Tensor | None) -> State:
    """The same where the source has layers at its end that the target lacks and that it does not run."""
    wanted = _carrying(target)
    return {
        key: _shaped(value, own) for (key, own), value in zip(wanted.items(), _carrying(source).values(), strict=False)
    }


def renamed(
    *rules: tuple[str, str | Callable[[re.Match[str]], str]], then: Callable[[State], State] | None = None
) -> Truth:
    """Each (pattern, replacement) in turn on every key of the source; ``then`` turns what comes out into the rest."""

    def truth(source: nn.Module, target: nn.Module, _: Tensor | None) -> State:
        state: State = {}
        for key, value in source.state_dict().items():
            for pattern, replacement in rules:
                key = re.sub(pattern, replacement, key)
            state[key] = value
        state = state if then is None else then(state)
        own = target.state_dict()
        return {key: _shaped(value, own[key]) for key, value in state.items() if key in own}

    return truth


def as_executed(also: Mapping[str, str] | None = None) -> Truth:
    """The n-th layer that runs goes to the n-th; ``also`` names tensors outside of layers, target to source."""

    def truth(source: nn.Module, target: nn.Module, example: Tensor | None) -> State:
        if example is None:
            raise ValueError("an input is needed")
        state, own, found = source.state_dict(), target.state_dict(), {}
        given, wanted = (list(_executed(module, example)) for module in (source, target))
        if len(given) != len(wanted):
            raise ValueError(f"{len(given)} layers, but {len(wanted)} to fill")
        for old, new in zip(given, wanted, strict=True):
            for key in [key for key in own if key.rpartition(".")[0] == new]:
                found[key] = _shaped(state[f"{old}.{key.rpartition('.')[2]}"], own[key])
        for new_key, old_key in (also or {}).items():
            found[new_key] = _shaped(state[old_key], own[new_key])
        return found

    return truth


def _carrying(module: nn.Module) -> State:
    return {key: value for key, value in module.state_dict().items() if value.is_floating_point()}


def _shaped(value: Tensor, like: Tensor) -> Tensor:
    if value.numel() != like.numel():
        raise ValueError(f"{tuple(value.shape)} does not go into {tuple(like.shape)}")
    return value.reshape(like.shape)


def _executed(module: nn.Module, example: Tensor) -> Iterator[str]:
    """The layers that hold weights, in the order in which they first run."""
    order: dict[str, None] = {}
    handles = []
    for name, layer in module.named_modules():
        holds = isinstance(getattr(layer, "weight", None), Tensor)
        if holds and not any(child.state_dict() for child in layer.children()):
            handles.append(layer.register_forward_pre_hook(lambda _, __, name=name: order.setdefault(name)))
    with torch.no_grad():
        module.eval()(example)
    for handle in handles:
        handle.remove()
    return iter(order)
