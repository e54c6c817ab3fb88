"""What is known about the tensors that are alive: which operation each came from, and who wrote into its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn
from torch.utils.weak import WeakTensorKeyDictionary

from netgraft.trace.structure import tensors_in


@dataclass
class Producer:
    """Where a tensor came from; ``node`` is filled in when a group that is still running has ended."""

    node: fx.Node | None = None
    layer: bool = False  # a layer: what comes out is an activation, even where only parameters went in


@dataclass(frozen=True)
class Value:
    """What is known about a live tensor."""

    producer: Producer | None  # None: a constant the forward pass made, or a buffer
    output: int | None = None  # index where the producer returns several tensors
    params: frozenset[str] = frozenset()  # parameter keys, if computed from nothing but parameters and constants
    time: int = 0


_CONSTANT = Value(None)


class Flow:
    """Knowledge about tensors by their identity, and about in-place writes by the storage they change."""

    def __init__(self, module: nn.Module) -> None:
        self.values = WeakTensorKeyDictionary()
        self.writes: dict[int, list[Value]] = {}  # storage -> in-place writes to it, in order
        self.clock = 0
        self.parameter_keys = {id(p): key for key, p in module.named_parameters()}
        self.parameter_values = {id(p): Value(None, params=frozenset({key})) for key, p in module.named_parameters()}
        self.buffer_keys = {id(b): key for key, b in module.named_buffers()}

    def key(self, tensor: Tensor) -> str | None:
        """The name of a parameter or buffer."""
        return self.parameter_keys.get(id(tensor)) or self.buffer_keys.get(id(tensor))

    def value(self, tensor: Tensor) -> Value:
        """What is known about ``tensor``."""
        known = self.parameter_values.get(id(tensor))
        if known is not None:
            return known
        value: Value = self.values.get(tensor, _CONSTANT)
        if value.params and value.producer is not None and value.producer.layer:
            return replace(value, params=frozenset())
        return value

    def writers(self, tensor: Tensor, value: Value) -> list[Value]:
        """In-place writes to the tensor's storage since ``value`` was noted."""
        if not self.writes:
            return []
        return [w for w in self.writes.get(storage_of(tensor), ()) if w.time > value.time]

    def track(self, outputs: Sequence[Tensor], value: Value, inputs: Sequence[Tensor], several: bool = False) -> None:
        """Note that ``outputs`` are what an operation on ``inputs`` returned."""
        shared = {storage_of(tensor) for tensor in inputs} if self.writes else set()
        for index, tensor in enumerate(outputs):
            if id(tensor) in self.parameter_keys:
                continue  # `weight.detach_()` and the like: a parameter stays a parameter
            self.values[tensor] = replace(value, output=index) if several else value
            if self.writes and (storage := storage_of(tensor)) not in shared:
                self.writes.pop(storage, None)  # a new tensor where a freed one was

    def note_writes(self, schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any], value: Value) -> None:
        """Note what the operation with ``schema`` wrote into its arguments."""
        if not schema.is_mutable:
            return
        named = {a.name: given for a, given in zip(schema.arguments, args, strict=False)} | dict(kwargs)
        for argument in schema.arguments:
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for tensor in tensors_in(named.get(argument.name)):
                if id(tensor) not in self.parameter_keys:
                    self.values[tensor] = value
                    self.writes.setdefault(storage_of(tensor), []).append(value)

    def forget_writes(self, producer: Producer) -> None:
        """Take back the writes of ``producer``."""
        for storage, writes in self.writes.items():
            self.writes[storage] = [write for write in writes if write.producer is not producer]


def storage_of(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor, shared by its views (on the meta device too)."""
    return int(tensor.untyped_storage()._cdata)
