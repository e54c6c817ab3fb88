"""The matcher wired between real networks: how much of their wiring it keeps, what it pairs, how long it takes."""

import time
from functools import cache
from itertools import pairwise

import pytest

from netgraft.architecture.blocks import find_blocks
from netgraft.architecture.spine import is_identity_when_zero, spine
from netgraft.architecture.wiring import Wiring
from netgraft.channels.groups.find import find_groups
from netgraft.matchers._separable import join_separable
from netgraft.matchers.longest_chain import LongestChain
from netgraft.matchers.wired import Wired
from netgraft.models.model import load_model
from netgraft.trace import trace


def pairs(pairing):
    return {pair.target: pair.source for pair in pairing.pairs}


def block(name):
    return name.rpartition(".")[0]


@cache
def timm(name):
    return trace(load_model(name, role="target"))


@cache
def read_and_written(graph_name):
    """The channel groups that each kernel of a timm model reads and writes, by ``netgraft.channels.groups``."""
    graph = timm(graph_name)
    members = [(group.name, set(group.members)) for group in find_groups(graph).groups]
    return {
        layer.name: [
            {group for group, where in members if (layer.tensors["weight"].key, axis) in where} for axis in (1, 0)
        ]
        for layer in graph.kernels()
    }


def reading(graph, names):
    """How many of the layers read channels that the one before in the list writes."""
    spaces = Wiring(graph).spaces
    return sum(bool({*spaces.of(b)[0]} & {*spaces.of(a)[1]}) for a, b in pairwise(names))


def wires_kept(source, target, pairing):
    """How many pairs of kernels of the target, one reading what the other writes, have partners that do too."""
    there, here, found = read_and_written(source), read_and_written(target), pairs(pairing)
    names = [name for name in here if name in found]
    return sum(
        bool(here[a][1] & here[b][0] and there[found[a]][1] & there[found[b]][0])
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    )


REAL = [
    ("resnet50", "mobilenetv3_large_100"),
    ("resnet50", "resnet18"),
    ("resnet34", "resnet18"),
    ("resnet18", "resnet34"),
    ("efficientnet_b0", "mobilenetv2_100"),
    ("resnext50_32x4d", "regnety_004"),
]


@pytest.mark.parametrize(("source", "target"), REAL)
def test_more_wires_than_the_longest_chain_keeps(source, target):
    ours, chain = (matcher(timm(source), timm(target)) for matcher in (Wired(), LongestChain()))
    assert wires_kept(source, target, ours) > wires_kept(source, target, chain)


@pytest.mark.parametrize(
    ("source", "target", "share"),
    [
        ("resnet50", "mobilenetv3_large_100", 1.0),
        ("resnet18", "vgg11_bn", 1.0),
        ("resnet18", "convnext_atto", 1.0),
        ("resnet34", "resnet18", 1.0),
        ("densenet121", "resnet50", 0.9),
        ("hrnet_w18", "resnet50", 0.9),
        ("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", 0.9),
    ],
)
def test_paired_layers_follow_the_wiring(source, target, share):
    found = pairs(Wired()(timm(source), timm(target)))
    names = [found[name] for name in Wiring(timm(target)).chain if name in found]
    assert reading(timm(source), names) >= share * (len(names) - 1)


def test_stage_by_stage_between_resnet_and_mobilenet():
    found = pairs(Wired()(timm("resnet50"), timm("mobilenetv3_large_100")))
    for stage, there in {"2": "2", "3": "3", "4": "3", "5": "4"}.items():
        for name in [name for name in found if name.startswith(f"blocks.{stage}.")]:
            assert found[name].startswith(f"layer{there}.")
    assert found["blocks.3.0.conv_dw"] == "layer3.0.conv2"
    assert found["conv_stem"] == "conv1"
    assert found["classifier"] == "fc"


def test_attention_to_attention_and_mlp_to_mlp():
    found = pairs(Wired()(timm("swin_tiny_patch4_window7_224"), timm("vit_tiny_patch16_224")))
    kinds = {name.split(".", 2)[2]: set() for name in found if name.startswith("blocks.")}
    for name, other in found.items():
        if name.startswith("blocks."):
            kinds[name.split(".", 2)[2]].add(other.split(".", 4)[4])
    assert kinds == {kind: {kind} for kind in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")}
    assert len({block(block(found[f"blocks.{i}.mlp.fc1"])) for i in range(12)}) == 12


@pytest.mark.parametrize(
    "name", ["resnet50", "mobilenetv3_large_100", "swin_tiny_patch4_window7_224", "hrnet_w18", "convnext_atto"]
)
def test_identity_covers_every_layer(name):
    assert pairs(Wired()(timm(name), timm(name))) == {layer: layer for layer in timm(name).layers}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("resnet50", "mobilenetv3_large_100"),
        ("densenet121", "resnet50"),
        ("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"),
        ("hrnet_w18", "resnet50"),
    ],
)
def test_less_than_a_second(source, target):
    graphs = timm(source), timm(target)
    start = time.process_time()
    Wired()(*graphs)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("name", ["resnet50", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv2_100"])
def test_blocks_are_the_residual_units_of_the_spine(name):
    graph = timm(name)
    residual = [
        {layer for layer in unit.layers if graph.layers[layer].is_kernel}
        for unit in spine(graph)
        if unit.exit.op == "add" and unit.entry is not None
    ]
    assert [set(block.kernels) for block in find_blocks(graph)] == [kernels for kernels in residual if kernels]
    plain_units = [unit for unit in spine(graph) if is_identity_when_zero(graph, unit)]
    assert len(plain_units) <= len(residual)


def test_which_mobilenets_are_made_of_separable_pairs():
    """Version 1 is; version 2 widens before each depthwise layer, and EfficientNet too."""
    first = Wiring(timm("mobilenetv1_100"))
    _, groups = join_separable(first.places(first.chain), [])
    names = [[place.layer.name.rpartition(".")[2] for place in group] for group in groups]
    assert names == [["conv_stem"], *[["conv_dw", "conv_pw"]] * 13, ["classifier"]]
    for name in ("mobilenetv2_100", "efficientnet_b0", "resnet18"):
        wiring = Wiring(timm(name))
        places = wiring.places(wiring.chain)
        assert join_separable(places, []) == (places, [(place,) for place in places])
    found = pairs(Wired(reuse=True)(timm("vgg16"), timm("mobilenetv1_100")))
    halves = [block(name) for name in found if name.endswith("conv_dw")]
    assert len(halves) == 13
    assert all(found[f"{name}.conv_dw"] == found[f"{name}.conv_pw"] for name in halves)
