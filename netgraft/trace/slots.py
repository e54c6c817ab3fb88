"""Which tensors of the state_dict there are, and which of them belong to one module."""

from __future__ import annotations

from math import prod

import torch
from torch import nn

from netgraft.architecture.graph import Shape, Slot
from netgraft.architecture.kinds import Role, kind_named
from netgraft.trace.written_norms import written_norm

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
"""Modules of which one call is one layer, though they own several kernels."""


def state_slots(module: nn.Module) -> tuple[dict[str, Slot], dict[str, str]]:
    """The tensors of the state_dict by their first key, and for every key the first key of the same tensor."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    canonical: dict[str, str] = {}
    state = {k: v for k, v in module.state_dict(keep_vars=True).items() if isinstance(v, torch.Tensor)}
    for key, tensor in state.items():
        canonical[key] = first.setdefault(id(tensor), key)
        names.setdefault(canonical[key], []).append(key)
    parameters = {id(parameter) for parameter in module.parameters()}
    slots = {
        key: Slot(
            key,
            tuple(state[key].shape),
            str(state[key].dtype).removeprefix("torch."),
            id(state[key]) not in parameters,
            tuple(aliases[1:]),
        )
        for key, aliases in names.items()
    }
    return slots, canonical


def own_keys(root: nn.Module, path: str) -> list[tuple[str, str]]:
    """(role, key) of the tensors that belong to the module at ``path`` alone, parametrizations included."""
    module = root.get_submodule(path)
    prefix = f"{path}." if path else ""
    names = [name for name, _ in module.named_parameters(recurse=False)]
    names += [name for name, _ in module.named_buffers(recurse=False)]
    for name, child in module.named_children():
        if name == "parametrizations":
            names += [f"{name}.{n}" for n in child.state_dict()]
    return [(name, prefix + name) for name in names]


def has_parametrised_child(root: nn.Module, path: str) -> bool:
    children = root.get_submodule(path).named_children()
    return any(name != "parametrizations" and any(True for _ in child.parameters()) for name, child in children)


def weight_shape(tensors: dict[str, Slot], kind: str) -> Shape:
    """Shape of the tensor that is the layer's weight: named so, else the one of the highest rank."""
    if "weight" in tensors:
        return tensors["weight"].shape
    norm = kind_named(kind).role is Role.NORM
    candidates = [slot.shape for slot in tensors.values() if not slot.buffer or norm]
    return max(candidates, key=lambda shape: (len(shape), prod(shape)), default=())


def own_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """(name, parameter) of the parameters that belong to ``module`` alone, parametrizations included."""
    own = list(module.named_parameters(recurse=False))
    parametrizations = module._modules.get("parametrizations")
    if parametrizations is not None:
        own += [(f"parametrizations.{name}", p) for name, p in parametrizations.named_parameters()]
    return own


def is_one_layer(module: nn.Module) -> bool:
    """Whether one call of ``module`` may be one layer: it owns parameters, at most one kernel, and no child owns any.

    Parametrizations (weight norm, spectral norm) are part of the layer. A module with several kernels of its own runs
    several layers, unless it is recurrent: one call of an RNN is one layer. A norm that has statistics only is one too.
    """
    own = own_parameters(module)
    if not own:
        statistics = isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None
        return statistics or written_norm(module) is not None
    for name, child in module.named_children():
        if name != "parametrizations" and next(child.parameters(), None) is not None:
            return False
    if isinstance(module, RECURRENT) or "parametrizations" in module._modules:
        return True
    return sum(sum(n > 1 for n in p.shape) >= 2 for _, p in own) <= 1
