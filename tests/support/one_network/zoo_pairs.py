"""Pairs of torchvision's and timm's implementations of one architecture."""

from __future__ import annotations

from support.one_network.pair import Pair, in_order, net, renamed

SIZE = (3, 64, 64)
SAME = (
    ("torchvision:resnet18", "resnet18"),
    ("resnet50", "torchvision:resnet50"),
    ("torchvision:resnext50_32x4d", "resnext50_32x4d"),
    ("torchvision:mobilenet_v2", "mobilenetv2_100"),
    ("mobilenetv2_100", "torchvision:mobilenet_v2"),
    ("torchvision:mnasnet1_0", "mnasnet_100"),
    ("torchvision:efficientnet_b0", "efficientnet_b0"),
    ("torchvision:densenet121", "densenet121"),
    ("torchvision:vgg11_bn", "vgg11_bn"),
)
_REGNET = renamed(
    (r"^stem\.0", "stem.conv"),
    (r"^stem\.1", "stem.bn"),
    (r"^trunk_output\.block(\d)\.block\d-(\d+)", lambda m: f"s{m[1]}.b{int(m[2]) + 1}"),
    (r"\.proj\.0", ".downsample.conv"),
    (r"\.proj\.1", ".downsample.bn"),
    (r"\.f\.se", ".se"),
    (r"\.f\.a\.", ".conv1."),
    (r"\.f\.b\.", ".conv2."),
    (r"\.f\.c\.", ".conv3."),
    (r"(conv\d)\.0", r"\1.conv"),
    (r"(conv\d)\.1", r"\1.bn"),
    (r"^fc", "head.fc"),
)
_VIT = renamed(
    (r"^class_token", "cls_token"),
    (r"^encoder\.pos_embedding", "pos_embed"),
    (r"^conv_proj", "patch_embed.proj"),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"ln_", "norm"),
    (r"self_attention\.in_proj_", "attn.qkv."),
    (r"self_attention\.out_proj", "attn.proj"),
    (r"mlp\.0", "mlp.fc1"),
    (r"mlp\.3", "mlp.fc2"),
    (r"^encoder\.ln", "norm"),
    (r"^heads\.head", "head"),
)
_SWIN = renamed(
    (r"^features\.0\.0", "patch_embed.proj"),
    (r"^features\.0\.2", "patch_embed.norm"),
    (r"^features\.1\.", "layers.0.blocks."),
    (r"^features\.2\.", "layers.1.downsample."),
    (r"^features\.3\.", "layers.1.blocks."),
    (r"mlp\.0", "mlp.fc1"),
    (r"mlp\.3", "mlp.fc2"),
    (r"^head", "head.fc"),
)


def zoo_pairs() -> list[Pair]:
    regnets = (("torchvision:regnet_x_400mf", "regnetx_004_tv"), ("torchvision:regnet_y_400mf", "regnety_004"))
    named = [Pair(f"{s}->{t}", s, t, SIZE, in_order) for s, t in SAME]
    named += [Pair(f"{s}->{t}", s, t, SIZE, _REGNET) for s, t in regnets]
    rows = (
        ("tv_mobilenet_v3_small", "timm_mobilenet_v3_small", SIZE, in_order),
        ("tv_mobilenet_v3_large", "timm_mobilenet_v3_large", SIZE, in_order),
        ("tv_efficientnet_v2_s", "timm_efficientnet_v2_s", SIZE, in_order),
        ("tv_inception_v3", "timm_inception_v3", (3, 96, 96), in_order),
        ("tv_densenet", "timm_densenet", SIZE, in_order),
        ("tv_convnext", "timm_convnext", SIZE, in_order),
        ("tv_vit", "timm_vit", (3, 32, 32), _VIT),
        ("tv_swin", "timm_swin", SIZE, _SWIN),
    )
    return named + [Pair(f"{s}->{t}", net("zoo", s), net("zoo", t), size, how) for s, t, size, how in rows]
