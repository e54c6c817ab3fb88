"""Architectures as users write them, each with what a reader would draw of it. All are our own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from support.cases import case
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint

IMAGE = (3, 16, 16)

# ------------------------------------------------------------------------------------------------------- control flow


@case(
    "wide:linear",
    "in>wide wide>out",
    chain="wide",
    input_size=(6,),
    rung="cpu",
    warnings=(
        "The forward pass needs real values",
        "The forward pass never used 2 parameters: thin.weight, thin.bias.",
    ),
)
class DataDependentBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.thin, self.wide = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if (x * x).sum() > 0.001:
            return self.wide(x)
        return self.thin(x)


@case(
    "stem:conv2d fine:conv2d",
    "in>stem stem>fine fine>out",
    chain="stem fine",
    input_size=IMAGE,
    warnings=("The forward pass never used 2 parameters: coarse.weight, coarse.bias.",),
)
class ShapeIf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.fine, self.coarse = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fine(x) if x.shape[-1] < 100 else self.coarse(x)


@case(
    "blocks.0:conv2d blocks.1:conv2d blocks.2:conv2d",
    "in>blocks.0 in>blocks.1 blocks.0>blocks.1 in>blocks.2 blocks.0>blocks.2 blocks.1>blocks.2 "
    "in>out blocks.0>out blocks.1>out blocks.2>out",
    chain="blocks.0 blocks.1 blocks.2",
    input_size=(4, 8, 8),
)
class LoopOverShape(nn.Module):
    """As many residual blocks as the feature map has halvings."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        step = 0
        while x.shape[-1] > 1:
            x = F.max_pool2d(x + self.blocks[step](x), 2)
            step += 1
        return x


@case(
    "net.a:conv2d net.head:linear",
    "in>net.a net.a>net.head net.head>out net.a>out",
    chain="net.a net.head",
    input_size=IMAGE,
)
class DictReturn(nn.Module):
    """ModuleDict inside, a dictionary of lists outside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"a": nn.Conv2d(3, 5, 3), "head": nn.Linear(5, 2)})

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.net["a"](x)
        return {"features": [features], "logits": self.net["head"](features.mean((2, 3))), "scale": 1.0}


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor | None = None


@case("body:linear head:linear", "in>body body>head head>out body>out", chain="body head", input_size=(4,))
class DataclassReturn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Answer:
        hidden = self.body(x).relu()
        return Answer(self.head(hidden), hidden)


@dataclass
class Question:
    image: Tensor
    words: Tensor


@case(
    "look:conv2d read:linear head:linear",
    "in>look in_1>read look>head read>head head>out",
    input_size=None,
    example_inputs=lambda: (Question(torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, dtype=torch.long)),),
    others="words:embedding",
)
class DataclassInput(nn.Module):
    """Several inputs in one object; its embedding takes token numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.words, self.read = nn.Conv2d(3, 4, 3), nn.Embedding(11, 6), nn.Linear(6, 4)
        self.head = nn.Linear(8, 3)

    def forward(self, question: Question) -> Tensor:
        seen = self.look(question.image).mean((2, 3))
        words = self.read(self.words(question.words)).mean(1)
        return self.head(torch.cat([seen, words], 1))


@case(
    "left:linear right:linear head:linear",
    "in>right in_1>left left>head right>head head>out",
    example_inputs=lambda: {"right": torch.zeros(1, 3), "left": torch.zeros(1, 2), "scale": 2.0},
)
class KeywordInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(2, 4), nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(self.left(left) * scale + self.right(right))


# --------------------------------------------------------------------------------------- functions with own weights


@case(
    "w1:conv2d w2:linear",
    "in>w1 w1>w2 w2>out",
    chain="w1 w2",
    input_size=IMAGE,
    facts={
        "w1": {"shape": (6, 1, 3, 3), "groups": 3, "stride": (2, 2), "padding": (1, 1), "out_shape": (2, 6, 8, 8)},
        "w2": {"shape": (4, 384), "flattened": (6, 8, 8), "out_shape": (2, 4)},
    },
)
class FunctionalLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(6, 1, 3, 3)), nn.Parameter(torch.randn(6))
        self.w2, self.b2 = nn.Parameter(torch.randn(4, 384)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.w1, self.b1, stride=2, padding=1, groups=3))
        return F.linear(x.flatten(1), self.w2, self.b2)


@case(
    "a:linear b:linear c:linear",
    "in>a a>b b>c c>out",
    chain="a b c",
    input_size=(4,),
    facts={
        "a": {"shape": (5, 4), "tensors": {"weight": "a", "bias": "a_bias"}},
        "b": {"shape": (5, 6), "tensors": {"weight": "b", "bias": "b_bias"}},
        "c": {"shape": (3, 6), "tensors": {"weight": "c"}},
    },
)
class BareMatmuls(nn.Module):
    """``x @ w.t() + b``, ``x @ w + b`` and an einsum; the biases belong to their layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_bias = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(5))
        self.b, self.b_bias = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6))
        self.c = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x @ self.a.t() + self.a_bias)
        x = (self.b_bias + torch.matmul(x, self.b)).relu()
        return torch.einsum("bi,oi->bo", x, self.c)


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is [in, out]."""

    def __init__(self, nx: int, nf: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.size()[:-1], self.weight.shape[1])
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


@case(
    "up:linear down:linear head:linear",
    "in>up up>down down>head in>head head>out",
    chain="up down head",
    input_size=(7, 6),
    facts={"up": {"shape": (6, 24), "in_shape": (2, 7, 6), "out_shape": (2, 7, 24)}},
)
class GptConv1D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = Conv1D(6, 24), Conv1D(24, 6), nn.Linear(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.down(F.gelu(self.up(x))))


@case(
    "first:linear second:linear",
    "in>first first>second second>out",
    chain="first second",
    input_size=(4,),
    facts={"second": {"tensors": {"weight": "second.weight", "bias": "second.bias"}}},
)
class AnotherModulesWeight(nn.Module):
    """A layer's tensors handed to the function, and ``.forward`` called directly."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first.forward(x)
        return F.linear(x, self.second.weight, self.second.bias)


@case(
    "enc:linear enc@2:linear",
    "in>enc enc>enc@2 enc@2>out",
    chain="enc enc",
    input_size=(6,),
    facts={"enc": {"calls": 2}},
)
class SharedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.enc(self.enc(x).relu())


@case(
    "body:linear",
    "in>body body>out",
    chain="body",
    input_size=(9,),
    others="embed:embedding",
    facts={"embed": {"calls": 2}},
)
class TiedEmbedding(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.body(self.embed(tokens)))


@case(
    "bilinear:contraction",
    "in>bilinear in_1>bilinear bilinear>out",
    chain="bilinear",
    example_inputs=lambda: (torch.zeros(2, 3), torch.zeros(2, 4)),
)
class TwoArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bilinear = nn.Bilinear(3, 4, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.bilinear(x, y)


# -------------------------------------------------------------------------------------------------- reshapes and shapes


@case(
    "patch:linear mix:linear",
    "in>patch patch>mix mix>out patch>out",
    chain="patch mix",
    input_size=IMAGE,
    facts={"patch": {"shape": (8, 48), "in_shape": (2, 16, 48)}, "mix": {"shape": (16, 16)}},
)
class EinopsLike(nn.Module):
    """``b c (h p) (w q) -> b (h w) (p q c)`` by reshapes, then a layer over the tokens' axis."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mix = nn.Linear(48, 8), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, 16 * c)
        x = self.patch(x)
        return x + self.mix(x.transpose(1, 2)).transpose(1, 2)


@case(
    "c1:conv1d c2:conv2d c3:conv3d t1:conv_transpose1d t2:conv_transpose2d t3:conv_transpose3d",
    "in>c1 c1>c2 c2>c3 c3>t1 t1>t2 t2>t3 t3>out",
    chain="c1 c2 c3 t1 t2 t3",
    input_size=(2, 64),
    facts={
        "c1": {"shape": (4, 2, 3), "stride": (1,), "padding": (2,), "dilation": (2,)},
        "c3": {"shape": (4, 4, 1, 3, 3), "padding": (0, 1, 1)},
        "t2": {"shape": (4, 2, 2, 2), "groups": 2, "stride": (2, 2), "out_channels": 4},
    },
)
class AllConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv1d(2, 4, 3, padding=2, dilation=2)
        self.c2 = nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect")
        self.c3 = nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1))
        self.t1 = nn.ConvTranspose1d(4, 4, 1)
        self.t2 = nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2)
        self.t3 = nn.ConvTranspose3d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c2(self.c1(x).unflatten(2, (8, 8)))
        x = self.c3(x.unsqueeze(2)).squeeze(2)
        x = self.t2(self.t1(x.flatten(2)).unflatten(2, (8, 8)))
        return self.t3(x.unsqueeze(2))


@case(
    "up:conv2d glu:conv2d head:linear",
    "in>up up>glu glu>head head>out",
    chain="up glu head",
    input_size=IMAGE,
    facts={"head": {"flattened": (2, 32, 32)}},
)
class PixelShuffleAndGlu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.glu = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 4, 1)
        self.shuffle, self.gate = nn.PixelShuffle(2), nn.GLU(dim=1)
        self.head = nn.Linear(2 * 32 * 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gate(self.glu(self.shuffle(self.up(x)))).flatten(1))


@case(
    "seq.0:conv2d seq.1.0:conv2d seq.2.0.0:linear",
    "in>seq.0 seq.0>seq.1.0 seq.1.0>seq.2.0.0 seq.2.0.0>out",
    chain="seq.0 seq.1.0 seq.2.0.0",
    input_size=IMAGE,
    others="seq.1.1:batch_norm",
)
class NestedSequential(nn.Module):
    """In-place activations after norms."""

    def __init__(self) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)),
            nn.Sequential(nn.Sequential(nn.Linear(8, 2)), nn.Identity()),
        )

    def forward(self, x: Tensor) -> Tensor:
        for i, part in enumerate(self.seq):
            x = part(x.flatten(1) if i == 2 else x)
        return x


# ------------------------------------------------------------------------------------------------------------ in place


@case(
    "a:conv2d b:conv2d head:conv2d",
    "in>a in>b a>head b>head head>out",
    input_size=IMAGE,
)
class WritesIntoSlices(nn.Module):
    """A preallocated tensor filled piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], 6, *x.shape[2:], device=x.device)
        out[:, :4] = self.a(x)
        out[:, 4:].copy_(self.b(x))
        return self.head(out)


@case("a:linear b:linear c:linear", "in>a in>b a>c b>c c>out", input_size=(4,))
class CatIntoBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_empty(x.shape[0], 6)
        torch.cat([self.a(x), self.b(x)], dim=1, out=out)
        return self.c(out)


@case("a:linear b:linear", "in>a a>b a>out b>out", chain="a b", input_size=(4,))
class InPlaceArithmetic(nn.Module):
    """Views of a tensor see what is written to it later."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        view = x.view(-1)
        x += self.b(x)
        x.mul_(2).clamp_(min=0)
        return view * 1


@case("a:linear b:linear", "in>a a>b b>out", chain="a b", input_size=(4,))
class UnusedInPlaceResult(nn.Module):
    """The written tensor is used, not what the in-place operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        out.copy_(self.a(x))
        other = torch.zeros(4, device=x.device).expand_as(x).clone()
        other.add_(self.b(out))
        return other


@case("a:linear b:linear", "in>a a>b b>out", chain="a b", input_size=(4,))
class DataAccess(nn.Module):
    """``.data`` and ``detach`` carry data though no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).data.detach())


# --------------------------------------------------------------------------------------------- attention and recurrence


@case(
    "attn.in_proj_weight:linear attn.out_proj:linear",
    "in>attn.in_proj_weight attn.in_proj_weight>attn.out_proj attn.out_proj>out in>out",
    chain="attn.in_proj_weight attn.out_proj",
    input_size=(5, 8),
    others="norm:layer_norm",
    facts={
        "attn.in_proj_weight": {
            "shape": (24, 8),
            "tensors": {"weight": "attn.in_proj_weight", "bias": "attn.in_proj_bias"},
        }
    },
)
class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.attn(h, h, h, need_weights=False)[0]


@case(
    "attn.q_proj_weight:linear attn.k_proj_weight:linear attn.v_proj_weight:linear attn.out_proj:linear",
    "in>attn.q_proj_weight in_1>attn.k_proj_weight in_1>attn.v_proj_weight "
    "attn.q_proj_weight>attn.out_proj attn.k_proj_weight>attn.out_proj attn.v_proj_weight>attn.out_proj "
    "attn.q_proj_weight>out attn.k_proj_weight>out attn.out_proj>out",
    example_inputs=lambda: (torch.zeros(2, 3, 8), torch.zeros(2, 5, 6)),
    others="attn.in_proj_bias:parameter",
)
class CrossAttention(nn.Module):
    """Different widths of queries and keys, and the attention weights are returned too."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor) -> Any:
        return self.attn(x, memory, memory)


@case(
    "block.self_attn.in_proj_weight:linear block.self_attn.out_proj:linear block.linear1:linear block.linear2:linear",
    "in>block.self_attn.in_proj_weight block.self_attn.in_proj_weight>block.self_attn.out_proj "
    "in>block.linear1 block.self_attn.out_proj>block.linear1 block.linear1>block.linear2 "
    "in>out block.self_attn.out_proj>out block.linear2>out",
    chain="block.self_attn.in_proj_weight block.self_attn.out_proj block.linear1 block.linear2",
    input_size=(5, 8),
    others="block.norm1:layer_norm block.norm2:layer_norm",
)
class EncoderLayer(nn.Module):
    """PyTorch's encoder layer, whose fused fast path hides everything."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


@case(
    "qkv:linear proj:linear head:linear",
    "in>qkv qkv>proj proj>head in>head head>out",
    chain="qkv proj head",
    input_size=(6, 8),
    others="pos:parameter cls:parameter",
    facts={"cls": {"shape": (1, 1, 8)}, "pos": {"shape": (1, 7, 8)}},
)
class TinyViT(nn.Module):
    """Own attention; class token and position embedding as parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 7, 8))
        self.qkv, self.proj, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = torch.cat([self.cls.expand(b, -1, -1), x], 1) + self.pos
        q, k, v = self.qkv(x).reshape(b, 7, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, 7, 8)
        return self.head((x + self.proj(y))[:, 0])


@case(
    "q:linear k:linear v:linear",
    "in>q in>k in>v q>out k>out v>out",
    input_size=(4, 6),
    others="table:parameter",
)
class RelativePositionBias(nn.Module):
    """A table looked up by constant indices and added to the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.table = nn.Parameter(torch.zeros(7, 2))
        self.register_buffer("index", torch.arange(4)[:, None] - torch.arange(4)[None] + 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).reshape(-1, 4, 2, 3).transpose(1, 2) for f in (self.q, self.k, self.v))
        bias = self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1)
        return ((q @ k.transpose(-2, -1) + bias).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, 6)


@case(
    "qkv:linear",
    "in>qkv qkv>out",
    chain="qkv",
    input_size=(4, 6),
    others="rows:parameter",
)
class RelativePositionTable(nn.Module):
    """A table multiplied with the queries, whose product is added to the scores: no layer, though it is a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.rows = nn.Parameter(torch.zeros(7, 6))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        index = torch.arange(4, device=x.device)
        shifted = (q @ self.rows.t()).gather(-1, (index[:, None] - index + 3).expand(len(x), -1, -1))
        return (q @ k.transpose(1, 2) / 6**0.5 + shifted).softmax(-1) @ v


@case(
    "gate:linear head:linear",
    "in>gate gate>head in>head head>out",
    chain="gate head",
    input_size=(4, 6),
    facts={"gate": {"shape": (6, 4), "transposed": True}},
)
class Router(nn.Module):
    """A bare matrix whose product goes to a softmax, but is added to nothing: a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Parameter(torch.randn(6, 4)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x @ self.gate).softmax(-1) @ x)


@case(
    "lstm:rnn gru:rnn cell:rnn cell@2:rnn cell@3:rnn head:linear",
    "in>lstm lstm>gru gru>cell gru>cell@2 gru>cell@3 cell>cell@2 cell@2>cell@3 cell@3>head head>out",
    chain="lstm gru cell cell cell head",
    input_size=(3, 5),
)
class Recurrent(nn.Module):
    """One call of a recurrent module is one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.gru, self.cell, self.head = nn.GRU(8, 4, batch_first=True), nn.GRUCell(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(self.lstm(x)[0])
        state = torch.zeros(x.shape[0], 4)
        for t in range(out.shape[1]):
            state = self.cell(out[:, t], state)
        return self.head(state)


# ---------------------------------------------------------------------------------------- reparametrisations of weights


def _normed(name: str) -> Any:
    wrap = {
        "new weight norm": parametrizations.weight_norm,
        "new spectral norm": parametrizations.spectral_norm,
        "orthogonal": lambda m: parametrizations.orthogonal(m, orthogonal_map="cayley"),
    }
    return wrap[name]


@case(
    "wn:conv2d sn:linear orth:linear",
    "in>wn wn>sn sn>orth orth>out",
    chain="wn sn orth",
    input_size=IMAGE,
    facts={"wn": {"shape": (4, 3, 3, 3), "padding": (1, 1)}, "sn": {"shape": (6, 4)}, "orth": {"shape": (6, 6)}},
)
class Parametrizations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wn = _normed("new weight norm")(nn.Conv2d(3, 4, 3, padding=1))
        self.sn = _normed("new spectral norm")(nn.Linear(4, 6))
        self.orth = _normed("orthogonal")(nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.orth(self.sn(self.wn(x).mean((2, 3))).relu())


class OldStyleNorms(nn.Module):
    """Hooks that set the weight before each call (deprecated, and still in many files)."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.wn = weight_norm(nn.Conv2d(3, 4, 3))
            self.sn = nn.utils.spectral_norm(nn.Linear(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.sn(self.wn(x).mean((2, 3)))


case(
    "wn:conv2d sn:linear",
    "in>wn wn>sn sn>out",
    chain="wn sn",
    input_size=IMAGE,
    facts={"wn": {"shape": (4, 3, 3, 3)}, "sn": {"shape": (6, 4)}},
)(OldStyleNorms)


class StandardisedConv(nn.Conv2d):
    """Weight standardisation with a learnt gain."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True)
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0
        ).reshape_as(self.weight)
        return F.conv2d(x, self.gain * weight + 0 * mean / std, self.bias, self.stride, self.padding)


@case(
    "a:conv2d b:conv2d",
    "in>a a>b b>out",
    chain="a b",
    input_size=IMAGE,
    facts={"a": {"shape": (4, 3, 3, 3), "tensors": {"weight": "a.weight", "bias": "a.bias", "gain": "a.gain"}}},
)
class WeightStandardisation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = StandardisedConv(3, 4, 3, padding=1), StandardisedConv(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class CondConv(nn.Module):
    """The weight is mixed from experts for each example."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.inp, self.out = inp, out
        self.weight = nn.Parameter(torch.randn(3, out * inp * 9))

    def forward(self, x: Tensor, routing: Tensor) -> Tensor:
        b, c, h, w = x.shape
        weight = (routing @ self.weight).view(b * self.out, self.inp, 3, 3)
        return F.conv2d(x.reshape(1, b * c, h, w), weight, padding=1, groups=b).view(b, self.out, h, w)


@case(
    "route:linear a:conv_dynamic b:conv_dynamic",
    "in>route in>a route>a a>b route>b b>out",
    chain="route a b",
    input_size=IMAGE,
)
class DynamicWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.route, self.a, self.b = nn.Linear(3, 3), CondConv(3, 4), CondConv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        routing = self.route(x.mean((2, 3))).sigmoid()
        return self.b(self.a(x, routing), routing)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


@case(
    "fc1:linear fc2:linear",
    "in>fc1 fc1>fc2 fc2>out in>out",
    chain="fc1 fc2",
    input_size=(8,),
    others="scale.gamma:parameter own:parameter",
)
class LayerScales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.scale = nn.Linear(8, 8), nn.Linear(8, 8), LayerScale(8)
        self.own = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.own * self.scale(self.fc2(self.fc1(x)))


# ------------------------------------------------------------------------------------------------- ways of running code


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


@case("a:conv2d b:conv2d", "in>a a>b b>out", chain="a b", input_size=IMAGE)
class ScriptedFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, and still in many files
            self.swish = torch.jit.script(swish)

    def forward(self, x: Tensor) -> Tensor:
        return self.swish(self.b(self.swish(self.a(x))))


class Straight(torch.autograd.Function):
    """Rounds, and passes the gradient through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return grad


@case("a:linear b:linear", "in>a a>b b>out", chain="a b", input_size=(4,))
class CustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(Straight.apply(self.a(x)))


@case("a:linear b:linear", "in>a a>b b>out", chain="a b", input_size=(4,))
class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.b, checkpoint(lambda y: self.a(y).relu(), x, use_reentrant=False), use_reentrant=False)


@case("a:linear b:linear", "in>a a>b b>out", chain="a b", input_size=(4,))
class UserHooks(nn.Module):
    """A hook that replaces an output, and one that collects."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.seen: list[Tensor] = []
        self.a.register_forward_hook(lambda _m, _i, out: out * 2)
        self.b.register_forward_pre_hook(lambda _m, inputs: self.seen.append(inputs[0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


@case(
    "conv:conv2d fc:linear",
    "in>conv conv>fc fc>out",
    chain="conv fc",
    input_size=IMAGE,
    facts={"conv": {"shape": (4, 3, 3, 3)}, "fc": {"shape": (5, 4)}},
    others="bn:batch_norm",
)
class LazyModules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.conv, self.bn, self.fc = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(self.conv(x)).amax((2, 3)))


@case(
    "a:linear grid:linear",
    "in>a grid>out a>out",
    chain="a",
    input_size=(4,),
)
class BuffersOnlyBranch(nn.Module):
    """A layer that sees constants only: it is not on any chain."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.grid = nn.Linear(4, 4), nn.Linear(2, 4)
        self.register_buffer("where", torch.ones(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.grid(self.where)


@case(
    "a:linear dead:linear b:linear",
    "in>a a>dead a>b b>out",
    chain="a b",
    input_size=(4,),
    warnings=("The forward pass never used 2 parameters: unused.weight, unused.bias.",),
)
class DeadAndUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.dead, self.b, self.unused = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        self.dead(x)
        return self.b(x)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


@case(
    "conv:conv2d se.fc1:conv2d se.fc2:conv2d out:conv2d",
    "in>conv conv>se.fc1 se.fc1>se.fc2 conv>out se.fc2>out out>out",
    input_size=IMAGE,
    chain="conv se.fc1 se.fc2 out",
)
class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.se, self.out = nn.Conv2d(3, 8, 3), SqueezeExcite(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.se(self.conv(x)))


class RMSNorm(nn.Module):
    """Written by hand, with the name every file gives it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


@case(
    "gate:linear up:linear down:linear",
    "in>gate in>up gate>down up>down down>out in>out",
    input_size=(5, 8),
    others="norm:norm",
)
class Swiglu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate, self.up, self.down = RMSNorm(8), nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


@case(
    "a:conv2d b:conv2d",
    "in>a a>b b>out",
    chain="a b",
    input_size=IMAGE,
    others="act:activation norm:instance_norm group:group_norm",
)
class OtherLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.norm = nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.InstanceNorm2d(4, affine=True)
        self.b, self.group = nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.group(self.b(self.norm(self.act(self.a(x)))))


@case(
    "experts.0:linear experts.1:linear",
    "in>experts.0 in>experts.1 experts.0>out experts.1>out",
    input_size=(4,),
    others="mixing:parameter",
)
class StackedExperts(nn.Module):
    """Results of several layers mixed by a learnt vector through a matrix product: a parameter, not a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))
        self.mixing = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([expert(x) for expert in self.experts], -1) @ self.mixing.softmax(0)


@case(
    "experts:contraction experts_out:contraction",
    "in>experts experts>experts_out experts_out>out",
    chain="experts experts_out",
    input_size=(5, 4),
    facts={"experts": {"shape": (3, 4, 6)}, "experts_out": {"shape": (3, 6, 4)}},
)
class BatchedExperts(nn.Module):
    """All experts' weights in one tensor, multiplied in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 4, 6))
        self.experts_out = nn.Parameter(torch.randn(3, 6, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("bni,eio->bneo", x, self.experts).relu()
        return torch.einsum("bneo,eoi->bni", h, self.experts_out)


@case(
    "items.0:linear items.1:linear", "in>items.0 items.0>items.1 items.1>out", chain="items.0 items.1", input_size=(4,)
)
class ParameterLists(nn.Module):
    """A ParameterList multiplied layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.ParameterList(nn.Parameter(torch.randn(4, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.items:
            x = (x @ weight).relu()
        return x


@case("a:linear b:linear", "in>a a>b b>out", chain="a b", input_size=(4,), others="")
class GeneratorAndTuple(nn.Module):
    """Features handed on by a generator, the answer in nested tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def _steps(self, x: Tensor) -> Iterator[Tensor]:
        for layer in (self.a, self.b):
            x = layer(x)
            yield x

    def forward(self, x: Tensor) -> Any:
        return ((list(self._steps(x))[-1],), None)


@case(
    "conv:conv2d head:linear",
    "in>conv conv>head head>out",
    chain="conv head",
    input_size=IMAGE,
    rung="cpu",
    warnings=("The forward pass needs real values",),
)
class NumbersFromTensors(nn.Module):
    """``.item()`` decides a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        size = max(1, int(x.abs().mean().item()) % 3)
        return self.head(F.adaptive_avg_pool2d(x, size).mean((2, 3)))
