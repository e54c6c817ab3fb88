"""Pairs of transformers' implementations and timm's or torchvision's."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from support.one_network.pair import Pair, State, Truth, in_order, net, renamed


def hf_pairs() -> list[Pair]:
    rows: tuple[tuple[str, str, int, Truth], ...] = (
        ("hf_vit", "timm_vit", 32, _VIT),
        ("timm_vit", "hf_vit", 32, renamed(then=_vit_backwards)),
        ("hf_vit", "tv_vit", 32, renamed(*_VIT_RULES, *_TO_TORCHVISION, then=_fused("in_proj", "_"))),
        ("hf_deit", "timm_deit", 32, _VIT),
        ("hf_dinov2", "timm_dinov2", 32, _VIT),
        ("hf_dinov2_gated", "timm_dinov2_gated", 32, renamed(*_VIT_RULES, then=_gated)),
        ("hf_beit", "timm_beit", 32, renamed(*_VIT_RULES, then=_beit)),
        ("hf_resnet", "timm_resnet", 64, _RESNET),
        ("hf_resnet_bottleneck", "timm_resnet_bottleneck", 64, _RESNET),
        ("hf_convnext", "timm_convnext", 64, in_order),
        ("hf_convnext_v2", "timm_convnext_v2", 64, in_order),
        ("hf_regnet", "timm_regnet", 64, _REGNET),
        ("hf_mobilenet_v1", "timm_mobilenet_v1", 64, in_order),
        ("hf_mobilenet_v2", "timm_mobilenet_v2", 64, in_order),
        ("hf_efficientnet", "timm_efficientnet", 64, in_order),
        ("hf_swin", "timm_swin", 64, _SWIN),
        ("hf_pvt_v2", "timm_pvt_v2", 64, renamed(*_PVT_RULES, then=_pvt)),
        ("hf_mobilevit", "timm_mobilevit", 64, _MOBILEVIT),
    )
    return [Pair(f"{s}->{t}", net("hf", s), net("hf", t), (3, n, n), how, ("transformers",)) for s, t, n, how in rows]


# -------------------------------------------------------------------------------------------------------- transformers


def _fused(name: str, joint: str = ".", wanted: str = "qkv") -> Callable[[State], State]:
    """``q_proj``, ``k_proj`` and ``v_proj`` beside each other become one layer, called ``name`` beside them."""

    def fuse(state: State) -> State:
        found: State = {}
        for key, value in state.items():
            match = re.fullmatch(r"(.*)\.([qkv])_proj\.(weight|bias)", key)
            if match is None:
                found[key] = value
            elif match[2] == wanted[0]:
                parts = [state[f"{match[1]}.{which}_proj.{match[3]}"] for which in wanted]
                found[f"{match[1]}.{name}{joint}{match[3]}"] = torch.cat(parts)
        return found

    return fuse


_VIT_RULES = (
    (r"^(vit|deit|beit|model)\.", ""),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.distillation_token", "dist_token"),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"attention\.", "attn."),
    (r"o_proj", "proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"lambda_", "gamma_"),
    (r"^layernorm", "norm"),
    (r"^pooler\.layernorm", "fc_norm"),
    (r"^(cls_)?classifier", "head"),
    (r"^distillation_classifier", "head_dist"),
)
_VIT = renamed(*_VIT_RULES, then=_fused("qkv"))
_TO_TORCHVISION = (
    (r"^cls_token", "class_token"),
    (r"^pos_embed", "encoder.pos_embedding"),
    (r"^patch_embed\.proj", "conv_proj"),
    (r"^norm\.", "encoder.ln."),
    (r"^blocks\.", "encoder.layers.encoder_layer_"),
    (r"norm(\d)", r"ln_\1"),
    (r"attn\.proj", "self_attention.out_proj"),
    (r"attn\.", "self_attention."),
    (r"mlp\.fc1", "mlp.0"),
    (r"mlp\.fc2", "mlp.3"),
    (r"^head", "heads.head"),
)


def _vit_backwards(state: State) -> State:
    found: State = {}
    for key, value in state.items():
        for pattern, new in (
            (r"^blocks", "vit.layers"),
            (r"^cls_token", "vit.embeddings.cls_token"),
            (r"^pos_embed", "vit.embeddings.position_embeddings"),
            (r"^patch_embed\.proj", "vit.embeddings.patch_embeddings.projection"),
            (r"attn\.proj", "attention.o_proj"),
            (r"norm1", "layernorm_before"),
            (r"norm2", "layernorm_after"),
            (r"^norm\.", "vit.layernorm."),
            (r"^head", "classifier"),
        ):
            key = re.sub(pattern, new, key)
        if ".attn.qkv." in key:
            parts = zip("qkv", value.chunk(3), strict=True)
            found |= {key.replace("attn.qkv", f"attention.{which}_proj"): part for which, part in parts}
        else:
            found[key] = value
    return found


def _gated(state: State) -> State:
    found = _fused("qkv")(state)
    for key in [key for key in found if ".mlp.gate_proj." in key]:
        found[key.replace("gate_proj", "fc1")] = torch.cat([found[key], found[key.replace("gate_proj", "up_proj")]])
        found[key.replace("gate_proj", "fc2")] = found[key.replace("gate_proj", "down_proj")]
    return found


def _beit(state: State) -> State:
    """Keys have no bias, so the fused layer has none; those of queries and values are apart."""
    found: State = {}
    for key, value in state.items():
        key = key.replace("relative_position_bias.relative", "attn.relative").replace("attn.attn.", "attn.")
        if match := re.fullmatch(r"(.*)\.([qv])_proj\.bias", key):
            found[f"{match[1]}.{match[2]}_bias"] = value
        else:
            found[key] = value
    return _fused("qkv")(found)


_SWIN = renamed(
    (r"^swin\.", ""),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.norm", "patch_embed.norm"),
    (r"^encoder\.", ""),
    (r"^layers\.0\.downsample", "layers.1.downsample"),
    (r"attention\.relative_position_bias\.", "attn."),
    (r"attention\.", "attn."),
    (r"o_proj", "proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^layernorm", "norm"),
    (r"^classifier", "head.fc"),
    then=_fused("qkv"),
)
_PVT_RULES = (
    (r"^pvt_v2\.encoder\.layers\.", "stages."),
    (r"^stages\.0\.patch_embedding", "patch_embed"),
    (r"patch_embedding", "downsample"),
    (r"(patch_embed|downsample)\.layer_norm", r"\1.norm"),
    (r"layer_norm_(\d)", r"norm\1"),
    (r"layer_norm", "norm"),
    (r"attention\.", "attn."),
    (r"attn\.query", "attn.q"),
    (r"attn\.key", "attn.k_proj"),
    (r"attn\.value", "attn.v_proj"),
    (r"spatial_reduction", "sr"),
    (r"dense", "fc"),
    (r"dwconv\.dwconv", "dwconv"),
    (r"^classifier", "head"),
)
_pvt = _fused("kv", wanted="kv")

# ---------------------------------------------------------------------------------------------------------- ConvNets

_RESNET = renamed(
    (r"^resnet\.embedder\.embedder\.convolution", "conv1"),
    (r"^resnet\.embedder\.embedder\.normalization", "bn1"),
    (r"^resnet\.encoder\.stages\.(\d)\.layers", lambda m: f"layer{int(m[1]) + 1}"),
    (r"shortcut\.convolution", "downsample.0"),
    (r"shortcut\.normalization", "downsample.1"),
    (r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}"),
    (r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}"),
    (r"^classifier\.1", "fc"),
)
_REGNET = renamed(
    (r"^regnet\.embedder\.embedder", "stem"),
    (r"^regnet\.encoder\.stages\.(\d)\.layers\.(\d+)", lambda m: f"s{int(m[1]) + 1}.b{int(m[2]) + 1}"),
    (r"shortcut", "downsample"),
    (r"layer\.2\.attention\.0", "se.fc1"),
    (r"layer\.2\.attention\.2", "se.fc2"),
    (r"layer\.0\.", "conv1."),
    (r"layer\.1\.", "conv2."),
    (r"layer\.3\.", "conv3."),
    (r"convolution", "conv"),
    (r"normalization", "bn"),
    (r"^classifier\.1", "head.fc"),
)
_MOBILEVIT = renamed(
    (r"^mobilevit\.", ""),
    (r"^conv_stem", "stem"),
    (r"^conv_1x1_exp", "final_conv"),
    (r"^classifier", "head.fc"),
    (r"^encoder\.layer\.(\d)\.layer\.", r"stages.\1."),
    (r"^encoder\.layer\.(\d)\.downsampling_layer", r"stages.\1.0"),
    (r"^encoder\.layer\.(\d)\.", r"stages.\1.1."),
    (r"1\.conv_1x1\.convolution", "1.conv_1x1"),
    (r"expand_1x1", "conv1_1x1"),
    (r"conv_3x3", "conv2_kxk"),
    (r"reduce_1x1", "conv3_1x1"),
    (r"conv_projection", "conv_proj"),
    (r"fusion", "conv_fusion"),
    (r"\.convolution", ".conv"),
    (r"normalization", "bn"),
    (r"transformer\.layer", "transformer"),
    (r"attention\.attention\.query", "attn.q_proj"),
    (r"attention\.attention\.key", "attn.k_proj"),
    (r"attention\.attention\.value", "attn.v_proj"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"layernorm", "norm"),
    then=_fused("qkv"),
)
