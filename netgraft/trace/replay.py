"""A forward pass that can be stopped between any two of its operations: recorded once, then run node by node.

The recording knows every operation with its arguments, so a value can be looked at where it is made, a layer can get
new weights just before it runs, and what lies between two nodes can be run again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from netgraft.errors import TraceError
from netgraft.trace.forward import calm
from netgraft.trace.recorder import Recorder
from netgraft.trace.reduce import reduce_with_ids
from netgraft.trace.structure import tensors_in


class Replay:
    """The forward pass of ``module`` on ``inputs``, which it is in eval mode and without gradients.

    ``graph`` is what the recording says of the architecture: the layers and node ids of ``trace`` on the same model.
    Raises TraceError if the pass cannot be run again from its recording.
    """

    def __init__(self, module: nn.Module, *inputs: Tensor) -> None:
        self.module, self.inputs = module.eval(), inputs
        self.device = inputs[0].device
        recorder = Recorder(module, keep_constants=True)
        for i, tensor in enumerate(inputs):
            recorder.placeholder(f"input_{i}" if i else "input", tensor)
        with calm(str(self.device)), recorder.recording():
            result = module(*inputs)
        recorder.finish(result)
        self.graph, ids, results = reduce_with_ids(recorder.graph, module, rung="replay")
        self.nodes: list[fx.Node] = list(recorder.graph.nodes)
        self.place = {node: i for i, node in enumerate(self.nodes)}
        self.ids = ids
        self.ends = {id: node for node, id in ids.items()}  # a layer whose bias is an addition ends with that addition
        self.starts = {id: node for node, id in reversed(ids.items())}
        for node, id in results.items():  # a norm and its activation run as one: both have the value behind the latter
            self.ends[id] = self.starts[id] = node
        self.at = 0  # the place of the node that runs next
        self.values: dict[fx.Node, Any] = {}
        self.last_use = {other: node for node in self.nodes for other in node.all_input_nodes}
        self.held: dict[fx.Node, int] = {}  # values that somebody still wants

    def beside(self, *inputs: Tensor) -> Self:
        """Another pass of the same recording, on other inputs of the same shapes, that has not begun."""
        other = copy.copy(self)
        other.inputs, other.at, other.values, other.held = inputs, 0, {}, dict(self.held)
        return other

    def run(self) -> Iterator[fx.Node]:
        """Every node in order, each *before* it runs: its inputs are in ``values``, its own value is not."""
        self.values.clear()
        self.at = 0
        while self.at < len(self.nodes):
            yield self.nodes[self.at]
            self._step()

    def advance(self, end: fx.Node) -> None:
        """Run what has not run yet of the nodes before ``end``."""
        while self.at < self.place[end]:
            self._step()

    def _step(self) -> None:
        node = self.nodes[self.at]
        self.values[node] = self.evaluate(node)
        self.at += 1
        for other in (*node.all_input_nodes, node):
            if self.last_use.get(other, other) is node and not self.held.get(other) and node.op != "output":
                self.values.pop(other, None)

    def numbers_at(self, end: fx.Node) -> int:
        """How many numbers are kept just before ``end`` runs."""
        before = self.nodes[: self.place[end]]
        kept = [node for node in before if self.held.get(node) or self.place[self._last(node)] >= self.place[end]]
        return sum(prod(node.meta.get("shape", ())) for node in kept if node.op != "get_attr")

    def watch(self, wanted: Mapping[fx.Node, Callable[[Any], None]]) -> None:
        """Run the pass, and hand the value of each wanted node to its function as soon as it is made."""
        before: fx.Node | None = None
        for node in wanted:
            self.hold(node)
        for node in self.run():
            if before is not None and before in wanted:
                wanted[before](self.values[before])
                self.release(before)
            before = node
        if before is not None and before in wanted:
            wanted[before](self.values[before])

    def hold(self, node: fx.Node) -> None:
        """Keep the node's value until it is released as often as it was held."""
        self.held[node] = self.held.get(node, 0) + 1

    def release(self, node: fx.Node) -> None:
        """Undo one ``hold``."""
        self.held[node] -= 1
        self._drop([node])

    def again(self, first: fx.Node, last: fx.Node) -> None:
        """Run those nodes from ``first`` to ``last`` again that depend on ``first``; what else they read must be held.

        Operations in place would be done twice, so they work on copies.
        """
        changed = {first}
        for node in self.nodes[self.place[first] : self.place[last] + 1]:
            if node is first or changed.intersection(node.all_input_nodes):
                changed.add(node)
                self.values[node] = self.evaluate(node, copies=True)

    def tidy(self) -> None:
        """Drop what ``again`` has left: values that nothing will read before they are made anew."""
        self._drop(list(self.values))

    def _drop(self, nodes: list[fx.Node]) -> None:
        for node in nodes:
            made_again = self.place[node] >= self.at
            if made_again or (not self.held.get(node) and self.place[self._last(node)] < self.at):
                self.values.pop(node, None)

    def _last(self, node: fx.Node) -> fx.Node:
        return self.last_use.get(node, node)

    def send(self, start: fx.Node, value: Tensor, end: fx.Node) -> Tensor | None:
        """What arrives at ``end`` if ``start`` puts out ``value``; None where other data of the pass is needed too."""
        found: dict[fx.Node, Any] = {start: value}

        def read(node: fx.Node) -> Any:
            return self._attribute(node) if node.op == "get_attr" and node not in found else found[node]

        for node in self.nodes[self.place[start] + 1 : self.place[end] + 1]:
            if found.keys().isdisjoint(node.all_input_nodes):
                continue
            if not callable(node.target):
                return None
            try:
                args, kwargs = fx.node.map_arg(node.args, read), fx.node.map_arg(node.kwargs, read)
                with torch.no_grad(), torch.device(self.device):
                    found[node] = node.target(*args, **kwargs)
            except KeyError:
                continue  # it reads other data, which is of no use unless it leads to the end
        return found.get(end)

    def evaluate(self, node: fx.Node, *, copies: bool = False) -> Any:
        """The value of a node from those of its inputs."""
        if node.op == "placeholder":
            return self.inputs[int(str(node.target).removeprefix("input").lstrip("_") or 0)]
        if node.op == "get_attr":
            return self._attribute(node)
        read = self._read_copy if copies else self.values.__getitem__
        args = fx.node.map_arg(node.args, read)
        kwargs = fx.node.map_arg(node.kwargs, read)
        if node.op == "output":
            return args[0]
        function: Any = self.module.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        try:
            with torch.no_grad(), torch.device(self.device):
                return function(*args, **kwargs)
        except Exception as error:  # an argument that the recording could not keep, whatever that leads to
            raise TraceError(
                f"The forward pass of {type(self.module).__name__} cannot be run one operation at a time.",
                where=f"{node.format_node()}: {type(error).__name__}: {error}",
            ) from error

    def _read_copy(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._attribute(node)
        value = self.values[node]
        return value.clone() if isinstance(value, Tensor) else value

    def _attribute(self, node: fx.Node) -> Tensor:
        if "value" in node.meta:
            constant: Tensor = node.meta["value"]
            return constant
        owner, _, name = str(node.target).rpartition(".")
        tensor: Tensor = getattr(self.module.get_submodule(owner), name)
        return tensor


def check_replay(replay: Replay) -> None:
    """Raise TraceError unless running the recording again gives what the model gives."""
    results: list[Any] = []
    replay.watch({replay.nodes[-1]: results.append})
    again = tensors_in(results)
    with calm(str(replay.device)):
        torch.default_generator.manual_seed(1)  # other random numbers than those that were recorded
        wanted = tensors_in(replay.module(*replay.inputs))
    if len(again) != len(wanted) or not all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4 * max(float(b.abs().max()), 1e-6))
        for a, b in zip(again, wanted, strict=True)
    ):
        raise TraceError(
            f"The forward pass of {type(replay.module).__name__} gives something else when it is run again.",
            hint="Does it draw random numbers in eval mode, or keep state between calls?",
        )
