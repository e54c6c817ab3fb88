"""Gates, found by structure: drawn with torch, and on architectures of timm against the classes of their modules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netgraft.architecture.chain import longest_chain
from netgraft.architecture.gates import gate_edges, without_gates
from netgraft.models.model import load_model
from netgraft.trace import trace, trace_on


class Net(nn.Module):
    """``middle(self, x)`` between a stem and a head; the layers that it may use are a, b, c and the linear d, e."""

    def __init__(self, middle):
        super().__init__()
        self.middle = middle
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.a, self.b, self.c = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.d, self.e, self.one = nn.Linear(8, 8), nn.Linear(8, 16), nn.Conv2d(2, 1, 7, padding=3)
        self.norm, self.gamma = nn.BatchNorm2d(8), nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x):
        return self.head(self.middle(self, self.stem(x)).mean((2, 3)))


def chain(middle):
    """The layers between stem and head on the longest chain, with gates and without."""
    graph = trace_on(lambda: Net(middle), (torch.randn(2, 3, 8, 8),), "meta")
    found = [longest_chain(graph, gates=gates).layers for gates in (True, False)]
    assert all(layers[0] == "stem" and layers[-1] == "head" for layers in found)
    return [" ".join(layers[1:-1]) for layers in found]


def squeeze(m, x, squash=torch.sigmoid):
    return squash(m.b(F.relu(m.a(x.mean((2, 3), keepdim=True)))))


def spatial(m, x):
    return m.one(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))


def in_place(m, x):
    gate = squeeze(m, x)
    x *= gate
    return x


def mobile(m, x):
    x = F.hardswish(m.norm(m.c(x)))
    return squeeze(m, x, F.hardsigmoid) * x


def from_before_the_norm(m, x):
    x = m.c(x)
    return F.relu(m.norm(x)) * squeeze(m, x)


def by_hand(m, x):
    return x * (F.relu6(squeeze(m, x, lambda y: y) + 3) / 6)


def tokens(m, x):
    t = x.flatten(2).transpose(1, 2)
    t = t * m.d(t.mean(1, keepdim=True)).sigmoid()
    return t.transpose(1, 2).reshape(x.shape)


def pooling(m, x):
    t = x.flatten(2).transpose(1, 2)
    t = t * m.d(t)[..., :1].softmax(1)
    return t.transpose(1, 2).reshape(x.shape)


def both(m, x):
    x = x * squeeze(m, x)
    return x * spatial(m, x).sigmoid()


def beside(m, x):
    return m.c(x) * squeeze(m, x)


def enlarged(m, x):
    return m.c(x) * F.interpolate(m.b(m.a(F.avg_pool2d(x, 2))).sigmoid(), size=x.shape[-2:])


def selective(m, x):
    paths = torch.stack([x, m.norm(x)], 1)
    gate = torch.stack([squeeze(m, paths.sum(1), lambda y: y)] * 2, 1).softmax(1)
    return (paths * gate).sum(1)


def highway(m, x):
    keep = m.b(F.relu(m.a(x))).sigmoid()
    return x * (1 - keep)


@pytest.mark.parametrize(
    ("middle", "gated"),
    [
        (lambda m, x: x * squeeze(m, x), "a b"),
        (lambda m, x: squeeze(m, x) * x, "a b"),
        (lambda m, x: x * squeeze(m, x).expand_as(x), "a b"),
        (lambda m, x: x * squeeze(m, x, F.hardsigmoid), "a b"),
        (lambda m, x: x * squeeze(m, x, lambda y: y), "a b"),
        (lambda m, x: 2.0 * squeeze(m, x) * x * m.gamma + x, "a b"),
        (lambda m, x: x * spatial(m, x).sigmoid(), "one"),
        (lambda m, x: x * F.interpolate(spatial(m, F.avg_pool2d(x, 2)), scale_factor=2), "one"),
        (lambda m, x: x * m.c(x).sigmoid(), "c"),
        (in_place, "a b"),
        (by_hand, "a b"),
        (tokens, "d"),
        (pooling, "d"),
        (both, "a b one"),
        (selective, "a b"),
        (highway, "a b"),
    ],
)
def test_gates_are_left_out(middle, gated):
    assert chain(middle) == [gated, ""]


@pytest.mark.parametrize(("middle", "rest"), [(mobile, "c"), (from_before_the_norm, "c")])
def test_the_gated_layers_stay(middle, rest):
    assert chain(middle) == [f"{rest} a b", rest]


@pytest.mark.parametrize("middle", [beside, enlarged])
def test_a_gate_may_come_from_elsewhere_if_it_is_squashed_and_smaller(middle):
    assert chain(middle) == ["a b", "c"]


def split(m, x, use):
    t = x.flatten(2).transpose(1, 2)
    return use(*m.e(t).chunk(2, -1)).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize(
    ("middle", "layers"),
    [
        (lambda m, x: m.c(x), "c"),
        (lambda m, x: x + squeeze(m, x), "a b"),  # a context that is added (GCNet)
        (lambda m, x: x * m.gamma + m.c(x) * m.gamma, "c"),
        (lambda m, x: (y := m.c(x)) * y.sigmoid(), "c"),  # swish by hand
        (lambda m, x: (y := m.c(x)) * torch.rsqrt(y.square().mean(1, keepdim=True) + 1e-6), "c"),
        (lambda m, x: split(m, x, lambda a, b: a * b.sigmoid()), "e"),
        (lambda m, x: split(m, x, lambda a, b: a * m.d(b)), "e d"),  # gMLP
        (lambda m, x: m.c(x) * m.b(F.relu(m.a(x))).sigmoid(), "a b"),  # a gated linear unit of equals
        (lambda m, x: m.c(x) * F.silu(m.b(m.a(x))), "a b"),
        (lambda m, x: x * m.b(m.a(x)), "a b"),  # a cross network
        (lambda m, x: m.c(x).tanh() * m.c(x.flip(3)).sigmoid(), "c"),
    ],
)
def test_what_is_no_gate_stays(middle, layers):
    assert chain(middle) == [layers, layers]


def test_cutting_gates_leaves_the_rest_of_the_graph_alone():
    graph = trace_on(lambda: Net(both), (torch.randn(2, 3, 8, 8),), "meta")
    cut = without_gates(graph)
    assert len(list(gate_edges(graph))) == 2
    assert not list(gate_edges(cut))
    assert cut.layers == graph.layers
    assert [node.id for node in cut.nodes] == [node.id for node in graph.nodes]
    plain = trace_on(lambda: Net(lambda m, x: m.c(x)), (torch.randn(2, 3, 8, 8),), "meta")
    assert without_gates(plain) is plain


# ----------------------------------------------------------------------------------------- timm's own word for a gate

GATES = {
    "SEModule",
    "SqueezeExcite",
    "SqueezeExcitation",
    "EffectiveSEModule",
    "EcaModule",
    "CbamModule",
    "SelectiveKernelAttn",
    "GlobalContext",
}


def without_their_modules(graph, module):
    """Kernels outside modules of timm's and torchvision's gate classes."""
    classes = {path: type(m).__name__ for path, m in module.named_modules()}
    parts = {layer.name: layer.name.split(".") for layer in graph.kernels()}
    return {n for n, p in parts.items() if not any(classes.get(".".join(p[:i])) in GATES for i in range(1, len(p)))}


def kernels_on_paths(graph):
    live = graph.from_input & graph.to_output
    return {node.layer for node in graph.nodes if node.id in live and node.layer and graph.layers[node.layer].is_kernel}


@pytest.mark.parametrize(
    ("name", "args", "with_gates", "without"),
    [
        ("efficientnet_b0", {}, 82, 82 - 2 * 16),
        ("mobilenetv3_small_100", {}, 54, 54 - 2 * 9),
        ("regnety_002", {}, 67, 67 - 2 * 13),
        ("torchvision:mobilenet_v3_small", {}, 54, 54 - 2 * 9),
        ("legacy_seresnet18", {}, 34, 34 - 2 * 8),
        ("ecaresnet26t", {}, 36, 36 - 8),
        ("skresnet18", {}, 34, 34 - 2 * 8),
        ("ese_vovnet19b_dw", {}, 42, 42 - 4),
        ("coatnet_nano_cc_224", {}, 76, 76 - 2 * 9),
        ("ghostnet_100", {}, 86, 86 - 2 * 7),
        ("resnet18", {"block_args": {"attn_layer": "cbam"}}, 18 + 3 * 8, 18),  # two of the squeeze, one spatial
        ("resnet18", {"block_args": {"attn_layer": "gc"}}, 18 + 3 * 8, 18),  # the attention, two of the context
        ("resnet50", {}, 50, 50),
        ("vit_tiny_patch16_224", {}, 50, 50),
        ("convnext_tiny", {}, 59, 59),
        ("swin_tiny_patch4_window7_224", {}, 53, 53),
        ("gmlp_s16_224", {}, 92, 92),
    ],
)
def test_known_architectures(name, args, with_gates, without):
    model = load_model(name, role="target", args=args)
    graph = trace(model)
    assert (len(longest_chain(graph)), len(longest_chain(graph, gates=False))) == (with_gates, without)
    with torch.device("meta"):
        module = model.build()
    expected = without_their_modules(graph, module) & kernels_on_paths(graph)
    assert kernels_on_paths(without_gates(graph)) == expected
    if with_gates == without:
        assert longest_chain(graph, gates=False) == longest_chain(graph)
