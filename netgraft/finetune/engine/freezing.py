"""What of the target does not train: the layers next to the input, what came from a source, what is yet to thaw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from netgraft.architecture.chain import Chain, longest_chain
from netgraft.architecture.graph import LayerGraph
from netgraft.errors import UsageError
from netgraft.finetune.settings import TRANSFERRED, TrainingSettings

Names = frozenset[str]
"""Keys of the target's state_dict: parameters, and the statistics of norms."""


@dataclass(frozen=True)
class Freezing:
    """Which tensors stand still, as a function of the epoch: nothing to save.

    ``freeze``: those of the first layers of the longest chain and all that these depend on, or those that came from a
    source. ``unfreeze_every``: in the first so many epochs only the chain's last layer trains and what does not lead to
    it; then the layer before it too, and so on (gradual unfreezing; Howard and Ruder, ULMFiT, ACL 2018,
    where it is one layer an epoch).
    """

    freeze: str | None
    unfreeze_every: int | None
    find_graph: Callable[[], LayerGraph]
    find_transferred: Callable[[], Names]

    @classmethod
    def of(
        cls, settings: TrainingSettings, find_graph: Callable[[], LayerGraph], find_transferred: Callable[[], Names]
    ) -> Freezing:
        """Raises UsageError where nothing could be frozen, or nothing would train."""
        freezing = cls(settings.freeze, settings.unfreeze_every, find_graph, find_transferred)
        length = len(freezing.layers) if settings.freeze not in (None, TRANSFERRED) or settings.unfreeze_every else 0
        if settings.freeze == TRANSFERRED and not freezing.always:
            hint = "Add --init FILE, as netgraft transfer writes it."
            raise UsageError("Nothing of the target came from a source.", where="--freeze transferred", hint=hint)
        if settings.freeze not in (None, TRANSFERRED) and int(settings.freeze) >= length:
            what = f"The longest chain of the target has {length} layers: at most {length - 1} of them can be frozen."
            raise UsageError(what, where=f"--freeze {settings.freeze}")
        return freezing

    @cached_property
    def always(self) -> Names:
        """What never trains."""
        if self.freeze is None:
            return frozenset()
        return self.find_transferred() if self.freeze == TRANSFERRED else self._before(int(self.freeze))

    def at(self, epoch: int) -> Names:
        """What does not train in an epoch."""
        if self.unfreeze_every is None:
            return self.always
        trained = 1 + epoch // self.unfreeze_every
        return self.always | self._before(max(0, len(self.layers) - trained))

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The layers of the chain from the input on; what only scales its feature maps is not one."""
        return tuple(dict.fromkeys(self._chain.layers))

    @cached_property
    def _graph(self) -> LayerGraph:
        return self.find_graph()

    @cached_property
    def _chain(self) -> Chain:
        return longest_chain(self._graph, gates=False)

    def _before(self, count: int) -> Names:
        """All tensors that the input of the chain's layer number ``count``, from 0, depends on."""
        if count == 0:
            return frozenset()
        node = self._graph.by_id[self._chain.nodes[self._chain.layers.index(self.layers[count])]]
        found = {earlier.layer for earlier in self._graph.walk(node.inputs) if earlier.layer is not None}
        slots = [slot for name in found for slot in self._graph.layers[name].tensors.values()]
        return frozenset(key for slot in slots for key in slot.keys)


def freeze_names(module: nn.Module, frozen: Names) -> None:
    """No gradients for parameters with these names."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in frozen:
            parameter.requires_grad_(False)


def without(module: nn.Module, parameters: Iterable[nn.Parameter], frozen: Names) -> list[nn.Parameter]:
    """Those of the module's parameters that have no frozen name."""
    still = {id(p) for name, p in module.named_parameters(remove_duplicate=False) if name in frozen}
    return [parameter for parameter in parameters if id(parameter) not in still]


def still_norms(module: nn.Module, frozen: Names) -> None:
    """Eval mode for modules with statistics of their own, if all their weights are frozen, or these statistics."""
    for prefix, one in module.named_modules() if frozen else ():
        statistics = [name for name, buffer in one.named_buffers(recurse=False) if buffer.is_floating_point()]
        weights = [name for name, _ in one.named_parameters(recurse=False)]
        if statistics and all(f"{prefix}.{name}".lstrip(".") in frozen for name in weights or statistics):
            one.training = False
