"""Watches one forward pass and writes down what happened, as a ``torch.fx.Graph``.

Symbolic tracing follows code; it stops at a shape-dependent ``if`` and hides what its leaf lists name. A recorder runs
the real forward pass (on the meta device it costs no arithmetic and no memory) and sees every ATen operation. It
groups operations into one node where a reader would: the call of a module that owns a kernel (``call_module``) and the
call of a function such as ``F.linear`` (``call_function``). Everything else is one node per ATen operation.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from netgraft.architecture.operations import SHAPE_ONLY
from netgraft.trace import shortcuts
from netgraft.trace.classify import Operand, Operation, classify
from netgraft.trace.flow import Flow, Producer, Value
from netgraft.trace.slots import is_one_layer, own_parameters
from netgraft.trace.structure import first_shape, map_leaves, tensors_in
from netgraft.trace.uniform import flat_axes

GROUPED_FUNCTIONS = (
    *((F, name) for name in ("linear", "embedding", "interpolate", "scaled_dot_product_attention")),
    *((F, name) for name in ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")),
    *((space, f"conv{t}{n}d") for space in (F, torch) for t in ("", "_transpose") for n in (1, 2, 3)),
    (torch, "einsum"),
)
"""Functions recorded as one node instead of the operations they decompose into; calls go through these namespaces."""

MATRIX_PRODUCTS = ((torch, "matmul"), (Tensor, "matmul"), (Tensor, "__matmul__"), (Tensor, "__rmatmul__"))
"""Functions recorded as one node where a parameter is multiplied with something that is none."""

PLAIN = (int, float, bool, str, complex, slice, torch.dtype, torch.device, torch.memory_format, torch.layout)


@dataclass(frozen=True)
class Event:
    """One ATen operation that ran."""

    func: Any
    args: Any
    kwargs: Any
    inputs: list[tuple[Tensor, Value]]  # what was known of its tensors before
    result: Any
    time: int


@dataclass
class GroupedCall:
    """A module or function call whose operations become one node."""

    kind: str  # "call_module" or "call_function"
    target: Any  # module path or function
    args: Any
    kwargs: Any
    node_args: Any = None  # args and kwargs as they stand in the fx graph
    node_kwargs: Any = None
    in_shape: tuple[int, ...] = ()
    result: Any = None
    producer: Producer = field(default_factory=Producer)
    inputs: dict[fx.Node, None] = field(default_factory=dict)  # what the operations read from outside, in order of use
    operations: list[Operation] = field(default_factory=list)
    events: list[Event | GroupedCall] = field(default_factory=list)  # what happened, should it turn out to be no layer


class Recorder(TorchDispatchMode):
    """Records the operations of ``module``'s forward pass into ``graph``."""

    def __init__(self, module: nn.Module, deadline: float | None = None, *, keep_constants: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.module = module
        self.deadline = deadline  # in terms of time.monotonic; TimeoutError afterwards
        self.keep_constants = keep_constants  # tensors that no input made: their values are needed to run it again
        self.graph = fx.Graph()
        self.flow = Flow(module)
        self.group: GroupedCall | None = None
        self.inner: GroupedCall | None = None  # a function call inside a module's group
        self.constants = WeakTensorKeyDictionary()
        self.paths = {id(m): path for path, m in module.named_modules() if is_one_layer(m)}
        self.attributes: dict[str, fx.Node] = {}

    # -- what the caller does ------------------------------------------------------------------------------------

    def placeholder(self, name: str, tensor: Tensor) -> None:
        """Declare ``tensor`` an input of the model."""
        node = self.graph.placeholder(name)
        node.meta["shape"] = tuple(tensor.shape)
        self.flow.values[tensor] = Value(Producer(node))

    def finish(self, result: Any) -> None:
        """Declare ``result``, any structure with tensors in it, the model's output."""
        self.graph.output(self._arguments(result))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record everything that runs inside."""
        original = nn.Module.__call__

        def call_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self.group is not None or id(module) not in self.paths:
                return original(module, *args, **kwargs)
            return self._run_module(module, partial(original, module), args, kwargs)

        def grouped(function: Callable[..., Any], only_weights: bool) -> Callable[..., Any]:
            @wraps(function)
            def call_function(*args: Any, **kwargs: Any) -> Any:
                if self.inner is not None or (self.group is not None and self.group.kind == "call_function"):
                    return function(*args, **kwargs)
                if only_weights and not self._multiplies_weight(args):
                    return function(*args, **kwargs)
                return self._run_function(function, args, kwargs)

            return call_function

        with ExitStack() as patches:
            patches.enter_context(patch(nn.Module, "__call__", call_module))
            for owner, name in (*GROUPED_FUNCTIONS, *MATRIX_PRODUCTS):
                only_weights = (owner, name) in MATRIX_PRODUCTS
                patches.enter_context(patch(owner, name, grouped(getattr(owner, name), only_weights)))
            with self:
                yield

    # -- groups --------------------------------------------------------------------------------------------------

    def _run_module(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        group = self._open(GroupedCall("call_module", self.paths[id(module)], args, kwargs))
        try:
            group.result = function(*args, **kwargs)
        finally:
            self.group = None
        own = frozenset(self.flow.parameter_keys[id(p)] for _, p in own_parameters(module))
        if group.operations and classify(group.operations, own, module) is None:
            self._ungroup(group)
        else:
            self._close(group)
        return group.result

    def _run_function(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.group is not None:
            self.inner = GroupedCall("call_function", function, args, kwargs)
            self.group.events.append(self.inner)
            try:
                self.inner.result = result = function(*args, **kwargs)
            finally:
                self.inner = None
            return result
        group = self._open(GroupedCall("call_function", function, args, kwargs))
        try:
            group.result = function(*args, **kwargs)
        finally:
            self.group = None
        self._close(group)
        return group.result

    def _open(self, group: GroupedCall) -> GroupedCall:
        # Arguments are looked up first: an in-place operation inside the group would change what they stand for.
        group.node_args, group.node_kwargs = self._arguments(group.args), self._arguments(group.kwargs)
        tensors = tensors_in((group.args, group.kwargs))
        data = (t for t in tensors if not self.flow.value(t).params)
        group.in_shape = tuple(next(data, tensors[0]).shape) if tensors else ()
        self.group = group
        return group

    def _close(self, group: GroupedCall) -> None:
        if not group.operations:
            return
        node = self.graph.create_node(group.kind, group.target, group.node_args, group.node_kwargs)
        self._annotate(node, group.inputs, group.operations, group.in_shape, group.result)
        outside = [operand.params for op in group.operations for operand in op.operands if not operand.inside]
        group.producer.layer = group.kind == "call_module" or not all(outside)
        group.producer.node = node
        group.events = []
        node.meta["params"] = frozenset() if group.producer.layer else frozenset().union(*outside)

    def _ungroup(self, group: GroupedCall) -> None:
        """Record one by one what was recorded as a group that is no layer."""
        self.flow.forget_writes(group.producer)
        for event in group.events:
            if isinstance(event, Event):
                self._write_down(self._again(event, group))
                continue
            again = self._open(GroupedCall(event.kind, event.target, event.args, event.kwargs))
            for part in event.events:
                if isinstance(part, Event):
                    self._write_down(self._again(part, group))
            self.group = None
            again.result = event.result
            self._close(again)

    def _again(self, event: Event, group: GroupedCall) -> Event:
        """``event`` with what is now known of the tensors that were made inside ``group``."""
        inputs = [(t, self.flow.value(t) if v.producer is group.producer else v) for t, v in event.inputs]
        return Event(event.func, event.args, event.kwargs, inputs, event.result, event.time)

    def _multiplies_weight(self, args: Any) -> bool:
        weights = [bool(self.flow.value(arg).params) for arg in args if isinstance(arg, Tensor)]
        return any(weights) and not all(weights)

    # -- operations ----------------------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False keeps PyTorch from importing its compiler, which takes as long as all of tracing."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise TimeoutError("the time limit of the forward pass ended")
        inputs = [(tensor, self.flow.value(tensor)) for tensor in tensors_in((args, kwargs))]
        result = shortcuts.call(func, args, kwargs)
        self.flow.clock += 1
        event = Event(func, args, kwargs, inputs, result, self.flow.clock)
        if self.group is not None and self.group.kind == "call_module":
            (self.inner or self.group).events.append(event)
        self._write_down(event)
        return result

    def _write_down(self, event: Event) -> None:
        outputs = tensors_in(event.result)
        schema = event.func._schema
        if not outputs and not schema.is_mutable:
            return
        flow, group = self.flow, self.group
        deps = [(tensor, value, flow.writers(tensor, value)) for tensor, value in event.inputs]
        known = any(v.producer or v.params or writers for _, v, writers in deps)
        if not known or schema.name.removeprefix("aten::") in SHAPE_ONLY:
            flow.track(outputs, Value(None, time=event.time), [])
            return
        several = False
        if group is not None:
            producer = group.producer
            for tensor, value, writers in deps:
                for origin in (value, *writers):
                    if origin.producer is not None and origin.producer is not producer:
                        group.inputs[self._node(tensor, origin)] = None
            group.operations.append(self._describe(event, deps))
        else:
            before = {id(tensor): value for tensor, value in event.inputs}
            args, kwargs = self._arguments(event.args, before), self._arguments(event.kwargs, before)
            node = self.graph.create_node("call_function", event.func, args, kwargs)
            writing = {w.producer.node: None for _, _, ws in deps for w in ws if w.producer and w.producer.node}
            operation = self._describe(event, deps)
            self._annotate(node, writing, [operation], first_shape((event.args, event.kwargs)), event.result)
            producer = Producer(node)
            several = isinstance(event.result, (tuple, list))
        activations = any(v.producer is not None and not v.params for _, value, ws in deps for v in (value, *ws))
        params = frozenset() if activations else frozenset().union(*(value.params for _, value, _ in deps))
        if producer.node is not None:
            producer.node.meta["params"] = params
        value = Value(producer, params=params, time=event.time)
        flow.track(outputs, value, [tensor for tensor, _ in event.inputs], several)
        flow.note_writes(schema, event.args, event.kwargs, value)

    def _describe(self, event: Event, deps: list[tuple[Tensor, Value, list[Value]]]) -> Operation:
        inside = self.group.producer if self.group is not None else None
        operands = tuple(
            Operand(
                tuple(tensor.shape),
                value.params,
                inside is not None and value.producer is inside,
                tensor.dim() >= 2 and tensor.stride(-1) > tensor.stride(-2),
                value.producer is None and not value.params and not writers,
            )
            for tensor, value, writers in deps
        )
        plain = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in event.args)
        name = event.func._schema.name.removeprefix("aten::").rstrip("_")
        return Operation(name, operands, plain, first_shape(event.result))

    # -- the fx graph --------------------------------------------------------------------------------------------

    def _annotate(
        self, node: fx.Node, inputs: dict[fx.Node, None], operations: list[Operation], in_shape: Any, result: Any
    ) -> None:
        seen = node.all_input_nodes
        node.meta["hidden_inputs"] = [other for other in inputs if other not in seen]
        node.meta["operations"] = operations
        node.meta["in_shape"] = in_shape
        node.meta["shape"] = first_shape(result)

    def _arguments(self, structure: Any, known: dict[int, Value] | None = None) -> Any:
        """``structure`` with nodes for tensors, plain data as it is, and a name for the rest."""

        def argument(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                value = known.get(id(leaf)) if known else None
                return self._node(leaf, value or self.flow.value(leaf))
            return leaf if leaf is None or isinstance(leaf, PLAIN) else repr(type(leaf))

        return map_leaves(argument, structure)

    def _node(self, tensor: Tensor, value: Value) -> fx.Node:
        key = self.flow.key(tensor)
        if key is not None and (value.producer is None or value.producer.node is None):
            if key not in self.attributes:
                self.attributes[key] = self._attribute(key, tensor)
            return self.attributes[key]
        if value.producer is not None and value.producer.node is not None:
            if value.output is None:
                return value.producer.node
            return self._item(value.producer.node, value.output, tensor)
        if tensor not in self.constants:
            self.constants[tensor] = self._attribute(f"constant_{len(self.constants)}", tensor)
        node: fx.Node = self.constants[tensor]
        return node

    def _attribute(self, key: str, tensor: Tensor) -> fx.Node:
        node = self.graph.create_node("get_attr", key)
        node.meta["shape"] = tuple(tensor.shape)
        node.meta["params"] = frozenset({key}) if id(tensor) in self.flow.parameter_keys else frozenset()
        node.meta["uniform"] = flat_axes(tensor) if key.startswith("constant_") else ()
        if self.keep_constants and key.startswith("constant_"):
            node.meta["value"] = tensor
        return node

    def _item(self, node: fx.Node, index: int, tensor: Tensor) -> fx.Node:
        items: dict[int, fx.Node] = node.meta.setdefault("items", {})
        if index not in items:
            items[index] = self.graph.call_function(operator.getitem, (node, index))
            items[index].meta["shape"] = tuple(tensor.shape)
            items[index].meta["params"] = node.meta.get("params", frozenset())
        return items[index]


@contextmanager
def patch(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Have ``owner.name`` be ``replacement`` for a while."""
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)
