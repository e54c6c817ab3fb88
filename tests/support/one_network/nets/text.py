"""Language models of transformers, small, and the same networks written anew."""

import math

import torch
import torch.nn.functional as F
import transformers as hf
from torch import nn

WORDS, LENGTH, WIDTH, HEADS, HIDDEN = 50, 12, 24, 3, 40


def example_inputs():
    return (torch.randint(0, WORDS, (3, LENGTH)),)


def heads_of(x, count=HEADS):
    return x.unflatten(2, (count, -1)).transpose(1, 2)


class States(nn.Module):
    """The last hidden states alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids).last_hidden_state


# ---------------------------------------------------------------------------------------------------------------- BERT


def hf_bert():
    config = hf.BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        max_position_embeddings=LENGTH,
        layer_norm_eps=1e-5,
    )
    return States(hf.BertModel(config, add_pooling_layer=False))


class OwnBert(nn.Module):
    """PyTorch's encoder layers; positions and segments are parameters."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, 0.1, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.segment = nn.Parameter(torch.randn(2, WIDTH) * 0.1)
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.1)
        self.word = nn.Embedding(WORDS, WIDTH)

    def forward(self, ids):
        return self.layers(self.norm(self.word(ids) + self.position[: ids.shape[1]] + self.segment[0]))


def own_bert():
    return OwnBert()


# --------------------------------------------------------------------------------------------------------------- GPT-2


def hf_gpt2():
    config = hf.GPT2Config(
        vocab_size=WORDS,
        n_positions=LENGTH,
        n_embd=WIDTH,
        n_layer=2,
        n_head=HEADS,
        n_inner=HIDDEN,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return States(hf.GPT2Model(config))


class GptBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        q, k, v = (heads_of(part) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.up(self.norm2(x))
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        return x + self.down(y)


class OwnGpt(nn.Module):
    """Linear layers [out, in] where GPT-2 has [in, out]."""

    def __init__(self):
        super().__init__()
        self.positions, self.words = nn.Embedding(LENGTH, WIDTH), nn.Embedding(WORDS, WIDTH)
        self.blocks, self.norm = nn.ModuleList(GptBlock() for _ in range(2)), nn.LayerNorm(WIDTH)

    def forward(self, ids):
        x = self.words(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def own_gpt2():
    return OwnGpt()


# --------------------------------------------------------------------------------------------------------------- Llama


def hf_llama():
    config = hf.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        intermediate_size=HIDDEN,
        max_position_embeddings=LENGTH,
        use_cache=False,
    )
    return States(hf.LlamaModel(config))


def rotate(x):  # [B, H, N, 8]
    angle = torch.arange(x.shape[2])[:, None] / 10000 ** (torch.arange(0, 8, 2) / 8)
    cos, sin = (f(torch.cat([angle, angle], -1)) for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class LlamaBlock(nn.Module):
    """One projection for queries, keys and values (one head of these for three of those), one for gate and up."""

    def __init__(self):
        super().__init__()
        self.wqkv, self.wo = nn.Linear(WIDTH, WIDTH + 16, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate_up, self.down = nn.Linear(WIDTH, 2 * HIDDEN, bias=False), nn.Linear(HIDDEN, WIDTH, bias=False)
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=1e-6), nn.RMSNorm(WIDTH, eps=1e-6)

    def forward(self, x):
        q, k, v = self.wqkv(self.norm1(x)).split((WIDTH, 8, 8), dim=-1)
        q, k, v = rotate(heads_of(q)), rotate(heads_of(k, 1)), heads_of(v, 1)
        k, v = k.expand_as(q), v.expand_as(q)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(y.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class OwnLlama(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok = nn.Embedding(WORDS, WIDTH)
        self.layers, self.norm = nn.ModuleList(LlamaBlock() for _ in range(2)), nn.RMSNorm(WIDTH, eps=1e-6)

    def forward(self, ids):
        x = self.tok(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def own_llama():
    return OwnLlama()
