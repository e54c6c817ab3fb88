"""Networks that the measurements look at: a reference with its own weights, random ones, or a checkpoint's."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from netgraft.data.decode import as_array, read_picture
from netgraft.evidence.features import FrozenNetwork
from netgraft.evidence.recorded import choose_normalisation
from netgraft.models.model import load_model, read_weights
from netgraft.models.normalisation import Normalisation
from netgraft.models.side import own_weights
from netgraft.trace import trace

RANDOM, OWN = "random", "own"
"""In place of a checkpoint: random weights, and those that belong to the name."""


class Pictures:
    """Files as a network of some input size reads them."""

    def __init__(self, files: Sequence[Path], size: tuple[int, ...], normalisation: Normalisation) -> None:
        self.files, self.size, self.normalisation = files, size, normalisation

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Sequence[int]) -> Tensor:  # [n, C, H, W]
        arrays = [as_array(read_picture(self.files[i], max(self.size[1:])), self.size) for i in indices]
        return self.normalisation(torch.stack([torch.from_numpy(array) for array in arrays]).float() / 255)


class Network:
    """A frozen network as it was written: no statistic is estimated again, and images have its own size."""

    def __init__(
        self,
        target: str,
        weights: str,  # a checkpoint's path, ``random`` or ``own``
        *,
        args: Mapping[str, object] | None = None,
        size: tuple[int, ...] | None = None,
        source: str | None = None,  # whose normalisation random weights are given
        device: str = "cpu",
    ) -> None:
        file = None if weights in (RANDOM, OWN) else Path(weights)
        role = "source" if weights == OWN else "target"
        self.model = load_model(target, role=role, args=args, input_size=size, weights_file=file)
        others = [load_model(source, role="source")] if source else []
        self.normalisation = choose_normalisation(self.model, [file] if file else [], others)
        self.name, self.weights, self.device = target, file.name if file else weights, device
        if self.model.input_size is None:
            raise SystemExit(f"The input size of {target} is not known: add --input-size C,H,W.")
        self.size = self.model.input_size

    def observe(self, files: Sequence[Path]) -> tuple[Tensor, Tensor | None]:
        """The last features [n, p] and the answers [n, k] of pictures, in their order."""
        if self.weights == RANDOM:
            tensors, _ = own_weights(self.model, 0, allow_nonfinite=False)
        else:
            tensors = read_weights(self.model).tensors
        net = FrozenNetwork(self.model, trace(self.model), tensors, self.device, 16)
        seen = net.observe(Pictures(files, self.size, self.normalisation))
        return seen.features, seen.answers


def typed(options: argparse.Namespace) -> Iterator[Network]:
    """The networks that a command line names: a target with each of the given weights."""
    for weights in options.weights:
        yield Network(
            options.target,
            weights,
            args=arguments(options.target_arg),
            size=sides(options.input_size),
            source=options.source,
            device=options.device,
        )


def arguments(given: Sequence[str]) -> dict[str, object]:
    """``NAME=VALUE`` as netgraft's ``--target-arg`` has them: a Python literal, else text."""
    found: dict[str, object] = {}
    for each in given:
        name, _, text = each.partition("=")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def sides(text: str | None) -> tuple[int, ...] | None:
    """``3,96,96``."""
    return tuple(int(part) for part in text.split(",")) if text else None


def file_name(target: str, weights: str) -> str:
    """Of the record of a measurement."""
    return "_".join("".join(c if c.isalnum() or c in "-." else "-" for c in part) for part in (target, weights))
