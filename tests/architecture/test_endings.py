"""Where a layer's value is complete: after its norm, its scale, its addition."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from support.nets import traced
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from netgraft.architecture.endings import find_endings
from netgraft.architecture.graph import Layer, LayerGraph, Node


def conv(name):
    return Layer(name, "conv2d", (4, 4, 3, 3), in_shape=(2, 4, 8, 8), out_shape=(2, 4, 8, 8))


def drawn(*lines):
    """A graph from lines "id op inputs": an op of "conv2d", "batch_norm" or "parameter" is a layer."""
    nodes, layers = [], {}
    for line in lines:
        id, op, *inputs = line.split()
        if op == "parameter":
            layers[id] = Layer(id, op, (4, 1, 1))
            nodes.append(Node(id, op, (), id, (4, 1, 1)))
        elif op in ("conv2d", "batch_norm"):
            layers[id] = conv(id) if op == "conv2d" else Layer(id, op, (4,))
            nodes.append(Node(id, "layer", tuple(inputs), id, (2, 4, 8, 8)))
        else:
            nodes.append(Node(id, op, tuple(inputs), None, (2, 4, 8, 8)))
    return LayerGraph(tuple(nodes), layers)


def facts(ending):
    return (ending.node, ending.norm, ending.scale, ending.add, ending.skip, ending.main, ending.late, ending.activated)


PLAIN = {  # lines between "in input" and "out output": (node, norm, scale, add, skip, main, late, activated) of c
    "alone": ("c conv2d in", ("c", None, None, None, None, True, False, False)),
    "relu": ("c conv2d in | r relu c", ("c", None, None, None, None, True, False, True)),
    "norm, relu": ("c conv2d in | n batch_norm c | r relu n", ("n", "n", None, None, None, True, False, True)),
    "relu, norm": ("c conv2d in | r relu c | n batch_norm r", ("n", "n", None, None, None, True, True, False)),
    "two relus, norm": (
        "c conv2d in | r relu c | s relu r | n batch_norm s",
        ("c", None, None, None, None, True, False, True),
    ),
    "relu, addition": ("c conv2d in | r relu c | a add r in", ("c", None, None, None, None, True, False, True)),
    "moved, norm": ("c conv2d in | v view c | n batch_norm v", ("n", "n", None, None, None, True, False, False)),
    "pooled, norm": (
        "c conv2d in | p max_pool2d c | n batch_norm p",
        ("c", None, None, None, None, True, False, False),
    ),
    "two norms": (
        "c conv2d in | n batch_norm c | m batch_norm n",
        ("n", "n", None, None, None, True, False, False),
    ),
    "residual": ("c conv2d in | a add c in | r relu a", ("a", None, None, "a", "in", True, False, True)),
    "residual with norm": (
        "c conv2d in | n batch_norm c | a add in n",
        ("a", "n", None, "a", "in", True, False, False),
    ),
    "residual, late norm": (
        "c conv2d in | r relu c | n batch_norm r | a add n in",
        ("a", "n", None, "a", "in", True, True, False),
    ),
    "norm, relu, addition": (
        "c conv2d in | n batch_norm c | r relu n | a add r in",
        ("n", "n", None, None, None, True, False, True),
    ),
    "scaled residual": (
        "c conv2d in | g parameter | s mul c g | v permute s | a add v in",
        ("a", None, "g", "a", "in", True, False, False),
    ),
    "scale without an addition": (
        "c conv2d in | g parameter | s mul c g",
        ("c", None, None, None, None, True, False, False),
    ),
    "read twice": ("c conv2d in | r relu c | a add r c", ("c", None, None, None, None, True, False, True)),
    "added to itself": ("c conv2d in | a add c c", ("c", None, None, None, None, True, False, False)),
}


@pytest.mark.parametrize(("lines", "expected"), PLAIN.values(), ids=PLAIN)
def test_hand_drawn(lines, expected):
    lines = lines.split(" | ")
    last = lines[-1].split()[0]
    found = find_endings(drawn("in input", *lines, f"out output {last}"))
    assert facts(found["c"]) == expected


def test_what_is_added_must_be_data_of_the_same_shape():
    graph = drawn("in input", "p parameter", "c conv2d in", "a add c p", "out output a")
    assert find_endings(graph)["c"].add is None
    small = Node("s", "mean", ("in",), None, (2, 4, 1, 1))
    nodes = [*drawn("in input", "c conv2d in", "a add c s", "out output a").nodes]
    graph = LayerGraph((nodes[0], small, *nodes[1:]), {"c": conv("c")})
    assert find_endings(graph)["c"].add is None


def test_dead_and_repeated_layers_have_no_ending():
    graph = drawn("in input", "c conv2d in", "dead conv2d c", "out output c")
    assert list(find_endings(graph)) == ["c"]

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(self.a(self.a(x)))

    assert list(find_endings(traced(Twice, (4,)))) == ["b"]


class Block(nn.Module):
    """A residual block with a projection, as in ResNet; ``first`` says which branch runs first."""

    def __init__(self, first="branch"):
        super().__init__()
        self.first = first
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.proj, self.bnp = nn.Conv2d(3, 6, 1, 2), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        if self.first == "branch":
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            z = self.bnp(self.proj(x))
        else:
            z = self.bnp(self.proj(x))
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.head(F.relu(z + y).mean((2, 3)))


@pytest.mark.parametrize("first", ["branch", "projection"])
def test_of_two_branches_the_deeper_is_the_main_one(first):
    graph = traced(lambda: Block(first))
    found = find_endings(graph)
    add = next(node for node in graph.nodes if node.op == "add")
    branch, projection = found["conv2"], found["proj"]
    assert (branch.node, branch.norm, branch.add, branch.main) == (add.id, "bn2", add.id, True)
    assert (projection.node, projection.norm, projection.add, projection.main) == (add.id, "bnp", add.id, False)
    assert {branch.skip, projection.skip} == set(add.inputs)
    assert graph.by_id[branch.skip].layer == "bnp"
    assert (found["conv1"].norm, found["conv1"].add, found["conv1"].activated) == ("bn1", None, True)
    assert branch.activated
    assert (found["head"].node, found["head"].activated) == ("head", False)


def adds(graph):
    return {name: ending for name, ending in find_endings(graph).items() if ending.add}


def test_vision_transformer():
    graph = traced(lambda: VisionTransformer(16, 4, embed_dim=12, depth=2, num_heads=2, num_classes=3, init_values=0.1))
    found = adds(graph)
    assert list(found) == ["blocks.0.attn.proj", "blocks.0.mlp.fc2", "blocks.1.attn.proj", "blocks.1.mlp.fc2"]
    assert all(ending.main and ending.norm is None for ending in found.values())
    scales = [graph.layers[ending.scale] for ending in found.values()]
    assert [slot.key for layer in scales for slot in layer.tensors.values()] == [
        f"blocks.{i}.ls{k}.gamma" for i in range(2) for k in (1, 2)
    ]
    assert find_endings(graph)["blocks.0.mlp.fc1"].activated


def test_swin_ends_behind_its_windows():
    graph = traced(
        lambda: SwinTransformer(32, 2, embed_dim=8, depths=(2,), num_heads=(2,), window_size=4, num_classes=3),
        (3, 32, 32),
    )
    found = adds(graph)
    names = [f"layers.0.blocks.{i}.{layer}" for i in range(2) for layer in ("attn.proj", "mlp.fc2")]
    assert list(found) == names
    for before, after in pairwise(names):
        skip = found[after].skip
        while graph.by_id[skip].op == "view":
            (skip,) = graph.by_id[skip].inputs
        assert skip == found[before].add


def test_convnext():
    graph = traced(lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), num_classes=3), (3, 32, 32))
    found = adds(graph)
    assert list(found) == [f"stages.{i}.blocks.0.mlp.fc2" for i in range(4)]
    for i, ending in enumerate(found.values()):
        slots = graph.layers[ending.scale].tensors.values()
        assert [slot.key for slot in slots] == [f"stages.{i}.blocks.0.gamma"]
        assert graph.by_id[ending.add].shape[1] == (4, 4, 8, 8)[i]


def test_every_node_of_an_ending_is_one_of_the_graph():
    graph = traced(Block)
    for name, ending in find_endings(graph).items():
        assert ending.layer == name
        assert {ending.node, ending.norm, ending.scale, ending.add, ending.skip} - {None} <= {
            *graph.by_id,
            *graph.layers,
        }
        assert torch.Size(graph.by_id[ending.node].shape)[0] == 2


GATES = {  # lines between "in input" and "out output a": (addition, whether a gate multiplies what is added)
    "with a layer": ("c conv2d in | k conv2d c | s sigmoid k | p mul c s | a add p in", ("a", True)),
    "behind a norm": (
        "c conv2d in | n batch_norm c | k conv2d n | s sigmoid k | p mul s n | a add p in",
        ("a", True),
    ),
    "two": (
        "c conv2d in | k conv2d c | s sigmoid k | p mul c s | l conv2d p | t sigmoid l | q mul p t | a add q in",
        ("a", True),
    ),
    "of something else": ("c conv2d in | m mean in | s sigmoid m | p mul c s | a add p in", (None, False)),
    "an activation written out": ("c conv2d in | s sigmoid c | p mul c s | a add p in", (None, False)),
    "read elsewhere too": (
        "c conv2d in | k conv2d c | s sigmoid k | p mul c s | b add p in | a add b c",
        (None, False),
    ),
    "before a late norm": (
        "c conv2d in | r relu c | k conv2d r | s sigmoid k | p mul r s | n batch_norm p | a add n in",
        (None, False),
    ),
}


@pytest.mark.parametrize(("lines", "expected"), GATES.values(), ids=GATES)
def test_the_way_goes_on_behind_a_gate(lines, expected):
    found = find_endings(drawn("in input", *lines.split(" | "), "out output a"))["c"]
    assert (found.add, found.gated) == expected
