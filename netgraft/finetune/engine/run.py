"""What a method sees of the engine: passes of the networks, collectives, snapshots."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from netgraft.architecture.graph import LayerGraph
from netgraft.errors import UnknownName, UsageError
from netgraft.finetune.engine.cache import FeatureCache
from netgraft.finetune.engine.loader import Loader, to_device
from netgraft.finetune.engine.loss_scale import LossScale, scaled_gradients
from netgraft.finetune.engine.meters import Meters
from netgraft.finetune.engine.parts import eval_mode
from netgraft.finetune.engine.processes import Processes
from netgraft.finetune.protocol import Batch, FeaturePair, Need, Outputs, Part
from netgraft.finetune.toolbox.random_numbers import RunNumbers
from netgraft.finetune.toolbox.taps import Taps
from netgraft.finetune.toolbox.terms import binary_cross_entropy, cross_entropy
from netgraft.finetune.toolbox.triplet import TripletLoss


@dataclass
class SourceNet:
    """The frozen source, and how the target's images become its own."""

    module: nn.Module
    adapt: Callable[[Tensor], Tensor]  # channels, normalisation and size
    cache: FeatureCache | None = None
    last: str = ""  # the paired layer that runs last: a pass without logits may stop there; empty: it may not
    compiled: bool = False


@dataclass
class LiveRun:
    """``protocol.Run``, as the engine keeps it up to date. Everything else about it is in the protocol."""

    target_module: nn.Module
    processes: Processes
    classes: int
    epochs: int
    steps: int
    seed: int = 0
    source_classes: int = 0
    multilabel: bool = False
    smoothing: float = 0.0
    loader: Loader | None = None
    triplet: TripletLoss | None = None  # a part of the task's loss
    most: int | None = None  # batches of a pass over every image; None: all. For counting what one costs
    precision: torch.dtype | None = None  # of autocast; None: as the weights are
    loss_scale: LossScale | None = None  # with float16
    channels_last: bool = False
    net: SourceNet | None = None
    pairs: tuple[FeaturePair, ...] = ()
    needs: frozenset[Need] = frozenset()
    find_graph: Callable[[], LayerGraph] = lambda: LayerGraph((), {})
    find_source_heads: Callable[[], tuple[str, ...]] = tuple
    find_transferred: Callable[[], frozenset[str]] = frozenset
    epoch: int = 0
    step: int = 0
    meters: Meters = field(default_factory=Meters)
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    parts: Mapping[str, Part] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.numbers = RunNumbers(self.device)
        self.moved = False  # whether the target may have left theta^0
        self._moment = ""
        self._target_taps = Taps(self.target_module, [pair.target for pair in self.pairs])
        net, layers = self.net, [pair.source for pair in self.pairs]
        self._source_taps = Taps(net.module, layers, compiled=net.compiled) if net else None
        self._current: Batch | None = None
        self._owned = False
        self._seen: dict[int, tuple[Batch, Outputs]] = {}  # the batch too: no other can have its id meanwhile

    @property
    def source_module(self) -> nn.Module | None:
        return self.net.module if self.net else None

    @property
    def device(self) -> torch.device:
        return self.processes.device

    @property
    def rank(self) -> int:
        return self.processes.rank

    @property
    def world(self) -> int:
        return self.processes.world

    @property
    def start(self) -> Mapping[str, Tensor]:
        return self._start[0]

    @property
    def start_buffers(self) -> Mapping[str, Tensor]:
        return self._start[1]

    @cached_property
    def _start(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The engine asks for it before the first step if the method needs it, also when it resumes."""
        if self.moved:
            what = "The method asks for the weights before training when they have moved."
            raise UsageError(what, hint="Let its needs have Need.START: they are copied then.")
        module = self.target_module
        parameters = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        return parameters, {name: buffer.detach().clone() for name, buffer in module.named_buffers()}

    @cached_property
    def source_parameters(self) -> Mapping[str, Tensor]:
        net = self._source_net()
        self._check_source_gradients()
        return {name: p.detach().clone().requires_grad_() for name, p in net.module.named_parameters()}

    @cached_property
    def graph(self) -> LayerGraph:
        return self.find_graph()

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.graph.heads())

    @cached_property
    def source_heads(self) -> tuple[str, ...]:
        return self.find_source_heads()

    @cached_property
    def transferred(self) -> frozenset[str]:
        return self.find_transferred()

    # ------------------------------------------------------------------------------------------------------ passes

    def begin(self, batch: Batch) -> None:
        """A new batch: its first pass is the training's own, and nothing of the source is known."""
        self._current, self._owned, self._seen, self.moved = batch, False, {}, True
        self.at("")

    def begin_extra(self, number: int) -> None:
        """A batch before the training, the ``number``-th: none of its passes is the training's own."""
        self._current, self._owned, self._seen = None, False, {}
        self.at(f"before {number}")

    def at(self, moment: str) -> None:
        """What is drawn from now on, other than by the run's own passes, depends on this moment; "" is the step."""
        self._moment = moment
        torch.manual_seed(self._number(f"process {self.rank}"))

    def target(
        self,
        x: Batch | Tensor,
        *,
        params: Mapping[str, Tensor] | None = None,
        train: bool = True,
        stats: bool | None = None,
        draw: bool | None = None,
        until: str | None = None,
    ) -> Outputs:
        if until is not None and until not in self._target_taps.layers:
            raise UnknownName("paired layer", until, self._target_taps.layers)
        if stats is None:
            stats = params is None and train and x is self._current and not self._owned
        if stats and not train:
            raise UsageError("A pass in eval mode updates no statistics.", hint="Leave out stats=True or train=False.")
        self._owned = self._owned or stats
        module, given = self.target_module, dict(params or {})
        for name, buffer in module.named_buffers():
            if not stats or name in given:  # the pass updates clones
                given[name] = given.get(name, buffer).clone()
        images = self._images(x)
        drawing = self.numbers.drawing() if (stats if draw is None else draw) else nullcontext()
        hearing: AbstractContextManager[dict[str, Tensor]] = nullcontext({})
        if self.triplet is not None:
            hearing = self.triplet.hearing(module)
        with self.autocast(), nullcontext() if train else eval_mode(module), drawing, hearing as heard:
            if given:
                seen = self._target_taps(lambda: functional_call(module, given, (images,)), last=until)
            else:
                seen = self._target_taps(lambda: module(images), last=until)
        return Outputs(seen.logits, {**seen.at, **heard}) if heard else seen

    def source(self, x: Batch | Tensor, *, logits: bool = True, params: Mapping[str, Tensor] | None = None) -> Outputs:
        net = self._source_net()
        if params is not None:
            return self._differentiable_source_pass(net, x, logits, params)
        _, known = self._seen.get(id(x), (None, None))
        if known is not None and (known.logits.shape[1] or not logits):
            return known
        seen = self._source_pass(net, x, logits)
        if isinstance(x, Batch):
            self._seen[id(x)] = x, seen
        return seen

    def _source_net(self) -> SourceNet:
        if self.net is None:
            raise UsageError("The method asks for a source and declares no need of one.", hint="Add --source REF.")
        return self.net

    def _source_pass(self, net: SourceNet, x: Batch | Tensor, logits: bool) -> Outputs:
        if net.cache is not None and isinstance(x, Batch) and (found := net.cache.read(x, logits)) is not None:
            return found
        with torch.no_grad():
            seen = self._run_source(net, x, logits, net.module)
        if net.cache is not None and isinstance(x, Batch):
            net.cache.write(x, seen)
        return seen

    def _differentiable_source_pass(
        self, net: SourceNet, x: Batch | Tensor, logits: bool, params: Mapping[str, Tensor]
    ) -> Outputs:
        """With other tensors in place of its own, so that nothing can reach these; neither remembered nor cached."""
        self._check_source_gradients()
        given = {name: buffer.clone() for name, buffer in net.module.named_buffers()} | dict(params)
        return self._run_source(net, x, logits, lambda images: functional_call(net.module, given, (images,)))

    def _run_source(self, net: SourceNet, x: Batch | Tensor, logits: bool, call: Callable[[Tensor], Any]) -> Outputs:
        assert self._source_taps is not None
        images = net.adapt(self._images(x))
        with self.autocast():
            return self._source_taps(lambda: call(images), last=None if logits or not net.last else net.last)

    def _check_source_gradients(self) -> None:
        if Need.SOURCE_GRADIENTS not in self.needs:
            what = "The method asks for gradients of the source and declares no need of them."
            raise UsageError(what, hint="Let its needs have Need.SOURCE_GRADIENTS.")

    def _images(self, x: Batch | Tensor) -> Tensor:
        images = x.x if isinstance(x, Batch) else x
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def task(self, seen: Outputs, batch: Batch, weights: Tensor | None = None) -> Tensor:
        if batch.y.dim() == 2:
            return binary_cross_entropy(seen.logits, batch.y, weights)
        loss = cross_entropy(seen.logits, batch.y, self.smoothing, weights)
        return loss if self.triplet is None else loss + self.triplet.loss(self, seen, batch)

    @property
    def sizes(self) -> Mapping[str, int]:
        return self._loader().sizes

    def every_image(self, data: str) -> Iterator[Batch]:
        for number, batch in enumerate(self._loader().every_image(data, self.epoch)):
            if number == self.most:
                return
            yield to_device(batch, self.device)

    def _loader(self) -> Loader:
        assert self.loader is not None, "the engine's runs have one"
        return self.loader

    def autocast(self) -> AbstractContextManager[object]:
        enabled = self.precision is not None
        return torch.autocast(self.device.type, dtype=self.precision or torch.bfloat16, enabled=enabled)

    # ------------------------------------------------------------------------------------------------- collectives

    def grad(self, loss: Tensor, wrt: Sequence[Tensor], *, keep: bool = False) -> tuple[Tensor, ...]:
        if self.loss_scale is not None:
            return scaled_gradients(loss, wrt, self.reduce, self.loss_scale.value)
        found = torch.autograd.grad(loss, list(wrt), retain_graph=keep, allow_unused=True)
        return self.reduce([torch.zeros_like(w) if g is None else g for w, g in zip(wrt, found, strict=True)])

    def reduce(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self.processes.mean(tensors)

    def gather(self, tensor: Tensor) -> Tensor:
        return self.processes.gather(tensor)

    def generator(self, tag: str) -> torch.Generator:
        return torch.Generator().manual_seed(self._number(tag))

    def random(self, batch: Batch, tag: str, *shape: int) -> Tensor:
        numbers = (self._number(f"{tag} {batch.data} {image}") for image in batch.ids.tolist())
        each = [torch.rand(shape, generator=torch.Generator().manual_seed(number)) for number in numbers]
        return torch.stack(each).to(batch.x.device)

    def _number(self, tag: str) -> int:
        return zlib.crc32(f"{self.seed} {self._moment or self.step} {tag}".encode())

    def note(self, name: str, value: Tensor | float) -> None:
        self.meters.add(name, value)

    # --------------------------------------------------------------------------------------------------- snapshots

    def optimizer(self, part: str) -> torch.optim.Optimizer:
        return self.optimizers[part]

    def snapshot(self, *parts: str) -> dict[str, Any]:
        return {
            name: (
                [p.detach().clone() for p in self.parts[name].module.parameters()],
                [b.detach().clone() for b in self.parts[name].module.buffers()],
                copy.deepcopy(self.optimizers[name].state_dict()) if name in self.optimizers else None,
            )
            for name in parts
        }

    @torch.no_grad()
    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, dict)
        for name, (parameters, buffers, optimizer) in snapshot.items():
            module = self.parts[name].module
            for mine, saved in zip((*module.parameters(), *module.buffers()), (*parameters, *buffers), strict=True):
                mine.copy_(saved)
            if optimizer is not None:
                self.optimizers[name].load_state_dict(copy.deepcopy(optimizer))
