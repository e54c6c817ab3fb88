"""The facts about an architecture: its layers and how data flows between them.

A ``LayerGraph`` is what tracing produces and what everything that thinks (chains, matching, planning) reads. It holds
plain data only, so it can be written to JSON, hashed, and drawn by hand in a test. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from netgraft.architecture.kinds import ChannelRule, Kind, Role, kind_named
from netgraft.architecture.operations import CONCATENATES

if TYPE_CHECKING:
    import networkx as nx


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Slot:
    """One tensor of a state_dict."""

    key: str
    shape: Shape
    dtype: str
    buffer: bool = False
    aliases: tuple[str, ...] = ()  # further keys that name the same tensor (tied weights)

    @property
    def keys(self) -> tuple[str, ...]:
        """All its keys in the state_dict."""
        return (self.key, *self.aliases)


@dataclass(frozen=True)
class Layer:
    """One set of tensors that is used together: a convolution, a linear layer, a norm, a raw parameter."""

    name: str  # module path; the parameter's key where the module's own code uses the parameter directly
    kind: str  # a name in ``architecture.kinds.KINDS``
    shape: Shape  # of the weight: [out, in / groups, *kernel] for kernels, [channels] for norms
    tensors: Mapping[str, Slot] = field(default_factory=dict)  # role ("weight", "bias", "running_mean") -> slot
    groups: int = 1
    stride: Shape = ()
    padding: Shape = ()
    dilation: Shape = ()
    in_shape: Shape = ()  # at the first call, batch axis included
    out_shape: Shape = ()
    flattened: Shape = ()  # (C, *spatial) where a linear layer reads a flattened feature map
    calls: int = 1
    transposed: bool = False  # a linear layer that multiplies with the weight as it is: [in, out]

    @property
    def rules(self) -> Kind:
        """What is known of its kind."""
        return kind_named(self.kind)

    @property
    def out_channels(self) -> int:
        """Length of the output-channel axis of the weight, 0 without a weight."""
        if not self.shape:
            return 0
        if self.transposed:
            return self.shape[1]
        return self.shape[1] * self.groups if self.is_conv and self.in_axis == 0 else self.shape[0]

    @property
    def is_kernel(self) -> bool:
        """Whether it counts towards a chain: a learned map between channel spaces."""
        return self.rules.role is Role.KERNEL

    @property
    def is_norm(self) -> bool:
        return self.rules.role is Role.NORM

    @property
    def is_conv(self) -> bool:
        """Whether it slides over a feature map: a convolution, transposed or with computed weights included."""
        return self.rules.convolves

    @property
    def is_linear(self) -> bool:
        """Whether it multiplies the last axis of its input with its weight, a matrix."""
        return self.rules.channels is ChannelRule.LINEAR

    @property
    def is_depthwise(self) -> bool:
        """Whether every output channel has a group of its own: it writes the channels that it reads."""
        return self.groups > 1 and self.groups == self.out_channels

    @property
    def gates(self) -> int:
        """How many rows of a recurrent layer's weights belong to one hidden unit: 4 of an LSTM; 1 of other layers."""
        again = self.tensors.get("weight_hh_l0")
        return again.shape[0] // again.shape[1] if again is not None and len(again.shape) == 2 else 1

    @property
    def out_axis(self) -> int:
        """The axis of its output along which channels lie: 1 in a feature map, else -1."""
        return self.rules.out_axis

    @property
    def in_axis(self) -> int:
        """The axis of its weight along which it reads channels, of a kernel."""
        return 0 if self.transposed else self.rules.in_axis


@dataclass(frozen=True)
class Node:
    """One step of the forward pass: the input, a call of a layer, an operation without parameters, the output."""

    id: str  # unique; for a layer's first call the layer's name, then "name@2", ...
    op: str  # "input", "output", "layer", "parameter", else the operation's name ("add", "cat", "view")
    inputs: tuple[str, ...] = ()
    layer: str | None = None
    shape: Shape = ()
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON-able arguments that matter, e.g. {"dim": 1}

    @property
    def adds_data(self) -> bool:
        """Whether all that an addition or concatenation puts together are other nodes' values: no number, no buffer."""
        args = self.facts.get("args", ())
        parts = args[0] if self.op in CONCATENATES else args[:2]
        return all(isinstance(part, str) and part.startswith("%") for part in parts)


@dataclass(frozen=True)
class LayerGraph:
    """An architecture: nodes in execution order (so edges point backwards in the tuple), layers by name."""

    nodes: tuple[Node, ...]
    layers: Mapping[str, Layer]
    loose: Mapping[str, Slot] = field(default_factory=dict)  # state_dict entries the forward pass never touched
    rung: str = "drawn"  # how it was traced
    warnings: tuple[str, ...] = ()

    @cached_property
    def by_id(self) -> dict[str, Node]:
        return {node.id: node for node in self.nodes}

    @cached_property
    def dag(self) -> nx.DiGraph[str]:
        """Data flow between node ids, for graph algorithms; networkx is imported when it is first asked for."""
        import networkx as nx

        dag: nx.DiGraph[str] = nx.DiGraph()
        for node in self.nodes:
            dag.add_node(node.id)
            dag.add_edges_from((source, node.id) for source in node.inputs)
        return dag

    @cached_property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """For every node id the nodes that read it, in execution order."""
        found: dict[str, list[str]] = {node.id: [] for node in self.nodes}
        for node in self.nodes:
            for source in dict.fromkeys(node.inputs):
                found[source].append(node.id)
        return {id: tuple(readers) for id, readers in found.items()}

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """Every state_dict key, aliases included, and the tensor behind it."""
        found: dict[str, Slot] = {}
        for slot in [s for layer in self.layers.values() for s in layer.tensors.values()] + list(self.loose.values()):
            for key in slot.keys:
                found[key] = slot
        return found

    @cached_property
    def position(self) -> dict[str, int]:
        """For every node id its place in execution order, from 0."""
        return {node.id: i for i, node in enumerate(self.nodes)}

    @cached_property
    def from_input(self) -> frozenset[str]:
        """Ids of the nodes that depend on the model's input."""
        return frozenset(n.id for n in self.walk((n.id for n in self.nodes if n.op == "input"), forwards=True))

    @cached_property
    def to_output(self) -> frozenset[str]:
        """Ids of the nodes the model's output depends on."""
        return frozenset(n.id for n in self.walk(n.id for n in self.nodes if n.op == "output"))

    def walk(
        self, starts: Iterable[str], *, forwards: bool = False, through: Callable[[Node], bool] = lambda _: True
    ) -> Iterator[Node]:
        """The nodes with ids ``starts`` and what they were computed from, each once, depth first.

        With ``forwards`` the nodes that read them instead. Nothing is looked for behind a node of which ``through`` is
        not true; the node itself still comes.
        """
        stack = list(dict.fromkeys(starts))
        seen = set(stack)
        while stack:
            node = self.by_id[stack.pop()]
            yield node
            if through(node):
                fresh = [id for id in (self.readers[node.id] if forwards else node.inputs) if id not in seen]
                seen.update(fresh)
                stack += dict.fromkeys(fresh)

    def layer_of(self, node: Node) -> Layer | None:
        """The layer that a node is a call of, or whose tensor it passes on; None for an operation."""
        return self.layers[node.layer] if node.layer is not None else None

    def kernel_of(self, node: Node) -> Layer | None:
        """The kernel layer that a node is a call of; None for any other node."""
        layer = self.layer_of(node) if node.op == "layer" else None
        return layer if layer is not None and layer.is_kernel else None

    def kernels(self) -> list[Layer]:
        """The layers that could stand on a chain, in execution order."""
        return [layer for layer in self.layers.values() if layer.is_kernel]

    def layer_edges(self) -> list[tuple[str, str]]:
        """(from, to) for every two layers with a path of operations, but no third layer, between them; in order."""
        sources: dict[str, tuple[str, ...]] = {}  # node id -> the layers whose data arrives there
        edges: dict[tuple[str, str], None] = {}
        for node in self.nodes:
            arriving = tuple(dict.fromkeys(name for i in node.inputs for name in sources[i]))
            if node.layer is None:
                sources[node.id] = arriving
            else:
                edges.update(dict.fromkeys((name, node.layer) for name in arriving))
                sources[node.id] = (node.layer,)
        return list(edges)

    def heads(self) -> list[Layer]:
        """The kernel layers that the output depends on through no further kernel layer: one classifier, or several."""
        feeds_kernel: set[str] = set()
        found: dict[str, Layer] = {}
        for node in reversed(self.nodes):
            if node.id not in self.to_output:
                continue
            kernel = self.kernel_of(node)
            if kernel is not None and node.id not in feeds_kernel:
                found[kernel.name] = kernel
            if kernel is not None or node.id in feeds_kernel:
                feeds_kernel.update(node.inputs)
        return list(found.values())[::-1]

    @cached_property
    def head_names(self) -> frozenset[str]:
        """The names of ``heads()``."""
        return frozenset(layer.name for layer in self.heads())

    def fingerprint(self) -> str:
        """sha256 over layers and wiring; equal for equal architectures whatever the tracer's node names."""
        facts = {
            "layers": [to_jsonable(asdict(layer)) for layer in self.layers.values()],
            "loose": [to_jsonable(asdict(slot)) for slot in self.loose.values()],
            "nodes": [[n.op, n.layer, [self.position[i] for i in n.inputs]] for n in self.nodes],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def same_wiring(first: LayerGraph, second: LayerGraph) -> dict[str, str] | None:
    """Layers of ``second`` by the layer of ``first`` in the same place, if the two graphs have the same wiring.

    Same wiring: the same kinds of layers and operations, fed by one another in the same order. Names and shapes may
    differ; tensors outside any layer must correspond too.
    """
    if len(first.nodes) != len(second.nodes) or len(first.loose) != len(second.loose):
        return None
    layers: dict[str, str] = {}
    for a, b in zip(first.nodes, second.nodes, strict=True):
        if a.op != b.op or [first.position[i] for i in a.inputs] != [second.position[i] for i in b.inputs]:
            return None
        layer, partner = first.layer_of(a), second.layer_of(b)
        if layer is None or partner is None:
            continue
        if layer.kind != partner.kind or layer.tensors.keys() != partner.tensors.keys():
            return None
        if layers.setdefault(layer.name, partner.name) != partner.name:
            return None
    return layers


def to_jsonable(value: Any) -> Any:
    """Tuples to lists and mappings to dicts, recursively."""
    if isinstance(value, Mapping):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_jsonable(v) for v in value]
    return value
