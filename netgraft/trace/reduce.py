"""From a recorded ``torch.fx.Graph`` to a ``LayerGraph``: layers get names, kinds, tensors; arithmetic on weights goes.

A reader's view of the forward pass has the input, layers, operations between them, and parameters that the model's own
code uses directly (position embeddings, class tokens). What only prepares a layer's weight (a transpose, weight
standardisation) is part of the layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn

from netgraft.graph import Layer, LayerGraph, Node, Shape, Slot
from netgraft.trace.classify import Verdict, classify

RESHAPES = frozenset({"view", "_unsafe_view", "reshape", "_reshape_copy", "flatten", "squeeze", "alias"})
ELEMENTWISE = frozenset(
    {
        "relu",
        "gelu",
        "silu",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "elu",
        "sigmoid",
        "tanh",
        "dropout",
        "native_dropout",
    }
    | {"clone", "contiguous", "detach", "_to_copy", "alias", "mish", "softplus", "hardsigmoid"}
)


def reduce_graph(graph: fx.Graph, module: nn.Module, rung: str) -> LayerGraph:
    """The layers of ``module`` and how data flows between them, as recorded in ``graph``."""
    return _Reducer(graph, module).run(rung)


def not_layers(graph: fx.Graph, module: nn.Module) -> frozenset[str]:
    """Paths of module calls in ``graph`` that are no layer, so their operations should be recorded one by one."""
    _, canonical = state_slots(module)
    own = {path: frozenset(canonical.get(key, key) for _, key in _own_keys(module, path)) for path in _called(graph)}
    return frozenset(
        str(node.target)
        for node in graph.nodes
        if node.op == "call_module"
        and classify(node.meta["operations"], own[node.target], module.get_submodule(node.target)) is None
    )


class _Reducer:
    def __init__(self, graph: fx.Graph, module: nn.Module) -> None:
        self.graph = graph
        self.module = module
        self.slots, self.canonical = state_slots(module)
        self.layers: dict[str, Layer] = {}
        self.names: dict[frozenset[str], str] = {}  # weight keys -> layer name
        self.nodes: list[Node] = []
        self.ids: dict[fx.Node, str] = {}  # fx nodes without an entry carry no data worth an edge
        self.weight_only: dict[str, bool] = {}
        self.calls: Counter[str] = Counter()

    def run(self, rung: str) -> LayerGraph:
        for node in self.graph.nodes:
            getattr(self, f"_{node.op}")(node)
        self._drop_unread_parameters()
        used = {slot.key for layer in self.layers.values() for slot in layer.tensors.values()}
        loose = {key: slot for key, slot in self.slots.items() if key not in used}
        idle = [key for key, slot in loose.items() if not slot.buffer]
        warnings = [f"The forward pass never used {len(idle)} parameters: {_some(idle)}."] if idle else []
        layers = {name: self._with_calls(layer) for name, layer in self.layers.items()}
        return LayerGraph(tuple(self.nodes), layers, loose, rung, tuple(warnings))

    # -- one method per fx opcode --------------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node) -> None:
        self._add(node, Node(node.name, "input", shape=node.meta["shape"]))

    def _get_attr(self, node: fx.Node) -> None:
        key = self.canonical.get(str(node.target))
        if not node.meta["params"] or key is None:
            return  # a buffer or a constant: no data flow
        slot = self.slots[key]
        self.layers.setdefault(key, Layer(key, "parameter", slot.shape, {"value": slot}, out_shape=slot.shape))
        self._add(node, Node(key, "parameter", layer=key, shape=slot.shape), weight_only=True)

    def _call_module(self, node: fx.Node) -> None:
        path = str(node.target)
        module = self.module.get_submodule(path)
        roles = _own_keys(self.module, path)
        own = frozenset(self.canonical.get(key, key) for _, key in roles)
        verdict = classify(node.meta["operations"], own, module) or Verdict("other")
        keys = frozenset(self.canonical[key] for key in own if key in self.canonical)
        tensors = {role: self.slots[self.canonical[key]] for role, key in roles if key in self.canonical}
        self._add_layer(node, path or "(model)", verdict, keys, tensors, own)

    def _call_function(self, node: fx.Node) -> None:
        operations = node.meta.get("operations", ())
        params = frozenset().union(*(o.params for op in operations for o in op.operands))
        verdict = classify(operations, None, None) if params and not node.meta["params"] else None
        keys = frozenset(self.canonical[key] for key in params if key in self.canonical)
        if verdict is None or not keys:
            target = node.target
            name = (
                target._schema.name.removeprefix("aten::")
                if hasattr(target, "_schema")
                else getattr(target, "__name__", str(target))
            )
            facts = {"args": self._plain(node.args), **self._plain(node.kwargs)}
            inputs = self._inputs(node, frozenset())
            if inputs:
                entry = Node(node.name, name.rstrip("_"), inputs, shape=node.meta["shape"], facts=facts)
                self._add(node, entry, weight_only=bool(node.meta.get("params")))
            return
        name, tensors = self._name_functional(keys)
        self._add_layer(node, name, verdict, keys, tensors, params)

    def _output(self, node: fx.Node) -> None:
        self._add(node, Node("output", "output", self._inputs(node, frozenset())))

    # -- helpers -------------------------------------------------------------------------------------------------

    def _add(self, node: fx.Node, entry: Node, *, weight_only: bool = False) -> None:
        self.ids[node] = entry.id
        self.weight_only[entry.id] = weight_only
        self.nodes.append(entry)

    def _add_layer(
        self,
        node: fx.Node,
        name: str,
        verdict: Verdict,
        keys: frozenset[str],
        tensors: dict[str, Slot],
        own: frozenset[str],
    ) -> None:
        name = self.names.setdefault(keys, name)
        if name not in self.layers:
            shape = _weight_shape(tensors, verdict.kind)
            self.layers[name] = Layer(
                name,
                verdict.kind,
                shape,
                tensors,
                verdict.groups,
                verdict.stride,
                verdict.padding,
                verdict.dilation,
                node.meta["in_shape"],
                node.meta["shape"],
                self._flattened(node, own) if verdict.kind == "linear" else (),
            )
        self.calls[name] += 1
        call = self.calls[name]
        id = name if call == 1 else f"{name}@{call}"
        self._add(node, Node(id, "layer", self._inputs(node, own), name, node.meta["shape"]))

    def _inputs(self, node: fx.Node, own: frozenset[str]) -> tuple[str, ...]:
        """Ids of the nodes whose data ``node`` reads, without what only carries the weights ``own``."""
        found = []
        for other in [*node.all_input_nodes, *node.meta.get("hidden_inputs", ())]:
            params = other.meta.get("params")
            if other in self.ids and not (params and params <= own):
                found.append(self.ids[other])
        return tuple(dict.fromkeys(found))

    def _flattened(self, node: fx.Node, own: frozenset[str]) -> Shape:
        """(C, *spatial) if the linear layer ``node`` reads a feature map flattened to C * H * W features."""
        data = [n for n in node.all_input_nodes if not (n.meta.get("params") and n.meta["params"] <= own)]
        features = node.meta["in_shape"][-1] if node.meta["in_shape"] else 0
        while len(data) == 1:
            current = data[0]
            operations = current.meta.get("operations", ())
            name = operations[0].name if current.op == "call_function" and len(operations) == 1 else ""
            before, after = current.meta.get("in_shape", ()), current.meta.get("shape", ())
            if name in RESHAPES and len(before) > 2 and len(after) == 2:
                folded = tuple(before[1:])
                return folded if _product(folded) == features and _product(folded[1:]) > 1 else ()
            if name not in ELEMENTWISE and name not in RESHAPES:
                return ()
            data = list(current.all_input_nodes)
        return ()

    def _name_functional(self, keys: frozenset[str]) -> tuple[str, dict[str, Slot]]:
        """Name and tensors of a layer whose weights the model's code hands to a function itself."""
        kernel = max(sorted(keys), key=lambda key: len(self.slots[key].shape))
        owner = kernel.rpartition(".")[0].split(".parametrizations")[0]
        roles = _own_keys(self.module, owner)
        kernels = [key for _, key in roles if key in self.slots and len(self.slots[key].shape) >= 2]
        if (
            owner
            and {key for _, key in roles} >= keys
            and len(kernels) == 1
            and not _has_parametrised_child(self.module, owner)
        ):
            return owner, {role: self.slots[self.canonical[key]] for role, key in roles if key in self.canonical}
        rest = sorted(keys - {kernel})
        roles = [("weight", kernel)] + [("bias" if len(rest) == 1 else key, key) for key in rest]
        return kernel, {role: self.slots[key] for role, key in roles}

    def _drop_unread_parameters(self) -> None:
        """Remove parameter nodes, and arithmetic on parameters, that only fed the weights of layers."""
        read = {source for node in self.nodes for source in node.inputs if not self.weight_only[node.id]}
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if not self.weight_only[node.id] or node.id in read:
                read.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]
        alive = {node.layer for node in self.nodes}
        self.layers = {name: layer for name, layer in self.layers.items() if name in alive}

    def _with_calls(self, layer: Layer) -> Layer:
        calls = self.calls.get(layer.name, 1)
        return layer if calls == 1 else Layer(**{**vars(layer), "calls": calls})

    def _plain(self, value: Any) -> Any:
        """fx arguments as plain data; "%id" stands for a node."""
        if isinstance(value, fx.Node):
            return f"%{self.ids.get(value, 'constant')}"
        if isinstance(value, dict):
            return {str(k): self._plain(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [self._plain(v) for v in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        return str(value)


def state_slots(module: nn.Module) -> tuple[dict[str, Slot], dict[str, str]]:
    """The tensors of the state_dict by their first key, and for every key the first key of the same tensor."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    canonical: dict[str, str] = {}
    state = {k: v for k, v in module.state_dict(keep_vars=True).items() if isinstance(v, torch.Tensor)}
    for key, tensor in state.items():
        canonical[key] = first.setdefault(id(tensor), key)
        names.setdefault(canonical[key], []).append(key)
    parameters = {id(parameter) for parameter in module.parameters()}
    slots = {
        key: Slot(
            key,
            tuple(state[key].shape),
            str(state[key].dtype).removeprefix("torch."),
            id(state[key]) not in parameters,
            tuple(aliases[1:]),
        )
        for key, aliases in names.items()
    }
    return slots, canonical


def _own_keys(root: nn.Module, path: str) -> list[tuple[str, str]]:
    """(role, key) of the tensors that belong to the module at ``path`` alone, parametrizations included."""
    module = root.get_submodule(path)
    prefix = f"{path}." if path else ""
    names = [name for name, _ in module.named_parameters(recurse=False)]
    names += [name for name, _ in module.named_buffers(recurse=False)]
    for name, child in module.named_children():
        if name == "parametrizations":
            names += [f"{name}.{n}" for n in child.state_dict()]
    return [(name, prefix + name) for name in names]


def _has_parametrised_child(root: nn.Module, path: str) -> bool:
    children = root.get_submodule(path).named_children()
    return any(name != "parametrizations" and any(True for _ in child.parameters()) for name, child in children)


def _called(graph: fx.Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if node.op == "call_module"}


def _weight_shape(tensors: dict[str, Slot], kind: str) -> Shape:
    """Shape of the tensor that is the layer's weight: named so, else the one of the highest rank."""
    if "weight" in tensors:
        return tensors["weight"].shape
    candidates = [slot.shape for slot in tensors.values() if not slot.buffer or kind.endswith("norm")]
    return max(candidates, key=lambda shape: (len(shape), _product(shape)), default=())


def _product(shape: Iterable[int]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
