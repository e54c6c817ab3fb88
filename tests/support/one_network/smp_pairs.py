"""Pairs of segmentation_models_pytorch's encoders and timm's trunks, and of EfficientNet-Lite's two implementations."""

from __future__ import annotations

from support.one_network.pair import Pair, as_executed, in_order, net

SMP, LITE = "segmentation_models_pytorch", "efficientnet_lite_pytorch"


def smp_pairs() -> list[Pair]:
    rows = (
        ("smp_resnet18", "timm_resnet18", in_order),
        ("smp_resnet18_features", "timm_resnet18_features", in_order),
        ("smp_mobilenet_v2", "timm_mobilenet_v2", in_order),
        ("smp_efficientnet_b0", "timm_efficientnet_b0", in_order),
        ("smp_densenet121", "timm_densenet121", in_order),
        ("smp_se_resnet50", "timm_se_resnet50", in_order),
        ("smp_dpn68", "timm_dpn68", in_order),
        ("smp_xception", "timm_xception", in_order),
        ("smp_mobileone", "timm_mobileone", in_order),
        ("smp_mit", "hf_mit", in_order),
    )
    return [
        Pair(
            f"{s}->{t}", net("smp", s), net("smp", t), (3, 64, 64), how, (SMP, "transformers") if "hf" in t else (SMP,)
        )
        for s, t, how in rows
    ]


def lite_pairs() -> list[Pair]:
    pairs = [
        Pair(
            f"lite{n}->tf_efficientnet_lite{n}",
            net("lite", f"lite{n}"),
            f"tf_efficientnet_lite{n}",
            (3, 224, 224),
            in_order,
            (LITE,),
        )
        for n in range(3)
    ]
    backwards = Pair(
        "tf_efficientnet_lite0->lite0", "tf_efficientnet_lite0", net("lite", "lite0"), (3, 224, 224), in_order, (LITE,)
    )
    return [*pairs, backwards]
