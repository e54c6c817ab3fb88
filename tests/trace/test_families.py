"""One architecture or more of each family of timm and torchvision: chains and layers stay what they are.

The numbers are in ``families.json``; ``python tests/trace/test_families.py`` writes them anew. The layers are counted
independently, too: the convolutions, linear layers and RNNs that hooks see called in a plain forward pass.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netgraft.architecture.chain import longest_chain
from netgraft.models.model import load_model
from netgraft.trace import trace
from netgraft.trace.forward import build_on, run
from netgraft.trace.inputs import examples_for
from netgraft.trace.shortcuts import Shortcuts

FILE = Path(__file__).parent / "families.json"
GOLDEN: dict[str, dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else {}
KERNELS = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)
KNOWN = {
    "resnet18": (18, 21),
    "resnet50": (50, 54),
    "vgg11": (11, 11),
    "densenet121": (121, 121),
    "inception_v3": (48, 95),
    "efficientnet_b0": (82, 82),
    "vit_tiny_patch16_224": (50, 50),
    "swin_tiny_patch4_window7_224": (53, 53),
    "convnext_tiny": (59, 59),
    "nfnet_f0": (78, 82),
    "hrnet_w18": (101, 326),
    "cait_xxs24_224": (154, 158),
    "tf_efficientnet_cc_b0_4e": (90, 90),
}
"""(chain, kernel layers) as known from elsewhere."""

NAMES = """
    resnet18 resnet50 vgg11 densenet121 inception_v3 efficientnet_b0 vit_tiny_patch16_224 swin_tiny_patch4_window7_224
    convnext_tiny nfnet_f0 hrnet_w18 cait_xxs24_224 tf_efficientnet_cc_b0_4e
    mobilenetv3_small_100 mobilenetv4_conv_small regnety_002 regnetx_002 repvgg_a0 mobileone_s0 res2net50_26w_4s
    resnest14d skresnet18 seresnet50 dla34 dpn68 cspresnet50 darknet17 vovnet39a selecsls42 xception41 ghostnet_050
    tresnet_m rexnet_100 lcnet_050 hgnetv2_b0 gernet_s fastvit_t8 mobilevit_xxs edgenext_xx_small efficientformer_l1
    efficientvit_b0 efficientvit_m0 repvit_m0_9 levit_128s poolformer_s12 caformer_s18 nextvit_small mambaout_femto
    mixer_s32_224 resmlp_12_224 gmlp_ti16_224 xcit_nano_12_p16_224 coat_lite_tiny crossvit_9_240 pit_ti_224
    convit_tiny beit_base_patch16_224 eva02_tiny_patch14_224 volo_d1_224 mvitv2_tiny hiera_tiny_224 pvt_v2_b0
    twins_pcpvt_small maxvit_pico_rw_256 coatnet_pico_rw_224 focalnet_tiny_srf davit_tiny sequencer2d_s halonet26t
    botnet26t_256 lambda_resnet26t samvit_base_patch16 swinv2_tiny_window8_256 tnt_s_legacy_patch16_224
    torchvision:googlenet torchvision:shufflenet_v2_x0_5 torchvision:squeezenet1_1 torchvision:mnasnet0_5
    torchvision:regnet_y_400mf torchvision:swin_v2_t torchvision:vit_b_16 torchvision:r2plus1d_18
    torchvision:fcn_resnet50 torchvision:deeplabv3_mobilenet_v3_large torchvision:raft_small
"""


def facts(name: str) -> tuple[dict[str, Any], set[str], set[str]]:
    """The numbers of one architecture, its kernel layers, and the kernel modules that a plain forward pass calls."""
    model = load_model(name, role="target")
    graph = trace(model)
    chain = longest_chain(graph)
    kernels = {layer.name for layer in graph.kernels()}
    called = _called(model)
    numbers = {"chain": len(chain), "kernels": len(kernels), "ties": chain.ties, "not_modules": len(kernels - called)}
    return numbers, kernels, called


def _called(model: Any) -> set[str]:
    module = build_on(model.build, "cpu" if "regnet_y" in model.name else "meta")
    module = module.to("meta").eval()
    seen: set[str] = set()
    for name, part in module.named_modules():
        if isinstance(part, KERNELS):
            part.register_forward_pre_hook(lambda _m, _i, name=name: seen.add(name))
    with Shortcuts(), torch.no_grad():
        run(module, next(iter(examples_for(model, module))), "meta")
    return seen


@pytest.mark.parametrize("name", NAMES.split())
def test_family(name: str) -> None:
    numbers, kernels, called = facts(name)
    assert called <= kernels
    assert numbers == GOLDEN[name]
    if name in KNOWN:
        assert (numbers["chain"], numbers["kernels"]) == KNOWN[name]


def test_all_numbers_belong_to_a_family() -> None:
    assert set(GOLDEN) == set(NAMES.split())


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: facts(name)[0] for name in NAMES.split()}, indent=1) + "\n")
