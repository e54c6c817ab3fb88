"""Edges are right: changing a layer's result changes the input of exactly its descendants in the layer graph.

And layers are rightly called dead: the gradient of the output reaches exactly the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import support.user_nets  # noqa: F401  (registers the cases)
from support.cases import CASES, Case
from support.truth import Specimen
from torch import nn

from netgraft.trace import trace


@dataclass(frozen=True)
class Net:
    name: str
    build: Callable[[], nn.Module]
    input_size: tuple[int, ...] | None
    example_inputs: Callable[[], Any] | None = None
    file: Path | None = None


QUICK = """
    resnet10t@32 mobilenetv3_small_050@32 convnext_atto@32 ghostnet_050@32 regnety_002@32 edgenext_xx_small@64
    lcnet_035@32 vit_tiny_patch16_224@=32 mixer_s32_224@=64 pvt_v2_b0@64
    torchvision:shufflenet_v2_x0_5@64 torchvision:squeezenet1_1@64
"""
SLOW = """
    densenet121@32 tf_efficientnet_cc_b0_4e@32 mnasnet_small@32 tinynet_e@32 regnetx_002@32 repvgg_a0@32 mobileone_s0@32
    res2net50_26w_4s@32 resnest14d@32 skresnet18@32 dla46_c@32 hrnet_w18_small@32 dpn48b@32 nf_regnet_b0@32
    cspresnet50@32 darknet17@32 selecsls42@64 ese_vovnet19b_slim_dw@32 convnextv2_atto@32 fastvit_t8@64
    mobilevit_xxs@64 rexnetr_100@32 mobilevitv2_050@64 mobilenetv4_conv_small@32 efficientvit_b0@64 repvit_m0_9@64
    hgnetv2_b0@32 repghostnet_050@32 poolformer_s12@64 caformer_s18@64 nextvit_small@64 mambaout_femto@64
    lambda_resnet26t@64 gcresnet33ts@64 tresnet_m@64 ghostnetv2_100@64 focalnet_tiny_srf@64 shvit_s1@64
    swiftformer_xs@64 starnet_s1@32 inception_next_atto@64 eca_resnet33ts@32 resnet26d@32 legacy_seresnet18@32
    xception41@64 gernet_s@32 coatnet_pico_rw_224@224 levit_128s@224 efficientformer_l1@224 efficientvit_m0@224
    deit_tiny_distilled_patch16_224@=32 xcit_nano_12_p16_224@64 resmlp_12_224@=64 gmlp_ti16_224@=64
    swin_tiny_patch4_window7_224@=64 coat_lite_tiny@=64 twins_svt_small@64 visformer_tiny@=64 cait_xxs24_224@=32
    pit_ti_224@=64 convit_tiny@=64 eva02_tiny_patch14_224@=56 mvitv2_tiny@=64 hiera_tiny_224@=64
    tiny_vit_5m_224@224 tnt_s_legacy_patch16_224@=64
    torchvision:googlenet@64 torchvision:swin_t@64 torchvision:lraspp_mobilenet_v3_large@64
"""
"""Architectures and the side of their input; with "=" the model is told of it."""


PARTS = {
    "cait_xxs24_224@=32": {"blocks_token_only.0.attn.q"},
    "xcit_nano_12_p16_224@64": {"cls_attn_blocks.0.attn.q"},
    "coat_lite_tiny@=64": {"head"},
}
"""Layers that read a part of a tensor, the class token, which some layers before it leave alone. The graph knows
tensors, not parts of them, and shows an edge."""


def known_net(text: str) -> Net:
    name, _, side = text.partition("@")
    size = int(side.removeprefix("="))
    if name.startswith("torchvision:"):
        from torchvision.models import get_model

        build = functools.partial(get_model, name.removeprefix("torchvision:"), weights=None, weights_backbone=None)
        if "lraspp" not in name:
            build = functools.partial(get_model, name.removeprefix("torchvision:"), weights=None)
        return Net(name, build, (3, size, size))
    import timm

    told = {"img_size": size} if side.startswith("=") else {}
    return Net(name, functools.partial(timm.create_model, name, num_classes=10, **told), (3, size, size))


QUICK_POKES, SLOW_POKES = 12, 24
"""About how many layers of a network are changed."""


def check_edges(specimen: Specimen, pokes: int | None, parts: Set[str] = frozenset()) -> None:
    """All edges; those into ``parts`` may be there in vain."""
    assert specimen.nodes
    ids = list(specimen.nodes)
    step = max(1, len(ids) // pokes) if pokes else 1
    wrong = {}
    for id in ids[::step]:
        expected, found = specimen.descendants(id), specimen.changed_by(id)
        if found - expected or expected - found - parts:
            wrong[id] = {"missing edges": sorted(found - expected), "false edges": sorted(expected - found)}
    assert not wrong


def check_gradient(specimen: Specimen) -> None:
    live = {node.layer for node in specimen.graph.nodes if node.layer and node.id in specimen.graph.to_output}
    trained = {
        name for name, layer in specimen.graph.layers.items() if any(not s.buffer for s in layer.tensors.values())
    }
    assert specimen.with_gradient() == live & trained


@pytest.mark.parametrize(
    "text", [*QUICK.split(), *(pytest.param(text, marks=pytest.mark.slow) for text in SLOW.split())]
)
@pytest.mark.filterwarnings("ignore")
def test_known_architectures(text: str) -> None:
    net = known_net(text)
    specimen = Specimen(net, trace(net))
    check_edges(specimen, QUICK_POKES if text in QUICK.split() else SLOW_POKES, PARTS.get(text, set()))
    check_gradient(specimen)


WITHOUT_GRADIENT = ("DataAccess", "CatIntoBuffer", "InPlaceArithmetic")
"""Cases whose data flows where gradients cannot."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore")
def test_user_nets(case: Case) -> None:
    specimen = Specimen(case, trace(case))
    if specimen.nodes:
        check_edges(specimen, None)
    if case.name not in WITHOUT_GRADIENT:
        check_gradient(specimen)
