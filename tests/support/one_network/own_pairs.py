"""Pairs of our own small networks, each with the copy that makes the second compute what the first does."""

from __future__ import annotations

import re

import torch
from support.one_network.pair import Pair, State, Truth, as_executed, in_order, net, renamed
from torch import Tensor

IMAGE, SMALL = (3, 32, 32), (3, 16, 16)


def own_pairs() -> list[Pair]:
    return [*_small_cnns(), *_folded(), *_attentions(), *_tokens(), *_branches(), *_rewritten()]


def _pairs(file: str, size: tuple[int, ...], *rows: tuple[str, str, Truth]) -> list[Pair]:
    """One for each (source, target, truth)."""
    return [
        Pair(f"{source}->{target}", net(file, source), net(file, target), size, truth) for source, target, truth in rows
    ]


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
    return _pairs("small_cnn", IMAGE, *rows)


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
    return [norms] + _pairs(
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
    )


# ---------------------------------------------------------------------------------------------------------- attentions


def _parts_of_qkv(state: State) -> dict[tuple[str, str], Tensor]:
    """(block, weight or bias) -> queries, keys and values [3, ...] of the fused form."""
    found = {}
    for key, value in state.items():
        if match := re.fullmatch(r"(blocks\.\d)\.attn\.qkv\.(weight|bias)", key):
            found[match[1], match[2]] = torch.stack(value.chunk(3))
    return found


def _without_attention(state: State) -> State:
    return {key: value for key, value in state.items() if ".attn." not in key}


def _to_three(state: State) -> State:
    found = _without_attention(state)
    for (block, name), parts in _parts_of_qkv(state).items():
        found |= {f"{block}.attn.{n}.{name}": parts[i] for i, n in enumerate(("query", "key", "value"))}
        found[f"{block}.attn.out.{name}"] = state[f"{block}.attn.proj.{name}"]
    return found


def _to_key_value(state: State) -> State:
    found = _without_attention(state)
    for (block, name), parts in _parts_of_qkv(state).items():
        found |= {f"{block}.attn.q.{name}": parts[0], f"{block}.attn.kv.{name}": parts[1:].flatten(0, 1)}
        found[f"{block}.attn.proj.{name}"] = state[f"{block}.attn.proj.{name}"]
    return found


def _to_interleaved(state: State) -> State:
    found = _without_attention(state)
    for (block, name), parts in _parts_of_qkv(state).items():
        by_head = parts.unflatten(1, (3, 8)).transpose(0, 1)  # [head, q/k/v, 8, ...]
        found[f"{block}.attn.mixed.{name}"] = by_head.flatten(0, 2)
        found[f"{block}.attn.dense.{name}"] = state[f"{block}.attn.proj.{name}"]
    return found


def _to_transposed(state: State) -> State:
    found = {}
    for key, value in state.items():
        renamed_key = re.sub(r"attn\.qkv", "attn.c_attn", re.sub(r"attn\.proj", "attn.c_proj", key))
        renamed_key = re.sub(r"mlp\.fc1", "mlp.c_fc", re.sub(r"mlp\.fc2", "mlp.c_proj", renamed_key))
        inside = (".attn." in key or ".mlp." in key) and key.endswith("weight")
        found[renamed_key] = value.t() if inside else value
    return found


def _to_parameters(state: State) -> State:
    found = _without_attention(state)
    for (block, name), parts in _parts_of_qkv(state).items():
        by_head = parts.unflatten(1, (3, 8))  # [q/k/v, head, 8, ...]
        for which, part in zip("qkv", by_head, strict=True):
            found[f"{block}.attn.{name[0]}_{which}"] = part.transpose(1, 2) if name == "weight" else part
        own = state[f"{block}.attn.proj.{name}"]
        found[f"{block}.attn.{name[0]}_o"] = own.t().unflatten(0, (3, 8)) if name == "weight" else own
    return found


def _gates(order: tuple[str, str], both: str, down: str) -> Truth:
    """Gate and up of SwiGLU in this order in one layer."""

    def fuse(state: State) -> State:
        found = {key.replace("mlp.down", f"mlp.{down}"): value for key, value in state.items()}
        for block in ("blocks.0.mlp", "blocks.1.mlp"):
            found[f"{block}.{both}.weight"] = torch.cat([state[f"{block}.{name}.weight"] for name in order])
        return found

    return renamed(then=fuse)


def _swap_halves(state: State) -> State:
    found = {key.replace("mlp.w3", "mlp.back"): value for key, value in state.items()}
    for block in ("blocks.0.mlp", "blocks.1.mlp"):
        found[f"{block}.both.weight"] = torch.cat(state[f"{block}.w12.weight"].chunk(2)[::-1])
    return found


_MULTIHEAD = renamed((r"attn\.qkv\.", "attn.mha.in_proj_"), (r"attn\.proj", "attn.mha.out_proj"))
_ENCODER = renamed(
    (r"^patch", "embed"),
    (r"^cls_token", "token"),
    (r"^pos_embed", "position"),
    (r"^blocks", "encoder.layers"),
    (r"^norm\.", "encoder.norm."),
    (r"^head", "classify"),
    (r"attn\.qkv\.", "self_attn.in_proj_"),
    (r"attn\.proj", "self_attn.out_proj"),
    (r"mlp\.fc", "linear"),
)


def _attentions() -> list[Pair]:
    return _pairs(
        "attention",
        SMALL,
        ("fused", "chunked", in_order),
        ("fused", "three", renamed(then=_to_three)),
        ("fused", "key_value", renamed(then=_to_key_value)),
        ("fused", "interleaved", renamed(then=_to_interleaved)),
        ("fused", "multihead", _MULTIHEAD),
        ("three", "multihead", renamed(then=_three_to_multihead)),
        ("fused", "transposed", renamed(then=_to_transposed)),
        ("fused", "parameters", renamed(then=_to_parameters)),
        ("fused", "encoder_layers", _ENCODER),
        ("fused", "pointwise_mlp", in_order),
        ("gated", "gate_first", _gates(("gate", "up"), "w12", "w3")),
        ("gated", "gate_last", _gates(("up", "gate"), "both", "back")),
        ("gate_first", "gate_last", renamed(then=_swap_halves)),
        ("rms_norm", "rms_norm_written", in_order),
        ("fused", "layer_norm_written", in_order),
    )


def _three_to_multihead(state: State) -> State:
    found = _without_attention(state)
    for block in ("blocks.0.attn", "blocks.1.attn"):
        for name in ("weight", "bias"):
            parts = [state[f"{block}.{which}.{name}"] for which in ("query", "key", "value")]
            found[f"{block}.mha.in_proj_{name}"] = torch.cat(parts)
            found[f"{block}.mha.out_proj.{name}"] = state[f"{block}.out.{name}"]
    return found


# -------------------------------------------------------------------------------------------------------------- tokens


def _class_apart(state: State) -> State:
    """A class token without a position of its own takes in the one it had."""
    token, position = state["cls_token"], state["pos_embed"]
    found = {**state, "cls_token": token + position[:, :1], "pos_embed": position[:, 1:]}
    return found | {"first": found["cls_token"], "grid": found["pos_embed"].transpose(1, 2)}


def _split_positions(state: State) -> State:
    position = state["pos_embed"]
    return state | {"cls": state["cls_token"], "pos_cls": position[:, :1], "pos_patch": position[:, 1:]}


def _rows_of_patches(state: State) -> State:
    """(channel, row, column) becomes (row, column, channel)."""
    return state | {"patch.weight": state["patch.weight"].permute(0, 2, 3, 1)}


_RANK1 = renamed((r"^cls_token", "class_embedding"), (r"^pos_embed", "position_embedding.weight"))


def _tokens() -> list[Pair]:
    return _pairs(
        "tokens",
        SMALL,
        ("rank3", "rank1", _RANK1),
        ("rank3", "rank2", renamed((r"^cls_token", "token"), (r"^pos_embed", "positions"))),
        ("rank3", "apart", renamed(then=_split_positions)),
        ("rank3", "absorbed", renamed(then=_class_apart)),
        ("rank3", "as_map", renamed(then=_class_apart)),
        ("rank3", "unfolded", renamed(then=_rows_of_patches)),
        ("rank3", "by_unfold", in_order),
        ("stored_sines", "computed_sines", renamed()),
        ("stored_sines", "parameter_sines", renamed((r"^pe$", "pos_embed"))),
    )


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


def _branches() -> list[Pair]:
    return [
        Pair(f"{source}->{target}", net("branches", source), net("branches", target), IMAGE, truth)
        for source, target, truth in (
            ("summed", "summed_list", _SUMMED),
            ("summed", "summed_twice", _TWICE),
            ("joined", "joined_backwards", renamed((r"^left", "b"), (r"^right", "a"), (r"^mix", "mixed"))),
            ("towers", "towers_backwards", _TOWERS),
            ("numbered", "plain_list", as_executed()),
            ("numbered", "dictionary", as_executed()),
            ("conv_gates", "linear_gates", in_order),
            ("linear_gates", "conv_gates", in_order),
            ("unet", "segmenter", _SEGMENTER),
            (
                "twice_used",
                "shared",
                renamed(
                    (r"^stem", "input"),
                    (r"^again", "first"),
                    (r"^encode", "squeeze"),
                    (r"^bias", "visible"),
                    then=_shared,
                ),
            ),
        )
    ]


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
