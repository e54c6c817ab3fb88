"""One recorded forward pass."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from netgraft.architecture.graph import LayerGraph
from netgraft.trace.inputs import Example, fixed_chance
from netgraft.trace.recorder import Recorder
from netgraft.trace.reduce import reduce_graph
from netgraft.trace.shortcuts import Shortcuts
from netgraft.trace.structure import tensors_in


def trace_on(build: Callable[[], nn.Module], inputs: tuple[Any, ...] | Example, device: str) -> LayerGraph:
    """The layer graph seen in one forward pass of ``build()`` on ``device`` ("meta" or "cpu")."""
    graph, module = record(build, inputs, device)
    return reduce_graph(graph, module, rung=device)


def record(
    build: Callable[[], nn.Module],
    inputs: tuple[Any, ...] | Example,
    device: str,
    *,
    module: nn.Module | None = None,
    deadline: float | None = None,
) -> tuple[fx.Graph, nn.Module]:
    """One forward pass of a fresh model on ``device``, as an fx graph, and the model.

    ``inputs`` are the arguments of ``forward``: any structure of tensors; they are copied to ``device``. ``module`` may
    be a model that ``build`` just made. After ``deadline``, in terms of ``time.monotonic``, TimeoutError is raised.
    """
    example = inputs if isinstance(inputs, Example) else Example(inputs)
    module = (module or build_on(build, device)).eval()
    if any(is_lazy(p) for p in itertools.chain(module.parameters(), module.buffers())):
        run(module, example, device)  # lazy layers learn their shapes in a first pass
    module.requires_grad_(False)
    args, kwargs = example.on(device)
    recorder = Recorder(module, deadline)
    for i, tensor in enumerate(tensors_in((args, kwargs))):
        recorder.placeholder(f"input_{i}" if i else "input", tensor)
    with calm(device), recorder.recording():
        result = module(*args, **kwargs)
    recorder.finish(result)
    return recorder.graph, module


def build_on(build: Callable[[], nn.Module], device: str) -> nn.Module:
    """A fresh model on ``device``; the same one each time."""
    shortcuts = Shortcuts() if device == "meta" else None
    with torch.device(device), fixed_chance(), shortcuts or nullcontext():
        module = build()
    if shortcuts is not None and isinstance(module, nn.Module):
        shortcuts.fills.remember(module)
    return module


def run(module: nn.Module, example: Example, device: str) -> Any:
    """The result of a plain forward pass as the recorder does it."""
    args, kwargs = example.on(device)
    with calm(device):
        return module(*args, **kwargs)


@contextmanager
def calm(device: str) -> Iterator[None]:
    """How a forward pass runs: no gradients, no fast paths, fixed chance, no warnings, new tensors on ``device``."""
    with torch.no_grad(), _no_fast_paths(), fixed_chance(), warnings.catch_warnings(), torch.device(device):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _no_fast_paths() -> Iterator[None]:
    """Without the fused transformer kernels, which take a whole block's weights in one operation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
