"""What a frozen network makes of images: the input of its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from netgraft.architecture.graph import Layer, LayerGraph
from netgraft.errors import NonFiniteWeights, UsageError
from netgraft.models.batch_norm import batch_norms, recalibrating
from netgraft.models.fit import nonfinite
from netgraft.models.model import Model
from netgraft.models.running import find_submodule, forward, hearing_inputs, load_state
from netgraft.trace.structure import tensors_in


class Images(Protocol):
    """Normalised images, or what else a network takes."""

    def __len__(self) -> int: ...
    def batch(self, indices: Sequence[int]) -> Tensor: ...  # [n, ...], those with these numbers


class Observed(NamedTuple):
    """What was seen of a network while it ran."""

    features: Tensor  # [N, p] float32 on the CPU
    answers: Tensor | None  # [N, k]; None where the first output is no such tensor


class FrozenNetwork:
    """A network that does not train, and the heads whose input is taken as its features."""

    def __init__(
        self, model: Model, graph: LayerGraph, tensors: Mapping[str, Tensor], device: torch.device | str, batch: int
    ) -> None:
        """``tensors`` are the whole state_dict. Raises UsageError where no head can be watched."""
        self.model, self.device, self.size = model, device, batch
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            self.module = model.build()
        self.load(tensors)
        self.module.to(device).eval().requires_grad_(False)
        self.heads = [(layer, self._find(layer)) for layer in graph.heads()]
        if not self.heads:
            raise UsageError(f"{model.name} has no layer before its output.", hint="A network with a head is needed.")

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take these tensors, the whole state_dict."""
        load_state(self.module, tensors)

    def recalibrate(self, pixels: Images) -> int:
        """Set the running statistics of every BatchNorm to their mean over batches of these images; how many it has.

        Labels are not used. The order is drawn, so that each batch has all classes; batches differ by one at most.
        """
        if not batch_norms(self.module):
            return 0
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
        with recalibrating(self.module) as norms:
            for indices in order.tensor_split(-(-len(pixels) // self.size)):
                self._forward(pixels.batch(indices.tolist()))
        return len(norms)

    def features(self, pixels: Images) -> Tensor:  # [N, p] float32 on the CPU
        """What the heads read, side by side; feature maps and tokens are averaged over their places."""
        return self.observe(pixels).features

    def observe(self, pixels: Images, *, outputs: bool = False) -> Observed:
        """The features, and the answers; with ``outputs`` what the network gives, pooled, is a feature too."""
        found: list[Tensor] = []
        answers: list[Tensor] = []
        seen: list[Tensor | None] = [None] * len(self.heads)

        def watch(number: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given, index = next((t for t in tensors_in((args, kwargs)) if t.is_floating_point()), None), int(number)
            if seen[index] is None and given is not None:
                seen[index] = pooled(given, self.heads[index][0]).float().cpu()

        with hearing_inputs({str(i): module for i, (_, module) in enumerate(self.heads)}, watch):
            for indices in torch.arange(len(pixels)).split(self.size):
                seen[:] = [None] * len(seen)
                given = [each.float() for each in tensors_in(self._forward(pixels.batch(indices.tolist())))]
                given = [each.cpu() for each in given if each.dim() > 1 and len(each) == len(indices)]
                answers += [each for each in given[:1] if each.dim() == 2]
                read = [part for part in seen if part is not None]
                if len(read) != len(seen) or any(len(part) != len(indices) for part in read):
                    what = f"The head of {self.model.name} reads no features of each image."
                    raise UsageError(what, where=", ".join(layer.name for layer, _ in self.heads))
                found.append(torch.cat([*read, *(map(_pooled_output, given) if outputs else ())], 1))
        result = torch.cat(found)
        if nonfinite({"features": result}):
            raise NonFiniteWeights(f"The features of {self.model.name} hold NaN or infinity.")
        return Observed(result, torch.cat(answers) if len(answers) == len(found) else None)

    def _find(self, layer: Layer) -> nn.Module:
        found = find_submodule(self.module, layer.name)
        if found is None:
            what = f"The head of {self.model.name} is no module of its own, so that what it reads cannot be seen."
            raise UsageError(what, where=layer.name, hint="Make it a torch.nn.Linear.")
        return found

    def _forward(self, images: Tensor) -> Any:
        with torch.no_grad():
            return forward(self.module, images.to(self.device), self.model)


def pooled(given: Tensor, layer: Layer) -> Tensor:  # [n, p]
    """One vector per image: the mean over all axes but the batch's and the channels'."""
    axis = layer.out_axis
    if given.dim() < 2:
        return given.reshape(len(given), -1) if given.dim() else given.reshape(1, 1)
    given = given.movedim(axis, -1)
    return given.flatten(1, -2).mean(1) if given.dim() > 2 else given


def _pooled_output(given: Tensor) -> Tensor:  # [n, p]
    """An output without a layer to ask: channels lie along axis 1 of a map, and last among tokens."""
    return given.mean(1) if given.dim() == 3 else given.flatten(2).mean(2) if given.dim() > 3 else given
