"""From a recorded ``torch.fx.Graph`` to a ``LayerGraph``: layers get names, kinds, tensors; arithmetic on weights goes.

A reader's view of the forward pass has the input, layers, operations between them, and parameters that the model's own
code uses directly (position embeddings, class tokens). What only prepares a layer's weight (a transpose, weight
standardisation) is part of the layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from torch import fx, nn

from netgraft.architecture.graph import Layer, LayerGraph, Node, Shape, Slot
from netgraft.architecture.operations import (
    ACTIVATES,
    COPIES,
    DROPS_OUT,
    ELEMENTWISE,
    KEEPS_ORDER,
    PLAIN_RESHAPES,
)
from netgraft.trace.classify import Operation, Verdict, classify
from netgraft.trace.details import EPS, details
from netgraft.trace.functional import FunctionalLayers, is_position_table, operation_name
from netgraft.trace.slots import own_keys, state_slots, weight_shape
from netgraft.trace.uniform import uniform_buffers
from netgraft.trace.written_norms import written_norm


def reduce_graph(graph: fx.Graph, module: nn.Module, rung: str) -> LayerGraph:
    """The layers of ``module`` and how data flows between them, as recorded in ``graph``."""
    return reduce_with_ids(graph, module, rung)[0]


def reduce_with_ids(
    graph: fx.Graph, module: nn.Module, rung: str
) -> tuple[LayerGraph, dict[fx.Node, str], dict[fx.Node, str]]:
    """The same, which of its nodes each fx node became a part of, and the second of those that became two."""
    reducer = _Reducer(graph, module)
    return reducer.run(rung), reducer.ids, reducer.results


class _Reducer:
    def __init__(self, graph: fx.Graph, module: nn.Module) -> None:
        self.graph = graph
        self.module = module
        self.slots, self.canonical = state_slots(module)
        self.uniform = uniform_buffers(module)
        self.taken = {path for path, _ in module.named_modules()} | self.slots.keys()
        self.layers: dict[str, Layer] = {}
        self.names: dict[frozenset[str], str] = {}  # weight keys -> layer name
        self.nodes: list[Node] = []
        self.results: dict[fx.Node, str] = {}  # of calls that are two steps: the second one, whose value they give
        self.ids: dict[fx.Node, str] = {}  # fx nodes without an entry carry no data worth an edge
        self.weight_only: dict[str, bool] = {}
        self.calls: Counter[str] = Counter()
        self.parameters: dict[str, Layer] = {}  # node id -> a parameter that may turn out to be used by itself
        found = FunctionalLayers(graph, module, self.slots, self.canonical)
        self.functional, self.biases, self.readers = found.layers, found.biases, found.readers
        self.functional_names = {found.name for found in self.functional.values()}

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
        id = self._free(f"input_{before}" if before else "input")
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
        if verdict.kind == "linear" and not isinstance(module, nn.Linear) and is_position_table(node, self.readers):
            verdict = Verdict("other")
        keys = frozenset(self.canonical[key] for key in own if key in self.canonical)
        norm = written_norm(module)
        if norm is not None:
            names = {name: role for role, name in norm.roles.items()}
            roles = [(names.get(name, name), key) for name, key in roles]
        tensors = {role: self.slots[self.canonical[key]] for role, key in roles if key in self.canonical}
        facts = details(node, verdict.kind, own) if norm is None else {"eps": norm.eps} if norm.eps != EPS else {}
        self._add_layer(node, path or "(model)", verdict, keys, tensors, own, facts)
        activation = None if verdict.kind == "rnn" else activation_inside(node.meta["operations"], own)
        if activation is not None:  # as timm's BatchNormAct2d: one call, and two steps to whoever reads the graph
            layer = self.ids[node]
            facts = {"args": [f"%{layer}", *(arg for arg in activation.args if arg is not None)]}
            result = self.results[node] = f"{layer}.{activation.name}"
            self.weight_only[result] = False
            self.nodes.append(Node(result, activation.name, (layer,), shape=node.meta["shape"], facts=facts))

    def _call_function(self, node: fx.Node) -> None:
        if node in self.biases:
            kernel, key = self.biases[node]
            name = self.functional[kernel].name
            layer = self.layers[name]
            self.layers[name] = replace(layer, tensors={**layer.tensors, "bias": self.slots[key]})
            self.ids[node] = self.ids[next(n for n in node.all_input_nodes if not n.meta.get("params"))]
        elif node in self.functional:
            found = self.functional[node]
            facts = details(node, found.verdict.kind, found.own)
            self._add_layer(node, found.name, found.verdict, found.keys, found.tensors, found.own, facts)
        elif inputs := self._inputs(node, frozenset()):
            facts = {"args": self._plain(node.args), **self._plain(node.kwargs)}
            entry = Node(self._free(node.name), operation_name(node), inputs, shape=node.meta["shape"], facts=facts)
            self._add(node, entry, weight_only=bool(node.meta.get("params")))

    def _output(self, node: fx.Node) -> None:
        self._add(node, Node(self._free("output"), "output", self._inputs(node, frozenset())))

    # -- helpers -------------------------------------------------------------------------------------------------

    def _free(self, id: str) -> str:
        """An id that no layer and no parameter has: people call these "input", "output" and "add", too."""
        return f"{id}:" if id in self.taken else id

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
        facts: dict[str, Any],
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
        if call > 1 and (kind := orient(self.layers[name].shape, verdict)[0]) != self.layers[name].kind:
            facts["kind"] = kind
        if node.op == "call_function":
            facts |= {"function": operation_name(node), "args": self._plain(node.args), **self._plain(node.kwargs)}
        self._add(node, Node(id, "layer", self._inputs(node, own), name, node.meta["shape"], facts))

    def _inputs(self, node: fx.Node, own: frozenset[str]) -> tuple[str, ...]:
        """Ids of the nodes whose data ``node`` reads, without what only carries the weights ``own``."""
        found = []
        for other in [*node.all_input_nodes, *node.meta.get("hidden_inputs", ())]:
            params = other.meta.get("params")
            if other in self.ids and not (params and params <= own):
                found.append(self.results.get(other, self.ids[other]))
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
            if name in PLAIN_RESHAPES and len(before) > 2 and len(after) == 2:
                folded = tuple(before[1:])
                return folded if prod(folded) == features and prod(folded[1:]) > 1 else ()
            if name not in ELEMENTWISE | COPIES | PLAIN_RESHAPES:
                return ()
            data = list(current.all_input_nodes)
        return ()

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
        """fx arguments as plain data; "%id" stands for a node, {"constant": shape} for a tensor that is not data.

        "uniform" are the axes along which such a constant says the same everywhere.
        """
        if isinstance(value, fx.Node):
            if value not in self.ids:
                facts = {"constant": list(value.meta.get("shape", ()))}
                axes = self.uniform.get(str(value.target)) or value.meta.get("uniform")
                return facts | {"uniform": list(axes)} if axes else facts
            return f"%{self.results.get(value, self.ids[value])}"
        if isinstance(value, dict):
            return {str(k): self._plain(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [self._plain(v) for v in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        return str(value)


def activation_inside(operations: Sequence[Operation], own: frozenset[str]) -> Operation | None:
    """The activation that a module ends with when its weights have done their work; None if it ends otherwise."""
    weighted = [any(o.params and o.params <= own for o in op.operands) for op in operations]
    if not any(weighted):
        return None
    last = max(i for i, uses in enumerate(weighted) if uses)
    rest = [op for op in operations[last + 1 :] if op.name not in KEEPS_ORDER | DROPS_OUT]
    return rest[0] if len(rest) == 1 and rest[0].name in ACTIVATES else None


def orient(shape: Shape, verdict: Verdict) -> tuple[str, bool]:
    """The kind of a layer with a weight of ``shape``, and whether a linear layer's weight is [in, out]."""
    if verdict.kind != "linear" or not shape:
        return verdict.kind, False
    inp, out = verdict.matrix
    usual = (shape[0] == out and prod(shape[1:]) == inp) or (len(shape) == 2 and shape[1] == inp)
    swapped = (shape[0] == inp and prod(shape[1:]) == out) or (len(shape) == 2 and shape[0] == inp)
    if not (usual or swapped):
        return "contraction", False
    return "linear", swapped and (not usual or verdict.in_first)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
