"""What everybody needs who runs a network: a device, one thread, a module by its path, hooks, and readable errors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from netgraft.errors import ForwardError, NetgraftError, UsageError
from netgraft.models.construct import brief, user_line
from netgraft.models.model import Model

ANOTHER_SIZE = "If the images are of a size it does not take, add --input-size C,H,W."


def find_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA where there is one, else the CPU. Raises UsageError for a bad one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # an unknown name, or torch built without it
        what = f"The device {name!r} cannot be used."
        raise UsageError(what, where=str(error).splitlines()[0], hint="For example --device cpu.") from error
    return torch.device(name)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside, whatever the machine has: more cut loops and sums elsewhere, which may change last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def find_submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module of a layer; "(model)" is the whole. None for a layer that is a parameter used directly."""
    try:
        return module if path == "(model)" else module.get_submodule(path)
    except AttributeError:
        return None


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], *, assign: bool = False) -> None:
    """The module with these tensors, which are those of its own version: nothing in them is to be converted.

    A plain dict of tensors lacks the versions of a state_dict, and modules that have changed since their first version
    take it for an old one, or refuse it. What is no tensor may be missing.
    """
    state = OrderedDict(tensors)
    state._metadata = getattr(module.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    module.load_state_dict(state, strict=False, assign=assign)


@contextmanager
def hearing_outputs(modules: Mapping[str, nn.Module], hear: Callable[[str, nn.Module, Any], Any]) -> Iterator[None]:
    """Meanwhile ``hear(name, module, output)`` is called when one of these has run.

    What it returns takes the output's place, unless it is None.
    """
    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: hear(name, module, output))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def hearing_inputs(
    modules: Mapping[str, nn.Module], hear: Callable[[str, tuple[Any, ...], dict[str, Any]], None]
) -> Iterator[None]:
    """Meanwhile ``hear(name, args, kwargs)`` is called before one of these runs."""
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: hear(name, args, kwargs),
            with_kwargs=True,
        )
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def forward(
    module: nn.Module,
    images: Tensor,  # [N, C, H, W], on the module's device
    model: Model,  # what the module was built from
    hint: str = ANOTHER_SIZE,
) -> Any:
    """What the network makes of images. Raises ForwardError, with the line in the user's file, where it fails."""
    try:
        return module(images)
    except NetgraftError:
        raise
    except Exception as error:  # it is the user's code that runs
        shape = "x".join(map(str, images.shape))
        raise ForwardError(
            f"{model.name} failed on images of shape {shape}: {brief(error)}",
            where=user_line(error, model.file),
            hint=hint,
        ) from error
