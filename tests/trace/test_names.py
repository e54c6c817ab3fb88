"""People call layers and parameters what they like: "input", "output", and what operations are called."""

import torch
from support.nets import traced
from torch import nn

from netgraft.architecture.chain import longest_chain


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.input, self.relu_default = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.output, self.add_tensor = nn.Linear(8, 5), nn.Parameter(torch.zeros(5))

    def forward(self, x):
        x = torch.relu(self.relu_default(torch.relu(self.input(x))))
        return self.output(x.mean((2, 3))) + self.add_tensor


def test_no_two_nodes_have_one_id():
    graph = traced(Named, (3, 8, 8))
    ids = [node.id for node in graph.nodes]
    assert len(set(ids)) == len(ids)
    assert all(graph.position[id] < graph.position[node.id] for node in graph.nodes for id in node.inputs)
    assert longest_chain(graph).layers == ("input", "relu_default", "output")
    assert [layer.name for layer in graph.heads()] == ["output"]
