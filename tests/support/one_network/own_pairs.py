"""Pairs of our own small networks, each with the copy that makes the second compute what the first does."""

from __future__ import annotations

import torch
from support.one_network.pair import Pair, State, Truth, as_executed, in_order, net, pairs, renamed

IMAGE, SMALL = (3, 32, 32), (3, 16, 16)


def own_pairs() -> list[Pair]:
    return [*_small_cnns(), *_folded(), *_branches(), *_rewritten()]


# ---------------------------------------------------------------------------------------------------------- small CNNs

_FUNCTION = renamed(
    (r"^stem\.0", "conv0"),
    (r"^stem\.1", "norm0"),
    (r"^head", "classifier"),
    (r"^blocks\.0", "a"),
    (r"^blocks\.1", "b"),
    (r"^blocks\.2", "c"),
    (r"conv1", "first"),
    (r"bn1", "first_norm"),
    (r"conv2", "second"),
    (r"bn2", "second_norm"),
    (r"downsample\.0", "short"),
    (r"downsample\.1", "short_norm"),
)


def _small_cnns() -> list[Pair]:
    spelled = {
        "modules": "function zero_pad_module constant_pad_module f_pad adaptive_view kernel_squeeze mean_twice "
        "flattened_mean adaptive_reshape idle dropped relu_clamp",
        "relu6": "relu6_clamp relu6_hardtanh relu6_minimum",
        "silu": "silu_written silu_functional",
        "gelu": "gelu_functional gelu_erf",
        "gelu_tanh": "gelu_tanh_written",
        "hardswish": "hardswish_written hardswish_hardsigmoid",
        "leaky": "leaky_maximum",
        "mish": "mish_written",
    }
    rows = [(source, target, _FUNCTION) for source, targets in spelled.items() for target in targets.split()]
    return pairs("small_cnn", IMAGE, *rows)


# -------------------------------------------------------------------------------------------------------------- folded


def _fold_norms(state: State) -> State:
    """Each norm folded into the convolution before it."""
    found = {"out.weight": state["fc.weight"], "out.bias": state["fc.bias"]}
    for number in range(1, 6):
        conv, norm = f"conv{number}", f"bn{number}"
        scale = torch.rsqrt(state[f"{norm}.running_var"] + 1e-5) * state.get(f"{norm}.weight", 1.0)
        bias = state.get(f"{conv}.bias", torch.zeros(len(scale))) - state[f"{norm}.running_mean"]
        found[f"layers.{number - 1}.weight"] = state[f"{conv}.weight"] * scale.view(-1, 1, 1, 1)
        found[f"layers.{number - 1}.bias"] = bias * scale + state.get(f"{norm}.bias", 0.0)
    return found


def _fold_scales(state: State) -> State:
    found = {key: value for key, value in state.items() if not key.startswith("scale")}
    for number in (1, 2):
        gamma = state[f"scale{number}.gamma"].flatten()
        found[f"down{number}.weight"] = gamma[:, None] * state[f"down{number}.weight"]
        found[f"down{number}.bias"] = gamma * state[f"down{number}.bias"]
    return found


def _split_norms(weight_g: str, weight_v: str) -> Truth:
    """Direction and length of each weight, under these names."""

    def split(state: State) -> State:
        found = {}
        for key, value in state.items():
            layer, _, name = key.rpartition(".")
            if name == "weight" and layer != "fc2":
                length = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.dim() - 1))
                found |= {f"{layer}.{weight_g}": length, f"{layer}.{weight_v}": value}
            else:
                found[key] = value
        return found

    return renamed(then=split)


def _join_norms(weight_g: str, weight_v: str) -> Truth:
    """The weight that direction and length make."""

    def join(state: State) -> State:
        found = {key: value for key, value in state.items() if not key.endswith((weight_g, weight_v))}
        for key in [key for key in state if key.endswith(weight_v)]:
            layer, value = key.removesuffix(f".{weight_v}"), state[key]
            length = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.dim() - 1))
            found[f"{layer}.weight"] = value / length * state[f"{layer}.{weight_g}"]
        return found

    return renamed(then=join)


OLD, NEW = ("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")
_OWN_NORM = renamed((r"(norms\.\d)\.weight", r"\1.scale"), (r"(norms\.\d)\.bias", r"\1.shift"), (r"running_", ""))


def _folded() -> list[Pair]:
    norms = Pair("norms->deployed", net("folded", "Norms"), net("folded", "Deployed"), IMAGE, renamed(then=_fold_norms))
    return [
        norms,
        *pairs(
            "folded",
            IMAGE,
            ("norm_then_relu", "norm_act", in_order),
            ("norm_act", "norm_then_relu", in_order),
            ("norm_then_relu", "own_batch_norm", _OWN_NORM),
            ("group_norm", "functional_group_norm", in_order),
            ("layer_scale", "no_layer_scale", renamed(then=_fold_scales)),
            ("layer_scale", "layer_scale_of_rank_3", in_order),
            ("weight_norm_old", "plain_weights", _join_norms(*OLD)),
            ("weight_norm_new", "plain_weights", _join_norms(*NEW)),
            ("weight_norm_old", "weight_norm_new", renamed((OLD[0], NEW[0]), (OLD[1], NEW[1]))),
            ("plain_weights", "weight_norm_new", _split_norms(*NEW)),
        ),
    ]


# ------------------------------------------------------------------------------------------------------------ branches

_SUMMED = renamed(
    (r"^stem", "before"), (r"^left", "paths.0.0"), (r"^right", "paths.1.0"), (r"^mix", "after"), (r"^head", "out")
)
_TWICE = renamed((r"^stem", "first"), (r"^left", "one"), (r"^right", "two"), (r"^mix", "last"), (r"^head", "fc"))
_TOWERS = renamed(
    (r"^stem", "begin"),
    (r"^plus\.0", "p1"),
    (r"^plus\.2", "p2"),
    (r"^minus\.0", "n1"),
    (r"^minus\.2", "n2"),
    (r"^head", "end"),
)
_SEGMENTER = renamed(
    (r"^down1", "encoder.0"),
    (r"^down2", "encoder.1"),
    (r"^bottom", "encoder.2"),
    (r"^up2", "decoder.grow"),
    (r"^dec2", "decoder.coarse.0"),
    (r"^dec1", "decoder.fine.0"),
    (r"^out", "decoder.final"),
)


def _shared(state: State) -> State:
    return state | {f"second.{name}": state[f"first.{name}"] for name in ("weight", "bias")}


_SHARED = renamed(
    (r"^stem", "input"), (r"^again", "first"), (r"^encode", "squeeze"), (r"^bias", "visible"), then=_shared
)


def _branches() -> list[Pair]:
    parallel = pairs(
        "branches",
        IMAGE,
        ("summed", "summed_list", _SUMMED),
        ("summed", "summed_twice", _TWICE),
        ("joined", "joined_backwards", renamed((r"^left", "b"), (r"^right", "a"), (r"^mix", "mixed"))),
        ("towers", "towers_backwards", _TOWERS),
        ("numbered", "plain_list", as_executed()),
        ("numbered", "dictionary", as_executed()),
        ("conv_gates", "linear_gates", in_order),
        ("linear_gates", "conv_gates", in_order),
    )
    decoders = pairs("decoders", IMAGE, ("unet", "segmenter", _SEGMENTER), ("twice_used", "shared", _SHARED))
    return [*parallel, *decoders]


# ----------------------------------------------------------------------------------------------------------- rewritten


def _own_vit(registers: bool) -> Truth:
    def truth(state: State) -> State:
        found = {"cls": state["cls_token"], "position": state["pos_embed"]}
        names = {"patch_embed.proj": "stem", "norm": "final", "head": "fc"}
        found |= {f"{new}.{n}": state[f"{old}.{n}"] for old, new in names.items() for n in ("weight", "bias")}
        inner = {"attn.proj": "o", "norm1": "n1", "norm2": "n2", "mlp.fc1": "up", "mlp.fc2": "down"}
        for block in range(2):
            for n in ("weight", "bias"):
                found |= {f"layers.{block}.{new}.{n}": state[f"blocks.{block}.{old}.{n}"] for old, new in inner.items()}
                parts = state[f"blocks.{block}.attn.qkv.{n}"].chunk(3)
                found |= {f"layers.{block}.{which}.{n}": part for which, part in zip("qkv", parts, strict=True)}
            if registers:
                found |= {f"scales.{2 * block + i}": state[f"blocks.{block}.ls{i + 1}.gamma"] for i in range(2)}
        return found | ({"extra": state["reg_token"]} if registers else {})

    return renamed(then=truth)


_RESNET = renamed(
    (r"^conv1", "embedder.convolution"),
    (r"^bn1", "embedder.normalization"),
    (r"^layer1\.0", "0"),
    (r"^layer2\.0", "1"),
    (r"^layer3\.0", "2"),
    (r"^layer4\.0", "3"),
    (r"^(\d)\.downsample\.0", r"shortcuts.\1.convolution"),
    (r"^(\d)\.downsample\.1", r"shortcuts.\1.normalization"),
    (r"^(\d)\.conv1", r"first.\1.convolution"),
    (r"^(\d)\.bn1", r"first.\1.normalization"),
    (r"^(\d)\.conv2", r"second.\1.convolution"),
    (r"^(\d)\.bn2", r"second.\1.normalization"),
    (r"^fc", "classifier.1"),
)
_MIXER = renamed(
    (r"^stem\.proj", "patch"),
    (r"^blocks", "layers"),
    (r"mlp_tokens\.fc1", "mix_in"),
    (r"mlp_tokens\.fc2", "mix_out"),
    (r"mlp_channels\.fc", "dense"),
    (r"norm1", "before"),
    (r"norm2", "between"),
    (r"^norm", "last"),
    (r"^head", "out"),
)
_CONVNEXT = renamed(
    (r"^stem", "downsample_layers.0"),
    (r"^stages\.(\d)\.downsample", r"downsample_layers.\1"),
    (r"^stages\.(\d)\.blocks", r"stages.\1"),
    (r"conv_dw", "dwconv"),
    (r"mlp\.fc", "pwconv"),
    (r"^head\.norm", "norm"),
    (r"^head\.fc", "head"),
)


def _rewritten() -> list[Pair]:
    rows = [
        ("timm_resnet10", "own_resnet10", (3, 64, 64), _RESNET),
        ("tv_squeezenet", "own_squeezenet", (3, 64, 64), as_executed()),
        ("tv_shufflenet", "own_shufflenet", (3, 64, 64), as_executed()),
        ("timm_mixer", "own_mixer", SMALL, _MIXER),
        ("timm_convnext", "timm_convnext_1x1", (3, 64, 64), in_order),
        ("timm_convnext", "own_convnext", (3, 64, 64), _CONVNEXT),
        ("timm_convnext_1x1", "own_convnext", (3, 64, 64), _CONVNEXT),
        ("timm_vit", "own_vit", SMALL, _own_vit(False)),
        ("timm_vit_registers", "own_vit_registers", SMALL, _own_vit(True)),
    ]
    return [Pair(f"{s}->{t}", net("rewritten", s), net("rewritten", t), size, truth) for s, t, size, truth in rows]
