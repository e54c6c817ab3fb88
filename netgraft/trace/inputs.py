"""What a forward pass is fed: what the model's author says, else the first guess that fits."""

from __future__ import annotations

import dataclasses
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from netgraft.trace.structure import dashed, map_tensors, tensors_in

IMAGE_SIZES = (224, 32, 64, 28, 96, 128, 16, 48, 256, 299, 384, 512, 8)
SIGNAL_SIZES = (224, 16, 64, 128, 1024, 4096, 16000)
VOLUME_SIZES = ((16, 112, 112), (16, 16, 16), (32, 32, 32), (8, 64, 64))
TOKENS = (16, 128)


class Traceable(Protocol):
    """What tracing needs to know of a model; ``netgraft.models`` makes such objects."""

    @property
    def name(self) -> str: ...
    @property
    def build(self) -> Callable[[], nn.Module]: ...  # a fresh module on the default device
    @property
    def input_size(self) -> tuple[int, ...] | None: ...  # without the batch axis
    @property
    def example_inputs(self) -> Callable[[], Any] | None: ...  # a tensor, a tuple, or a dict of keyword arguments
    @property
    def file(self) -> Path | None: ...  # the user's file, if there is one


@dataclass(frozen=True)
class Example:
    """The arguments of one forward pass."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    guessed: tuple[int, ...] = ()  # the size netgraft chose, without the batch axis

    def on(self, device: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies of the arguments on ``device``: a forward pass may write into its input."""

        def copy(tensor: Tensor) -> Tensor:
            return torch.empty_like(tensor, device=device) if device == "meta" else tensor.detach().clone()

        return map_tensors(copy, self.args), map_tensors(copy, dict(self.kwargs))

    def __str__(self) -> str:
        shapes = [dashed(t.shape) for t in tensors_in((self.args, dict(self.kwargs)))]
        return " and ".join(shapes) or "no tensors"


def given_examples(model: Traceable) -> list[Example]:
    """What ``example_inputs()`` of the user's file returns; empty without such a function."""
    if model.example_inputs is None:
        return []
    with fixed_chance():
        given = model.example_inputs()
    if isinstance(given, Example):
        return [given]
    if isinstance(given, Mapping):
        return [Example((), {str(key): value for key, value in given.items()})]
    return [Example(tuple(given) if type(given) in (tuple, list) else (given,))]


def examples_for(model: Traceable, module: nn.Module, batches: tuple[int, ...] = (2, 1)) -> Iterator[Example]:
    """Inputs to try in turn: of the given size, else of sizes that ``module``'s first layer suggests.

    A forward pass that needs several inputs gets equal ones.
    """
    count = max(len(needed_inputs(module)), 1)
    guesses = [model.input_size] if model.input_size else list(_guess_sizes(module))
    for batch in batches:
        for size in guesses:
            for make in _makers(module):
                with fixed_chance():
                    tensor = make((batch, *size))
                yield Example((tensor,) * count, guessed=() if model.input_size else tuple(size))


@contextmanager
def fixed_chance() -> Iterator[None]:
    """Random numbers start from a fixed seed inside, and go on as before afterwards."""
    before = random.getstate()
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        torch.default_generator.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(before)


def needed_inputs(module: nn.Module) -> list[str]:
    """Names of the arguments ``forward`` cannot do without."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (ValueError, TypeError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in kinds and p.default is p.empty]


def _makers(module: nn.Module) -> list[Callable[[tuple[int, ...]], Tensor]]:
    """Ways to fill a shape: real numbers, and token numbers if there is an embedding (first, if it comes first)."""
    embeddings = [m for m in module.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    if not embeddings:
        return [torch.randn]
    tokens = min(m.num_embeddings for m in embeddings)

    def token_numbers(shape: tuple[int, ...]) -> Tensor:
        return torch.randint(max(tokens, 1), shape)

    first = isinstance(_first_layer(module), (nn.Embedding, nn.EmbeddingBag))
    return [token_numbers, torch.randn] if first else [torch.randn, token_numbers]


def _first_layer(module: nn.Module) -> nn.Module | None:
    """The first module in order of registration that holds a layer's weight."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.Embedding, nn.EmbeddingBag)
    attention = (nn.MultiheadAttention, nn.modules.batchnorm._NormBase, nn.LayerNorm)
    return next((m for m in module.modules() if isinstance(m, kinds + attention)), None)


def _guess_sizes(module: nn.Module) -> Iterator[tuple[int, ...]]:
    first = _first_layer(module)
    match first:
        case nn.modules.conv._ConvNd():
            channels = first.in_channels or 3  # lazy ones do not know yet
            yield from _sizes_of_rank(channels, len(first.kernel_size))
        case nn.Linear():
            features = first.in_features or 64
            yield from ((features,), *((n, features) for n in TOKENS))
            for channels in (3, 1):  # an image that forward flattens, or cuts into patches
                side = round((features / channels) ** 0.5)
                if channels * side * side == features:
                    yield (channels, side, side)
                    yield (channels, 224, 224)
            yield from ((features, side, side) for side in (32, 7, 14))
        case nn.RNNBase():
            yield from ((n, first.input_size) for n in TOKENS)
        case nn.RNNCellBase():
            yield (first.input_size,)
        case nn.MultiheadAttention():
            yield from ((n, first.embed_dim) for n in TOKENS)
        case nn.Embedding() | nn.EmbeddingBag():
            yield from ((n,) for n in TOKENS)
            yield ()
        case nn.BatchNorm1d() | nn.InstanceNorm1d():
            yield (first.num_features,)
            yield from _sizes_of_rank(first.num_features, 1)
        case nn.BatchNorm3d() | nn.InstanceNorm3d():
            yield from _sizes_of_rank(first.num_features, 3)
        case nn.modules.batchnorm._NormBase():
            yield from _sizes_of_rank(first.num_features, 2)
        case nn.LayerNorm():
            shape = tuple(first.normalized_shape)
            yield from (shape, *((n, *shape) for n in TOKENS))
        case _:
            yield from _sizes_of_rank(3, 2)
            yield from _sizes_of_rank(1, 2)
            yield from ((n,) for n in (64, 784, 128, 10))


def _sizes_of_rank(channels: int, rank: int) -> Iterator[tuple[int, ...]]:
    if rank == 1:
        yield from ((channels, length) for length in SIGNAL_SIZES)
    elif rank == 2:
        yield from ((channels, side, side) for side in IMAGE_SIZES)
    else:
        yield from ((channels, *volume) for volume in VOLUME_SIZES)
