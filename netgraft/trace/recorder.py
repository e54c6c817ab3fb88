"""Watches one forward pass and writes down what happened, as a ``torch.fx.Graph``.

Symbolic tracing follows code; it stops at a shape-dependent ``if`` and hides what its leaf lists name. A recorder runs
the real forward pass (on the meta device it costs no arithmetic and no memory) and sees every ATen operation. It
groups operations into one node where a reader would: the call of a module that owns a kernel (``call_module``) and the
call of a function such as ``F.linear`` (``call_function``). Everything else is one node per ATen operation.

Data flow is recognised by tensor identity; in-place writes are found through the storage they change.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

GROUPED_FUNCTIONS = (
    *((F, name) for name in ("linear", "embedding", "interpolate", "scaled_dot_product_attention")),
    *((F, name) for name in ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")),
    *((space, f"conv{t}{n}d") for space in (F, torch) for t in ("", "_transpose") for n in (1, 2, 3)),
    (torch, "einsum"),
)
"""Functions recorded as one node instead of the operations they decompose into; calls go through these namespaces."""
MATRIX_PRODUCTS = ((torch, "matmul"), (Tensor, "matmul"), (Tensor, "__matmul__"), (Tensor, "__rmatmul__"))
"""Functions recorded as one node where a parameter is multiplied with something that is none."""

SHAPE_ONLY = frozenset(
    f"aten::{name}"
    for name in (
        *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like"),
        *("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"),
    )
)
"""Operations whose result does not depend on the values of their argument."""


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


@dataclass(frozen=True)
class Operand:
    """A tensor argument of an operation inside a group, as the classifier wants to see it."""

    shape: tuple[int, ...]
    params: frozenset[str]
    inside: bool  # made earlier in the same group
    flipped: bool  # a matrix whose columns, not rows, lie together in memory


@dataclass(frozen=True)
class Operation:
    """One ATen operation inside a group."""

    name: str
    operands: tuple[Operand, ...]
    args: tuple[Any, ...]  # tensors replaced by None
    shape: tuple[int, ...]


@dataclass
class Group:
    """A module or function call whose operations become one node."""

    kind: str  # "call_module" or "call_function"
    target: Any  # module path or function
    args: Any  # as they stand in the fx graph
    kwargs: Any
    in_shape: tuple[int, ...]
    producer: Producer = field(default_factory=Producer)
    inputs: dict[fx.Node, None] = field(default_factory=dict)  # what the operations read from outside, in order of use
    operations: list[Operation] = field(default_factory=list)


class Recorder(TorchDispatchMode):
    """Records the operations of ``module``'s forward pass into ``graph``."""

    def __init__(
        self, module: nn.Module, ungrouped: frozenset[str] = frozenset(), deadline: float | None = None
    ) -> None:
        super().__init__()
        self.deadline = deadline
        self.graph = fx.Graph()
        self.values = WeakTensorKeyDictionary()
        self.writes: dict[int, list[Value]] = {}  # storage -> in-place writes to it, in order
        self.group: Group | None = None
        self.clock = 0
        self.constants = WeakTensorKeyDictionary()
        self.paths = {id(m): path for path, m in module.named_modules()}
        self.grouped = {id(m) for path, m in module.named_modules() if path not in ungrouped and is_one_layer(m)}
        self.parameter_keys = {id(p): key for key, p in module.named_parameters()}
        self.buffer_keys = {id(b): key for key, b in module.named_buffers()}
        self.parameter_nodes: dict[str, fx.Node] = {}

    # -- what the caller does ------------------------------------------------------------------------------------

    def placeholder(self, name: str, tensor: Tensor) -> None:
        """Declare ``tensor`` an input of the model."""
        node = self.graph.placeholder(name)
        node.meta["shape"] = tuple(tensor.shape)
        self.values[tensor] = Value(Producer(node))

    def finish(self, result: Any) -> None:
        """Declare ``result``, any structure with tensors in it, the model's output."""
        self.graph.output(self._arguments(result))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record everything that runs inside."""
        original = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self.group is not None or id(module) not in self.grouped:
                return original(module, *args, **kwargs)
            return self.run_group("call_module", self.paths[id(module)], partial(original, module), args, kwargs)

        def grouped(function: Any, only_weights: bool = False) -> Any:
            @wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                if self.group is not None or (only_weights and not self._multiplies_weight(args)):
                    return function(*args, **kwargs)
                return self.run_group("call_function", function, function, args, kwargs)

            return call

        with ExitStack() as patches:
            patches.enter_context(patch(nn.Module, "__call__", call))
            for owner, name in (*GROUPED_FUNCTIONS, *MATRIX_PRODUCTS):
                only_weights = (owner, name) in MATRIX_PRODUCTS
                patches.enter_context(patch(owner, name, grouped(getattr(owner, name), only_weights)))
            with self:
                yield

    # -- groups --------------------------------------------------------------------------------------------------

    def run_group(self, kind: str, target: Any, function: Any, args: Any, kwargs: Any) -> Any:
        """Run ``function(*args, **kwargs)`` and record it as one node."""
        # Arguments are looked up first: an in-place operation inside the group would change what they stand for.
        self.group = group = Group(
            kind, target, self._arguments(args), self._arguments(kwargs), self._data_shape((args, kwargs))
        )
        try:
            result = function(*args, **kwargs)
        finally:
            self.group = None
        if group.operations:
            node = self.graph.create_node(kind, target, group.args, group.kwargs)
            self._annotate(node, group.inputs, group.operations, group.in_shape, result)
            outside = [operand.params for op in group.operations for operand in op.operands if not operand.inside]
            group.producer.layer = kind == "call_module" or not all(outside)
            group.producer.node = node
            node.meta["params"] = frozenset() if group.producer.layer else frozenset().union(*outside)
        return result

    def _data_shape(self, structure: Any) -> tuple[int, ...]:
        """Shape of the first tensor that is no parameter, () without one."""
        tensors = [leaf for leaf in tree_iter(as_plain(structure)) if isinstance(leaf, Tensor)]
        return next((tuple(t.shape) for t in tensors if not self._value(t).params), first_shape(tensors))

    def _annotate(
        self, node: fx.Node, inputs: Iterable[fx.Node], operations: list[Operation], in_shape: Any, result: Any
    ) -> None:
        seen = set(node.all_input_nodes)
        node.meta["hidden_inputs"] = [other for other in inputs if other not in seen]
        node.meta["operations"] = operations
        node.meta["in_shape"] = in_shape
        node.meta["shape"] = first_shape(result)

    def _multiplies_weight(self, args: Any) -> bool:
        weights = [bool(self._value(arg).params) for arg in args if isinstance(arg, Tensor)]
        return any(weights) and not all(weights)

    # -- operations ----------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.clock += 1
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise TimeoutError("the time limit of the forward pass ended")
        tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        inputs = [(tensor, self._value(tensor)) for tensor in tensors]
        deps = [(tensor, value, self._writers(tensor, value)) for tensor, value in inputs]
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_iter(result) if isinstance(leaf, Tensor)]
        if not outputs and not func._schema.is_mutable:
            return result

        several = False
        data = func._schema.name not in SHAPE_ONLY
        if not (data and any(value.producer or value.params or writers for _, value, writers in deps)):
            self._track(outputs, None, frozenset(), [], several=False)
            return result
        if self.group is not None:
            producer = self.group.producer
            for tensor, value, writers in deps:
                for origin in (value, *writers):
                    if origin.producer is not None and origin.producer is not producer:
                        self.group.inputs[self._node(tensor, origin)] = None
            self.group.operations.append(self._describe(func, args, deps, result))
        else:
            node = self.graph.create_node("call_function", func, self._arguments(args), self._arguments(kwargs))
            writing = [w.producer.node for _, _, ws in deps for w in ws if w.producer and w.producer.node]
            operation = self._describe(func, args, deps, result)
            self._annotate(node, writing, [operation], first_shape((args, kwargs)), result)
            producer = Producer(node)
            several = isinstance(result, (tuple, list))

        activations = any(v.producer is not None and not v.params for _, value, ws in deps for v in (value, *ws))
        params = frozenset() if activations else frozenset().union(*(value.params for _, value, _ in deps))
        if producer.node is not None:
            producer.node.meta["params"] = params
        self._track(outputs, producer, params, tensors, several=several)
        self._note_writes(func, args, kwargs, producer, params)
        return result

    def _describe(self, func: Any, args: Any, deps: Any, result: Any) -> Operation:
        operands = tuple(
            Operand(
                tuple(tensor.shape),
                value.params,
                self.group is not None and value.producer is self.group.producer,
                tensor.dim() >= 2 and tensor.stride(-1) > tensor.stride(-2),
            )
            for tensor, value, _ in deps
        )
        plain = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in args)
        return Operation(func._schema.name.removeprefix("aten::").rstrip("_"), operands, plain, first_shape(result))

    # -- tensors -------------------------------------------------------------------------------------------------

    def _value(self, tensor: Tensor) -> Value:
        key = self.parameter_keys.get(id(tensor))
        if key is not None:
            return Value(None, params=frozenset({key}))
        value = self.values.get(tensor)
        if value is None:
            return Value(None)
        if value.params and value.producer is not None and value.producer.layer:
            return replace(value, params=frozenset())
        return value

    def _writers(self, tensor: Tensor, value: Value) -> list[Value]:
        """In-place writes to the tensor's storage since the tensor was last recorded."""
        if not self.writes:
            return []
        return [w for w in self.writes.get(storage_of(tensor), ()) if w.time > value.time]

    def _track(
        self,
        outputs: list[Tensor],
        producer: Producer | None,
        params: frozenset[str],
        inputs: list[Tensor],
        several: bool,
    ) -> None:
        shared = {storage_of(tensor) for tensor in inputs} if self.writes else set()
        for index, tensor in enumerate(outputs):
            if id(tensor) in self.parameter_keys:
                continue  # `weight.detach_()` and the like: a parameter stays a parameter
            self.values[tensor] = Value(producer, index if several else None, params, self.clock)
            if self.writes and (storage := storage_of(tensor)) not in shared:
                self.writes.pop(storage, None)  # a new tensor where a freed one was

    def _note_writes(self, func: Any, args: Any, kwargs: Any, producer: Producer, params: frozenset[str]) -> None:
        if not func._schema.is_mutable:
            return
        named = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        for argument in func._schema.arguments:
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for tensor in tree_iter(named.get(argument.name)):
                if isinstance(tensor, Tensor) and id(tensor) not in self.parameter_keys:
                    write = Value(producer, None, params, self.clock)
                    self.values[tensor] = write
                    self.writes.setdefault(storage_of(tensor), []).append(write)

    # -- the fx graph --------------------------------------------------------------------------------------------

    def _arguments(self, structure: Any) -> Any:
        """``structure`` with nodes for tensors, plain data as it is, and a name for the rest."""
        return tree_map(self._argument, as_plain(structure))

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return self._node(leaf, self._value(leaf))
        if leaf is None or isinstance(leaf, (int, float, bool, str, complex, slice, torch.dtype, torch.device)):
            return leaf
        if isinstance(leaf, (torch.memory_format, torch.layout)):
            return leaf
        return repr(type(leaf))

    def _node(self, tensor: Tensor, value: Value) -> fx.Node:
        key = self.parameter_keys.get(id(tensor)) or self.buffer_keys.get(id(tensor))
        if key is not None and (value.producer is None or value.producer.node is None):
            if key not in self.parameter_nodes:
                self.parameter_nodes[key] = self._attribute(key, tensor)
            return self.parameter_nodes[key]
        if value.producer is not None and value.producer.node is not None:
            if value.output is None:
                return value.producer.node
            return self._item(value.producer.node, value.output, tensor)
        if tensor not in self.constants:
            self.constants[tensor] = self._attribute(f"constant_{len(self.constants)}", tensor)
        return self.constants[tensor]

    def _attribute(self, key: str, tensor: Tensor) -> fx.Node:
        node = self.graph.create_node("get_attr", key)
        node.meta["shape"] = tuple(tensor.shape)
        node.meta["params"] = frozenset({key}) if id(tensor) in self.parameter_keys else frozenset()
        return node

    def _item(self, node: fx.Node, index: int, tensor: Tensor) -> fx.Node:
        items: dict[int, fx.Node] = node.meta.setdefault("items", {})
        if index not in items:
            items[index] = self.graph.call_function(operator.getitem, (node, index))
            items[index].meta["shape"] = tuple(tensor.shape)
            items[index].meta["params"] = node.meta.get("params", frozenset())
        return items[index]


def is_one_layer(module: nn.Module) -> bool:
    """Whether one call of ``module`` is one layer: it owns parameters, at most one kernel, and no child owns any.

    Parametrizations (weight norm, spectral norm) are part of the layer. A module with several kernels of its own runs
    several layers, unless it is recurrent: one call of an RNN is one layer.
    """
    own = dict(module.named_parameters(recurse=False))
    for name, child in module.named_children():
        originals = dict(child.named_parameters())
        if name == "parametrizations":
            own |= originals
        elif originals:
            return False
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return True
    kernels = [name for name, p in own.items() if sum(n > 1 for n in p.shape) >= 2]
    return bool(own) and (len(kernels) <= 1 or "parametrizations" in dict(module.named_children()))


@contextmanager
def patch(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Have ``owner.name`` be ``replacement`` for a while."""
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)


def storage_of(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor, shared by its views (on the meta device too)."""
    return tensor.untyped_storage()._cdata


def first_shape(structure: Any) -> tuple[int, ...]:
    """Shape of the first tensor in a structure, () without one."""
    for leaf in tree_iter(as_plain(structure)):
        if isinstance(leaf, Tensor):
            return tuple(leaf.shape)
    return ()


def as_plain(structure: Any) -> Any:
    """Model outputs such as dataclasses as dictionaries, so that the tensors in them are found."""
    if hasattr(structure, "__dataclass_fields__") and not isinstance(structure, type):
        return {name: as_plain(getattr(structure, name)) for name in structure.__dataclass_fields__}
    if isinstance(structure, dict):
        return {str(key): as_plain(value) for key, value in structure.items()}
    if isinstance(structure, (tuple, list)):
        return (
            [as_plain(item) for item in structure] if isinstance(structure, list) else tuple(map(as_plain, structure))
        )
    return structure
