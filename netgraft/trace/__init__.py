"""Turns an architecture into a ``LayerGraph`` by watching one forward pass.

Rungs, tried in order: a forward pass on the meta device, where nothing is computed or allocated; then one on real CPU
values, for models whose control flow depends on data.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from netgraft.graph import LayerGraph
from netgraft.trace.recorder import Recorder
from netgraft.trace.reduce import not_layers, reduce_graph

Inputs = tuple[Any, ...]


def record(build: Callable[[], nn.Module], inputs: Inputs, device: str) -> tuple[fx.Graph, nn.Module]:
    """One forward pass of a fresh model on ``device``, as an fx graph, and the model.

    ``inputs`` are the arguments of ``forward``: any structure of tensors; they are moved to ``device``.
    """
    graph, module = _record_once(build, inputs, device, frozenset())
    if loose := not_layers(graph, module):
        graph, module = _record_once(build, inputs, device, loose)
    return graph, module


def trace_on(build: Callable[[], nn.Module], inputs: Inputs, device: str) -> LayerGraph:
    """The layer graph seen in one forward pass on ``device`` ("meta" or "cpu")."""
    graph, module = record(build, inputs, device)
    return reduce_graph(graph, module, rung=device)


def _record_once(
    build: Callable[[], nn.Module], inputs: Inputs, device: str, ungrouped: frozenset[str]
) -> tuple[fx.Graph, nn.Module]:
    with torch.device(device):
        module = build()  # a fresh one: some models keep tensors of an earlier forward pass
    module.eval().requires_grad_(False)
    leaves, structure = tree_flatten(inputs)
    recorder = Recorder(module, ungrouped)
    names = (f"input_{i}" if i else "input" for i in itertools.count())
    leaves = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            recorder.placeholder(next(names), leaf)
    with torch.no_grad(), _no_fast_paths(), torch.random.fork_rng(devices=[]), recorder.recording():
        result = module(*tree_unflatten(leaves, structure))
    recorder.finish(result)
    return recorder.graph, module


@contextmanager
def _no_fast_paths() -> Iterator[None]:
    """Without the fused transformer kernels, which take a whole block's weights in one operation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
