"""From a recorded ``torch.fx.Graph`` to a ``LayerGraph``: layers get names, kinds, tensors; arithmetic on weights goes.

A reader's view of the forward pass has the input, layers, operations between them, and parameters that the model's own
code uses directly (position embeddings, class tokens). What only prepares a layer's weight (a transpose, weight
standardisation) is part of the layer.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from netgraft.graph import Layer, LayerGraph, Node, Shape, Slot
from netgraft.trace.classify import Verdict, classify
from netgraft.trace.slots import has_parametrised_child, own_keys, product, state_slots, weight_shape

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


@dataclass(frozen=True)
class _Functional:
    """A layer whose weights the model's code hands to a function itself."""

    name: str
    tensors: dict[str, Slot]
    verdict: Verdict
    keys: frozenset[str]
    own: frozenset[str]  # the same keys as the recorder names them


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
        self.parameters: dict[str, Layer] = {}  # node id -> a parameter that may turn out to be used by itself
        self.functional = self._find_functional()
        self.functional_names = {found.name for found in self.functional.values()}
        self.biases = self._find_biases()

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
        before = sum(other.op == "input" for other in self.nodes)
        id = f"input_{before}" if before else "input"
        self._add(node, Node(id, "input", shape=node.meta["shape"]))

    def _get_attr(self, node: fx.Node) -> None:
        key = self.canonical.get(str(node.target))
        if not node.meta["params"] or key is None:
            return  # a buffer or a constant: no data flow
        slot = self.slots[key]
        taken = key in self.functional_names
        id = f"{key}:value" if taken else key
        self.parameters[id] = Layer(key, "parameter", slot.shape, {"value": slot}, out_shape=slot.shape)
        self._add(node, Node(id, "parameter", layer=key, shape=slot.shape), weight_only=True)

    def _call_module(self, node: fx.Node) -> None:
        path = str(node.target)
        module = self.module.get_submodule(path)
        roles = own_keys(self.module, path)
        own = frozenset(self.canonical.get(key, key) for _, key in roles)
        verdict = classify(node.meta["operations"], own, module) or Verdict("other")
        keys = frozenset(self.canonical[key] for key in own if key in self.canonical)
        tensors = {role: self.slots[self.canonical[key]] for role, key in roles if key in self.canonical}
        self._add_layer(node, path or "(model)", verdict, keys, tensors, own)

    def _call_function(self, node: fx.Node) -> None:
        if node in self.biases:
            kernel, key = self.biases[node]
            name = self.functional[kernel].name
            layer = self.layers[name]
            self.layers[name] = replace(layer, tensors={**layer.tensors, "bias": self.slots[key]})
            self.ids[node] = self.ids[next(n for n in node.all_input_nodes if not n.meta.get("params"))]
        elif node in self.functional:
            found = self.functional[node]
            self._add_layer(node, found.name, found.verdict, found.keys, found.tensors, found.own)
        elif inputs := self._inputs(node, frozenset()):
            facts = {"args": self._plain(node.args), **self._plain(node.kwargs)}
            entry = Node(node.name, operation_name(node), inputs, shape=node.meta["shape"], facts=facts)
            self._add(node, entry, weight_only=bool(node.meta.get("params")))

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
            shape = weight_shape(tensors, verdict.kind)
            kind, transposed = orient(shape, verdict)
            self.layers[name] = Layer(
                name,
                kind,
                shape,
                tensors,
                verdict.groups,
                verdict.stride,
                verdict.padding,
                verdict.dilation,
                node.meta["in_shape"],
                node.meta["shape"],
                self._flattened(node, own) if kind == "linear" else (),
                transposed=transposed,
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
                return folded if product(folded) == features and product(folded[1:]) > 1 else ()
            if name not in ELEMENTWISE and name not in RESHAPES:
                return ()
            data = list(current.all_input_nodes)
        return ()

    # -- layers whose weights the model's code hands to a function itself ------------------------------------------

    def _find_functional(self) -> dict[fx.Node, _Functional]:
        found = {}
        for node in self.graph.nodes:
            if node.op != "call_function" or node.meta.get("params"):
                continue
            own = frozenset().union(*(o.params for op in node.meta.get("operations", ()) for o in op.operands))
            keys = frozenset(self.canonical[key] for key in own if key in self.canonical)
            verdict = classify(node.meta["operations"], None, None) if keys else None
            if verdict is None:
                continue
            name, tensors = self._name_functional(keys, verdict)
            kept = frozenset(slot.key for slot in tensors.values())
            own = frozenset(key for key in own if self.canonical.get(key) in kept)
            found[node] = _Functional(name, tensors, verdict, keys & kept, own)
        return found

    def _name_functional(self, keys: frozenset[str], verdict: Verdict) -> tuple[str, dict[str, Slot]]:
        """Name and tensors of the layer that uses ``keys``; a bias that several layers share stays a parameter."""
        kernel = max(sorted(keys), key=lambda key: len(self.slots[key].shape))
        owner = kernel.rpartition(".")[0].split(".parametrizations")[0]
        roles = own_keys(self.module, owner)
        kernels = [key for _, key in roles if key in self.slots and len(self.slots[key].shape) >= 2]
        if (
            owner
            and {key for _, key in roles} >= keys
            and len(kernels) == 1
            and not has_parametrised_child(self.module, owner)
        ):
            return owner, {role: self.slots[self.canonical[key]] for role, key in roles if key in self.canonical}
        lengths = {verdict.matrix[1], self.slots[kernel].shape[0]} if verdict.kind == "linear" else set()
        rest = [key for key in sorted(keys - {kernel}) if not lengths or product(self.slots[key].shape) in lengths]
        roles = [("weight", kernel)] + [("bias" if len(rest) == 1 else key, key) for key in rest]
        return kernel, {role: self.slots[key] for role, key in roles}

    def _find_biases(self) -> dict[fx.Node, tuple[fx.Node, str]]:
        """Additions that are the bias of a functional layer: node -> (the layer's node, the parameter's key).

        The parameter must be as long as the layer's output has channels, and serve no other purpose.
        """
        found: dict[fx.Node, tuple[fx.Node, str]] = {}
        serves: dict[str, set[str]] = {}
        for node in self.graph.nodes if self.functional else ():
            if node.op != "get_attr" or not node.meta["params"]:
                continue
            for user in users_behind_reshapes(node):
                kernel = None
                if user.op == "call_function" and operation_name(user) == "add" and len(user.args) == 2:
                    others = [n for n in user.all_input_nodes if not n.meta.get("params")]
                    kernel = behind_reshapes(others[0]) if len(others) == 1 else None
                layer = self.functional.get(kernel) if kernel is not None else None
                key = str(node.target)
                fits = layer is not None and "bias" not in layer.tensors and self._is_bias(key, layer)
                serves.setdefault(key, set()).add(layer.name if layer is not None and fits else "")
                if kernel is not None and fits:
                    found[user] = (kernel, self.canonical[key])
        return {
            node: (kernel, key)
            for node, (kernel, key) in found.items()
            if serves[key] == {self.functional[kernel].name}
        }

    def _is_bias(self, key: str, layer: _Functional) -> bool:
        out = layer.verdict.matrix[1]
        if layer.verdict.kind.startswith("conv"):
            shape = weight_shape(layer.tensors, layer.verdict.kind)
            out = shape[1] * layer.verdict.groups if "transpose" in layer.verdict.kind else shape[0]
        return product(self.slots[self.canonical[key]].shape) == out

    # -- the end -------------------------------------------------------------------------------------------------

    def _drop_unread_parameters(self) -> None:
        """Remove parameter nodes, and arithmetic on parameters, that only fed the weights of layers."""
        read = {source for node in self.nodes for source in node.inputs if not self.weight_only[node.id]}
        kept: list[Node] = []
        owners = {slot.key: layer.name for layer in self.layers.values() for slot in layer.tensors.values()}
        for node in reversed(self.nodes):
            if not self.weight_only[node.id] or node.id in read:
                read.update(node.inputs)
                if node.op == "parameter" and (owner := owners.get(str(node.layer))):
                    node = replace(node, op="weight", layer=owner)  # a layer's weight that other code reads too
                elif node.op == "parameter":
                    self.layers[str(node.layer)] = self.parameters[node.id]
                kept.append(node)
        self.nodes = kept[::-1]
        order = {name: i for i, name in enumerate(dict.fromkeys(n.layer for n in self.nodes if n.layer))}
        self.layers = {name: self.layers[name] for name in order}

    def _with_calls(self, layer: Layer) -> Layer:
        calls = self.calls.get(layer.name, 1)
        return layer if calls == 1 else replace(layer, calls=calls)

    def _plain(self, value: Any) -> Any:
        """fx arguments as plain data; "%id" stands for a node, {"constant": shape} for a tensor that is not data."""
        if isinstance(value, fx.Node):
            if value not in self.ids:
                return {"constant": list(value.meta.get("shape", ()))}
            return f"%{self.ids[value]}"
        if isinstance(value, dict):
            return {str(k): self._plain(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [self._plain(v) for v in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        return str(value)


def operation_name(node: fx.Node) -> str:
    """The name of what a call_function node calls: "add", "cat", "scaled_dot_product_attention"."""
    target: Any = node.target
    if hasattr(target, "_schema"):
        return str(target._schema.name.removeprefix("aten::").rstrip("_"))
    return str(getattr(target, "__name__", target)).strip("_")


def orient(shape: Shape, verdict: Verdict) -> tuple[str, bool]:
    """The kind of a layer with a weight of ``shape``, and whether a linear layer's weight is [in, out]."""
    if verdict.kind != "linear" or not shape:
        return verdict.kind, False
    inp, out = verdict.matrix
    usual = (shape[0] == out and product(shape[1:]) == inp) or (len(shape) == 2 and shape[1] == inp)
    swapped = (shape[0] == inp and product(shape[1:]) == out) or (len(shape) == 2 and shape[0] == inp)
    if not (usual or swapped):
        return "contraction", False
    return "linear", swapped and (not usual or verdict.in_first)


def behind_reshapes(node: fx.Node) -> fx.Node:
    """The node whose result, reshaped only and read by nobody else, is ``node``'s."""
    while (
        len(node.all_input_nodes) == 1 and operation_name(node) in RESHAPES and len(node.all_input_nodes[0].users) == 1
    ):
        node = node.all_input_nodes[0]
    return node


def users_behind_reshapes(node: fx.Node) -> list[fx.Node]:
    """Who reads ``node``'s result, itself or reshaped."""
    found = []
    for user in node.users:
        found += users_behind_reshapes(user) if operation_name(user) in RESHAPES | {"unsqueeze"} else [user]
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
