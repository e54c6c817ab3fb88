"""Pairs of our own small vision transformers, each with the copy that makes the second compute what the first does."""

from __future__ import annotations

import re

import torch
from support.one_network.pair import Pair, State, Truth, in_order, pairs, renamed
from torch import Tensor

SMALL = (3, 16, 16)


def transformer_pairs() -> list[Pair]:
    return [*_attentions(), *_tokens()]


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
    return pairs(
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
    return pairs(
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
