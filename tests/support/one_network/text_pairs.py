"""Pairs of transformers' language models and our own."""

from __future__ import annotations

import re

import torch
from support.one_network.pair import Pair, State, Truth, net, renamed


def text_pairs() -> list[Pair]:
    rows: tuple[tuple[str, Truth], ...] = (
        ("bert", renamed(then=_bert)),
        ("gpt2", _GPT2),
        ("llama", renamed(then=_llama)),
    )
    return [
        Pair(
            f"hf_{name}->own_{name}",
            net("text", f"hf_{name}"),
            net("text", f"own_{name}"),
            None,
            how,
            ("transformers",),
        )
        for name, how in rows
    ]


def _bert(state: State) -> State:
    found: State = {}
    for key, value in state.items():
        for pattern, new in (
            (r"^model\.embeddings\.word_embeddings", "word"),
            (r"^model\.embeddings\.position_embeddings\.weight", "position"),
            (r"^model\.embeddings\.token_type_embeddings\.weight", "segment"),
            (r"^model\.embeddings\.LayerNorm", "norm"),
            (r"^model\.encoder\.layer", "layers.layers"),
            (r"attention\.output\.LayerNorm", "norm1"),
            (r"attention\.output\.dense", "self_attn.out_proj"),
            (r"attention\.self", "self_attn"),
            (r"intermediate\.dense", "linear1"),
            (r"output\.dense", "linear2"),
            (r"output\.LayerNorm", "norm2"),
        ):
            key = re.sub(pattern, new, key)
        found[key] = value
    for key in [key for key in found if ".query." in key]:
        parts = [found[key.replace("query", which)] for which in ("query", "key", "value")]
        found[key.replace("query.", "in_proj_")] = torch.cat(parts)
    return found


def _transposed(state: State) -> State:
    inside = re.compile(r"blocks\.\d\.(qkv|out|up|down)\.weight")
    return {key: value.t() if inside.fullmatch(key) else value for key, value in state.items()}


_GPT2 = renamed(
    (r"^model\.", ""),
    (r"^wte", "words"),
    (r"^wpe", "positions"),
    (r"^h\.", "blocks."),
    (r"ln_f", "norm"),
    (r"ln_", "norm"),
    (r"attn\.c_attn", "qkv"),
    (r"attn\.c_proj", "out"),
    (r"mlp\.c_fc", "up"),
    (r"mlp\.c_proj", "down"),
    then=_transposed,
)


def _llama(state: State) -> State:
    found = {"tok.weight": state["model.embed_tokens.weight"], "norm.weight": state["model.norm.weight"]}
    for old, new in ((f"model.layers.{n}.", f"layers.{n}.") for n in range(2)):
        found[f"{new}wqkv.weight"] = torch.cat([state[f"{old}self_attn.{which}_proj.weight"] for which in "qkv"])
        found[f"{new}wo.weight"] = state[f"{old}self_attn.o_proj.weight"]
        found[f"{new}gate_up.weight"] = torch.cat([state[f"{old}mlp.{which}_proj.weight"] for which in ("gate", "up")])
        found[f"{new}down.weight"] = state[f"{old}mlp.down_proj.weight"]
        found[f"{new}norm1.weight"] = state[f"{old}input_layernorm.weight"]
        found[f"{new}norm2.weight"] = state[f"{old}post_attention_layernorm.weight"]
    return found
