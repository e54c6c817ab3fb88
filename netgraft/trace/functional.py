"""Layers whose weights the model's code hands to a function itself: ``F.linear(x, self.w)``, ``x @ self.w + self.b``.

Parameters are judged by what is done with them, not by their names. One kind of matrix is multiplied and no layer: a
table of relative positions, whose product with the queries is added to the scores of an attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import fx, nn

from netgraft.architecture.graph import Layer, Slot
from netgraft.architecture.kinds import Role, kind_named
from netgraft.architecture.operations import BATCHED_PRODUCTS, PLAIN_RESHAPES, REARRANGES, SOFTMAX
from netgraft.trace.classify import Verdict, classify
from netgraft.trace.slots import has_parametrised_child, own_keys, weight_shape


@dataclass(frozen=True)
class Functional:
    """A layer whose weights the model's code hands to a function itself."""

    name: str
    tensors: dict[str, Slot]
    verdict: Verdict
    keys: frozenset[str]
    own: frozenset[str]  # the same keys as the recorder names them


class FunctionalLayers:
    """All of them in ``graph``, and the additions that are their biases."""

    def __init__(self, graph: fx.Graph, module: nn.Module, slots: dict[str, Slot], canonical: dict[str, str]) -> None:
        self.graph = graph
        self.module = module
        self.slots = slots
        self.canonical = canonical
        self.readers: dict[fx.Node, list[fx.Node]] = {}
        for node in graph.nodes:
            for other in node.meta.get("hidden_inputs", ()):
                self.readers.setdefault(other, []).append(node)
        self.layers = self._find_layers()
        self.biases = self._find_biases()

    def _find_layers(self) -> dict[fx.Node, Functional]:
        found = {}
        for node in self.graph.nodes:
            if node.op != "call_function" or node.meta.get("params"):
                continue
            operands = [operand for op in node.meta.get("operations", ()) for operand in op.operands]
            own = frozenset().union(*(operand.params for operand in operands))
            in_order = [self.canonical[k] for o in operands for k in sorted(o.params) if k in self.canonical]
            keys = tuple(dict.fromkeys(in_order))
            verdict = classify(node.meta["operations"], None, None) if keys else None
            if verdict is None or (verdict.kind == "linear" and is_position_table(node, self.readers)):
                continue
            name, tensors = self._name_functional(keys, verdict)
            kept = frozenset(slot.key for slot in tensors.values())
            own = frozenset(key for key in own if self.canonical.get(key) in kept)
            if kind_named(verdict.kind).has_statistics:
                tensors |= self._statistics(node)
            found[node] = Functional(name, tensors, verdict, kept.intersection(keys), own)
        return found

    def _statistics(self, node: fx.Node) -> dict[str, Slot]:
        """The buffers that a call of ``F.batch_norm(x, mean, variance, ...)`` is handed."""
        found = {}
        for role, place in (("running_mean", 1), ("running_var", 2)):
            given = node.args[place] if len(node.args) > place else node.kwargs.get(role)
            key = (
                self.canonical.get(str(given.target)) if isinstance(given, fx.Node) and given.op == "get_attr" else None
            )
            if key is not None and self.slots[key].buffer:
                found[role] = self.slots[key]
        return found

    def _name_functional(self, keys: Sequence[str], verdict: Verdict) -> tuple[str, dict[str, Slot]]:
        """Name and tensors of the layer that uses ``keys``; a bias that several layers share stays a parameter.

        The weight is the one of the highest rank. A norm's gain and offset have one: the gain is given first.
        """
        is_norm = kind_named(verdict.kind).role is Role.NORM
        kernel = max(keys if is_norm else sorted(keys), key=lambda key: len(self.slots[key].shape))
        lengths = {verdict.matrix[1], self.slots[kernel].shape[0]} if verdict.kind == "linear" else set()
        rest = [key for key in sorted({*keys} - {kernel}) if not lengths or prod(self.slots[key].shape) in lengths]
        owner = kernel.rpartition(".")[0].split(".parametrizations")[0]
        roles = own_keys(self.module, owner)
        kernels = [key for _, key in roles if key in self.slots and len(self.slots[key].shape) >= 2]
        if (
            owner
            and {key for _, key in roles} >= {kernel, *rest}
            and len(kernels) == (0 if is_norm else 1)
            and not has_parametrised_child(self.module, owner)
        ):
            return owner, {role: self.slots[self.canonical[key]] for role, key in roles if key in self.canonical}
        named = [("weight", kernel)] + [("bias" if len(rest) == 1 else key, key) for key in rest]
        return kernel, {role: self.slots[key] for role, key in named}

    def _find_biases(self) -> dict[fx.Node, tuple[fx.Node, str]]:
        """Additions that are the bias of a functional layer: node -> (the layer's node, the parameter's key).

        The parameter must be as long as the layer's output has channels, and serve no other purpose.
        """
        found: dict[fx.Node, tuple[fx.Node, str]] = {}
        serves: dict[str, set[str]] = {}
        for node in self.graph.nodes if self.layers else ():
            if node.op != "get_attr" or not node.meta["params"]:
                continue
            for user in users_behind_reshapes(node):
                kernel = None
                if user.op == "call_function" and operation_name(user) == "add" and len(user.args) == 2:
                    others = [n for n in user.all_input_nodes if not n.meta.get("params")]
                    kernel = behind_reshapes(others[0]) if len(others) == 1 else None
                layer = self.layers.get(kernel) if kernel is not None else None
                key = str(node.target)
                fits = layer is not None and "bias" not in layer.tensors and self._is_bias(key, layer)
                serves.setdefault(key, set()).add(layer.name if layer is not None and fits else "")
                if kernel is not None and fits:
                    found[user] = (kernel, self.canonical[key])
        return {
            node: (kernel, key) for node, (kernel, key) in found.items() if serves[key] == {self.layers[kernel].name}
        }

    def _is_bias(self, key: str, layer: Functional) -> bool:
        verdict, out = layer.verdict, layer.verdict.matrix[1]
        if kind_named(verdict.kind).convolves:
            shape = weight_shape(layer.tensors, verdict.kind)
            out = Layer(layer.name, verdict.kind, shape, groups=verdict.groups).out_channels
        return prod(self.slots[self.canonical[key]].shape) == out


def is_position_table(node: fx.Node, readers: dict[fx.Node, list[fx.Node]]) -> bool:
    """Whether the result of ``node``, a product with a parameter, only ever serves as the bias of an attention.

    That is: moved about and added to the product of two activations on its way to a softmax, or handed to
    ``scaled_dot_product_attention`` as its mask. ``readers`` are who reads a node's in-place writes.
    """
    stack: list[tuple[fx.Node, bool]] = [(node, False)]  # a node, and whether a product has been added by then
    seen, ends = set(stack), 0
    while stack:
        current, added = stack.pop()
        for user in (*current.users, *readers.get(current, ())):
            name = operation_name(user)
            if name == "scaled_dot_product_attention" and current not in user.args[:3]:
                ends += 1
                continue
            if name in SOFTMAX:
                if not added:
                    return False
                ends += 1
                continue
            if name not in REARRANGES and name not in ("add", "mul", "div", "masked_fill", "where"):
                return False
            scores = name == "add" and any(other is not current and _is_prod(other) for other in user.all_input_nodes)
            step = (user, added or scores)
            if step not in seen:
                seen.add(step)
                stack.append(step)
    return ends > 0


def _is_prod(node: fx.Node) -> bool:
    """Whether ``node`` is the product of two activations, moved, scaled or added to."""
    stack, seen = [node], {node}
    while stack:
        current = stack.pop()
        if current.op != "call_function" or current.meta.get("params"):
            continue
        name = operation_name(current)
        if name in BATCHED_PRODUCTS:
            if not any(o.params for op in current.meta["operations"] for o in op.operands):
                return True
        elif name in REARRANGES or name in ("add", "mul", "div"):
            fresh = [other for other in current.all_input_nodes if other not in seen]
            seen.update(fresh)
            stack += fresh
    return False


def operation_name(node: fx.Node) -> str:
    """The name of what a call_function node calls: "add", "cat", "scaled_dot_product_attention"."""
    target: Any = node.target
    if hasattr(target, "_schema"):
        return str(target._schema.name.removeprefix("aten::").rstrip("_"))
    return str(getattr(target, "__name__", target)).strip("_")


def behind_reshapes(node: fx.Node) -> fx.Node:
    """The node whose result, reshaped only and read by nobody else, is ``node``'s."""
    while (
        len(node.all_input_nodes) == 1
        and operation_name(node) in PLAIN_RESHAPES
        and len(node.all_input_nodes[0].users) == 1
    ):
        node = node.all_input_nodes[0]
    return node


def users_behind_reshapes(node: fx.Node) -> list[fx.Node]:
    """Who reads ``node``'s result, itself or reshaped."""
    found = []
    for user in node.users:
        found += users_behind_reshapes(user) if operation_name(user) in PLAIN_RESHAPES | {"unsqueeze"} else [user]
    return found
