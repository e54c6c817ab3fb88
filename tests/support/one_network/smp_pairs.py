"""Pairs of segmentation_models_pytorch's encoders and timm's trunks, and of EfficientNet-Lite's two implementations."""

from __future__ import annotations

import re

from support.one_network.pair import Pair, State, first_in_order, in_order, net, renamed

SMP, LITE = "segmentation_models_pytorch", "efficientnet_lite_pytorch"


def smp_pairs() -> list[Pair]:
    rows = (
        ("smp_resnet18", "timm_resnet18", in_order),
        ("smp_resnet18_features", "timm_resnet18_features", in_order),
        ("smp_mobilenet_v2", "timm_mobilenet_v2", in_order),
        ("smp_efficientnet_b0", "timm_efficientnet_b0", first_in_order),
        ("smp_densenet121", "tv_densenet121", in_order),
        ("smp_se_resnet50", "timm_se_resnet50", in_order),
        ("smp_dpn68", "timm_dpn68", in_order),
        ("smp_xception", "timm_xception", in_order),
        ("smp_mobileone", "timm_mobileone", in_order),
        ("smp_mit", "hf_mit", renamed(then=_mit)),
    )
    needs = (SMP, "transformers")  # of the file that builds them
    return [Pair(f"{s}->{t}", net("smp", s), net("smp", t), (3, 64, 64), how, needs) for s, t, how in rows]


def _mit(state: State) -> State:
    found: State = {}
    for key, value in state.items():
        for pattern, new in (
            (r"(patch_embed|block|norm)(\d)\.", lambda m: f"stages.{int(m[2]) - 1}.{m[1]}."),
            (r"patch_embed\.norm", "patch_embeddings.layer_norm"),
            (r"patch_embed\.", "patch_embeddings."),
            (r"\.block\.", ".blocks."),
            (r"(blocks\.\d)\.stages\.0\.norm", r"\1.layernorm_before"),
            (r"(blocks\.\d)\.stages\.1\.norm", r"\1.layernorm_after"),
            (r"attn\.norm", "attention.sequence_reduction.layer_norm"),
            (r"attn\.sr", "attention.sequence_reduction.sequence_reduction"),
            (r"attn\.q\.", "attention.q_proj."),
            (r"attn\.proj", "attention.o_proj"),
            (r"(stages\.\d)\.norm", r"\1.layer_norm"),
        ):
            key = re.sub(pattern, new, key)
        if ".attn.kv." in key:
            parts = zip("kv", value.chunk(2), strict=True)
            found |= {key.replace("attn.kv", f"attention.{which}_proj"): part for which, part in parts}
        else:
            found[key] = value
    return found


def lite_pairs() -> list[Pair]:
    """Each at the size of its release: the original's padding is worked out for that size."""
    sizes = ((0, 224), (1, 240), (2, 260))
    rows = [(net("lite", f"lite{n}"), f"tf_efficientnet_lite{n}", size) for n, size in sizes]
    rows += [("tf_efficientnet_lite0", net("lite", "lite0"), 224)]
    return [Pair(f"{_short(s)}->{_short(t)}", s, t, (3, n, n), in_order, (LITE,)) for s, t, n in rows]


def _short(reference: str) -> str:
    return reference.rpartition(":")[2]
