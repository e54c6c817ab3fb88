"""A module that normalises and activates is one call, and two steps to whoever reads the graph."""

import torch.nn.functional as F
from support.nets import traced
from timm.layers import BatchNormAct2d
from torch import nn


def steps(*layers):
    graph = traced(lambda: nn.Sequential(*layers), (3, 8, 8))
    return [(node.op, node.inputs) for node in graph.nodes if node.op not in ("input", "output")], graph


def test_the_activation_is_seen():
    found, graph = steps(nn.Conv2d(3, 4, 1), BatchNormAct2d(4, act_layer=nn.ReLU6), nn.Conv2d(4, 2, 1))
    assert found == [("layer", ("input",)), ("layer", ("0",)), ("hardtanh", ("1",)), ("layer", ("1.hardtanh",))]
    assert graph.by_id["1.hardtanh"].facts == {"args": ["%1", 0.0, 6.0]}


def test_without_one_there_is_one_step():
    assert [op for op, _ in steps(nn.Conv2d(3, 4, 1), BatchNormAct2d(4, apply_act=False))[0]] == ["layer", "layer"]


class GoesOn(nn.Conv2d):
    def forward(self, x):
        return x + F.relu(super().forward(x))


def test_a_module_that_goes_on_with_more_stays_whole():
    assert [op for op, _ in steps(GoesOn(3, 3, 1))[0]] == ["layer"]
