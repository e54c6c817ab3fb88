"""Layers and entries that are taken, against NumPy's indexing, and through a forward pass."""

import numpy as np
import pytest
import torch
from support import transformer_nets as nets
from support.nets import Straight, traced, weights
from support.recipe_laws import check_laws
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, ResNet

from netgraft.graft import graft
from netgraft.recipes.weight_selection import WeightSelection


def made(source, target, size=nets.SIZE, **options):
    plan = check_laws(WeightSelection(**options), traced(source, size), traced(target, size))
    theirs, own = weights(source), weights(target, seed=1)
    return plan, theirs, own, graft(plan, theirs, own)


def evenly(before, after):
    if before % after == 0:
        return np.arange(after) * (before // after)
    return np.round(np.linspace(0, before - 1, after)).astype(int)


def resnet(layers, width):
    return lambda: ResNet(
        BasicBlock, layers, num_classes=5, channels=[width, 2 * width, 4 * width, 8 * width], stem_width=width
    )


def convnext(depths, width):
    return lambda: ConvNeXt(num_classes=5, depths=depths, dims=tuple(width * k for k in (1, 2, 3, 4)), patch_size=1)


FAMILIES = {
    # of one family the same names mean the same place: "stages.1.blocks.0" is the first block of the second stage
    "vit": (lambda: nets.vit(depth=4, embed_dim=40), lambda: nets.vit(depth=2, embed_dim=16), nets.SIZE),
    "resnet": (resnet([3, 2, 1, 1], 8), resnet([1, 2, 1, 1], 4), (3, 32, 32)),
    "convnext": (convnext((2, 1, 3, 1), 8), convnext((1, 1, 2, 1), 6), (3, 16, 16)),
}


@pytest.mark.parametrize(("source", "target", "size"), FAMILIES.values(), ids=FAMILIES)
def test_first_layers_and_evenly_spaced_entries(source, target, size):
    plan, theirs, _, ours = made(source, target, size)
    assert not plan.kept
    assert {move.key: move.source_key for move in plan.moves} == {key: key for key in ours}
    for key, tensor in ours.items():
        axes = [evenly(*pair) for pair in zip(theirs[key].shape, tensor.shape, strict=True)]
        expected = theirs[key].numpy()[np.ix_(*axes)] if axes else theirs[key].numpy()
        np.testing.assert_array_equal(tensor.numpy(), expected)


@torch.no_grad()
def test_a_network_into_itself_computes_the_same():
    _, theirs, _, ours = made(nets.vit, nets.vit)
    outputs = []
    for state in (theirs, ours):
        net = nets.vit().eval()
        net.load_state_dict(state)
        outputs.append(net(torch.randn(2, *nets.SIZE, generator=torch.Generator().manual_seed(0))))
    assert torch.equal(*outputs)


def test_what_is_wider_or_deeper_keeps_its_own():
    plan, theirs, own, ours = made(Straight, lambda: Straight(((8, 3), (24, 3))), (3, 16, 16))
    kept = {kept.key: kept.why for kept in plan.kept}
    assert "24 of 12: parts are taken of larger tensors" in kept["convs.1.weight"]
    assert torch.equal(ours["convs.1.weight"], own["convs.1.weight"])
    assert torch.equal(ours["convs.0.weight"], theirs["convs.0.weight"])
    plan, *_ = made(nets.vit, lambda: nets.vit(depth=3))
    deeper = {kept.key for kept in plan.kept}
    assert deeper == {key for key in nets.vit(depth=3).state_dict() if key.startswith("blocks.2.")}


def test_selection():
    source, target = (lambda: nets.vit(embed_dim=48)), nets.vit
    _, theirs, _, first = made(source, target, selection="consecutive")
    assert torch.equal(first["blocks.0.attn.proj.weight"], theirs["blocks.0.attn.proj.weight"][:32, :32])
    _, theirs, _, one = made(source, target, selection="random", seed=1)
    _, _, _, other = made(source, target, selection="random", seed=2)
    assert not torch.equal(one["norm.weight"], other["norm.weight"])
    # one set of channels wherever 48 become 32
    read = [theirs["norm.weight"].tolist().index(value) for value in one["norm.weight"].tolist()]
    assert torch.equal(one["pos_embed"], theirs["pos_embed"][..., read])
    assert torch.equal(one["blocks.1.attn.proj.weight"], theirs["blocks.1.attn.proj.weight"][read][:, read])
