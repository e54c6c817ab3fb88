"""The law of channel groups on a real network: permute a group's channels in every member, and nothing changes."""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass

import torch

from netgraft.channels.groups.axes import variables
from netgraft.channels.groups.find import find_groups
from netgraft.trace import trace
from netgraft.trace.structure import map_tensors, tensors_in


@dataclass(frozen=True)
class Model:
    """What ``trace`` wants to know, for a network that is built elsewhere."""

    build: object
    input_size: tuple[int, ...] | None = (3, 16, 16)
    example_inputs: object = None
    name: str = "net"
    file: object = None


def looks_trained(net, seed=0):
    """Random statistics, norms, biases and layer scales, so that no channel is like another and none is idle."""
    generator = torch.Generator().manual_seed(seed)

    def noise(t, uniform=False):
        draw = torch.rand if uniform else torch.randn
        return draw(t.shape, generator=generator, dtype=torch.float32).to(t.dtype)

    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if key.endswith("running_var"):
                tensor.copy_(noise(tensor, uniform=True) + 0.5)
            elif key.endswith("running_mean"):
                tensor.copy_(noise(tensor) * 0.1)
            elif tensor.ndim <= 1 or tensor.numel() == max(tensor.shape):
                tensor.add_(noise(tensor) * 0.2 + (0.3 if key.endswith("weight") or "gamma" in key else 0))
            elif not tensor.std() > 0.03:
                tensor.add_(noise(tensor) * 0.03)


class Subject:
    """A network with random weights, its groups, and what it answers to one input."""

    def __init__(self, model, size=None, dtype=torch.float64, seed=0):
        self.graph = trace(model)
        self.groups = find_groups(self.graph)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            self.net = model.build().eval().to(dtype)
            looks_trained(self.net, seed)
            if model.example_inputs is None:
                self.inputs = (torch.randn(1, *(size or model.input_size), dtype=dtype),)
            else:
                given = model.example_inputs()
                self.inputs = map_tensors(
                    lambda t: torch.randn_like(t, dtype=dtype) if t.is_floating_point() else t, given
                )
        self.state = {key: tensor.clone() for key, tensor in self.net.state_dict().items()}
        self.slots = {slot.key: slot for layer in self.graph.layers.values() for slot in layer.tensors.values()}
        self.random = random.Random(seed)
        self.reference = self.answer(self.state)

    def answer(self, state):
        """Everything the network returns with these weights, as one vector."""
        self.net.load_state_dict(state)
        self.net.train().eval()  # some keep in eval mode what they computed from weights
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = tensors_in(self.net(*self.inputs))
        return torch.cat([t.flatten().double() for t in found if t.is_floating_point()])

    def permutation(self, size):
        """Any order of ``size`` channels but the one they have."""
        order = list(range(size))
        while order == sorted(order):
            self.random.shuffle(order)
        return order

    def permuted(self, chosen, without=()):
        """The weights with the channels of these groups permuted, in all members but the (key, axis) in ``without``.

        The permutations are drawn anew each time.
        """
        maps = {group.name: self.permutation(group.size) for group in chosen}
        state = dict(self.state)
        for key, axis in dict.fromkeys(member for group in chosen for member in group.members):
            if (key, axis) in without:
                continue
            index = torch.tensor(self.groups.index(key, axis, maps))
            moved = state[key].index_select(axis, index)
            for name in (key, *self.slots[key].aliases):
                state[name] = moved
        return state

    def error(self, state):
        """How far the answer is from that of the network as it was, relative to its size."""
        return ((self.answer(state) - self.reference).norm() / self.reference.norm()).item()

    def fixed(self):
        """Keys of the parameters with channels that stand in no group."""
        return [
            key
            for key, slot in self.slots.items()
            if not slot.buffer
            and max(slot.shape, default=0) > 1
            and not any(True for axis in self.groups.axes.get(key, ()) for _ in variables(axis))
        ]
