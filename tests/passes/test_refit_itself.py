"""A network that holds a source's weights already is refitted to it, recalibrated and rescaled: no bit changes."""

import copy

import pytest
import timm
import torch
from support.refit_nets import Gated, Plain, Residual, Separable, convnext, swin, vit
from support.staged import grafted
from support.stages import network

from netgraft import plugins
from netgraft.models.embedded.resnet20 import ResNet20
from netgraft.models.embedded.vgg11 import VGG11
from netgraft.recipes.refit import GraftAndRefit

FAST = {
    "residual": (Residual, (3, 16, 16)),
    "separable": (Separable, (3, 16, 16)),
    "gates": (lambda: Residual(gated=Gated), (3, 16, 16)),
    "no norm": (lambda: Plain(norm=False), (3, 16, 16)),
    "vit": (vit, (3, 16, 16)),
    "convnext": (convnext, (3, 16, 16)),
    "resnet20-glyphs": (ResNet20, (1, 16, 16)),
}
SLOW = {
    "norm behind the activation": (lambda: Plain(late=True), (3, 16, 16)),
    "swin": (swin, (3, 16, 16)),
    "vgg11-glyphs": (VGG11, (1, 16, 16)),
    "resnet10t": (lambda: timm.create_model("resnet10t"), (3, 32, 32)),
    "mobilenetv2_050": (lambda: timm.create_model("mobilenetv2_050"), (3, 32, 32)),
    "efficientnet_b0": (lambda: timm.create_model("efficientnet_b0"), (3, 32, 32)),
    "convnext_atto": (lambda: timm.create_model("convnext_atto"), (3, 32, 32)),
    "regnetx_002": (lambda: timm.create_model("regnetx_002"), (3, 32, 32)),
}


def lively(source):
    """Statistics, gammas and betas that a trained network could have."""
    rng = torch.Generator().manual_seed(1)
    for key, value in source.module.state_dict().items():
        if key.endswith("running_mean"):
            value.copy_(0.2 * torch.randn(value.shape, generator=rng))
        elif key.endswith("running_var") or (value.dim() == 1 and key.endswith("weight")):
            value.copy_(torch.rand(value.shape, generator=rng) + 0.5)
        elif key.endswith("bias"):
            value.copy_(0.1 * torch.randn(value.shape, generator=rng))
    return source


def passed(work, images=8):
    """The report of the refit; the other passes of the recipe run after it."""
    reports = []
    for name, options in GraftAndRefit(refit_images=images).passes(work.source.graph, work.target.graph):
        less = options | ({"images": images} if name == "recalibrate" else {})
        reports.append(plugins.create("passes", name, less)(work))
    return reports[0]


@pytest.mark.parametrize(
    ("build", "size"),
    [*FAST.values(), *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW.values())],
    ids=[*FAST, *SLOW],
)
def test_not_a_bit_changes(build, size):
    work = grafted(lively(network(build, size)), build, size=size)
    before = copy.deepcopy(work.source.module.state_dict())
    report = passed(work)
    after = work.target.module.state_dict()
    assert [key for key, tensor in before.items() if not torch.equal(after[key], tensor)] == []
    assert report["layers"] == report["kept"] == []
    assert set(report["settled"]) == {layer.name for layer in work.target.graph.kernels()}


def test_up_to_the_head_where_that_has_other_classes():
    size = (3, 16, 16)
    work = grafted(lively(network(Residual, size)), lambda: Residual(classes=7), size=size)
    before = copy.deepcopy(work.source.module.state_dict())
    report = passed(work)
    after = work.target.module.state_dict()
    changed = [key for key, tensor in before.items() if not torch.equal(after[key], tensor)]
    assert [key for key in changed if not key.startswith("head")] == []
    assert "blocks.1.conv2" in report["settled"]
