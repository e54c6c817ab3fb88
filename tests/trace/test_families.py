"""One architecture or more of each family of timm and torchvision: chains and layers are what autograd saw.

The truth is independent of tracing: PyTorch's own graph of one plain forward pass. Every call of a convolution, a
linear layer or an RNN marks the backward node of its result, and the longest path over marks, and how many there are,
come of a walk through that graph. The numbers of 13 of them are known from papers too.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netgraft.architecture.chain import longest_chain
from netgraft.models.model import load_model
from netgraft.trace import trace
from netgraft.trace.forward import build_on
from netgraft.trace.inputs import examples_for, fixed_chance
from netgraft.trace.shortcuts import Shortcuts

KERNELS = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)
FUNCTIONS = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
KNOWN = {
    "resnet18": (18, 21),
    "resnet50": (50, 54),
    "vgg11": (11, 11),
    "densenet121": (121, 121),
    "inception_v3": (48, 95),
    "efficientnet_b0": (82, 82),
    "vit_tiny_patch16_224": (50, 50),
    "swin_tiny_patch4_window7_224": (53, 53),
    "convnext_tiny": (59, 59),
    "nfnet_f0": (78, 82),
    "hrnet_w18": (101, 326),
    "cait_xxs24_224": (154, 158),
    "tf_efficientnet_cc_b0_4e": (90, 90),
}
"""(chain, kernel layers) as known from elsewhere."""

NAMES = """
    resnet18 resnet50 vgg11 densenet121 inception_v3 efficientnet_b0 vit_tiny_patch16_224 swin_tiny_patch4_window7_224
    convnext_tiny nfnet_f0 hrnet_w18 cait_xxs24_224 tf_efficientnet_cc_b0_4e
    mobilenetv3_small_100 mobilenetv4_conv_small regnety_002 regnetx_002 repvgg_a0 mobileone_s0 res2net50_26w_4s
    resnest14d skresnet18 seresnet50 dla34 dpn68 cspresnet50 darknet17 vovnet39a selecsls42 xception41 ghostnet_050
    tresnet_m rexnet_100 lcnet_050 hgnetv2_b0 gernet_s fastvit_t8 mobilevit_xxs edgenext_xx_small efficientformer_l1
    efficientvit_b0 efficientvit_m0 repvit_m0_9 levit_128s poolformer_s12 caformer_s18 nextvit_small mambaout_femto
    mixer_s32_224 resmlp_12_224 gmlp_ti16_224 xcit_nano_12_p16_224 coat_lite_tiny crossvit_9_240 pit_ti_224
    convit_tiny beit_base_patch16_224 eva02_tiny_patch14_224 volo_d1_224 mvitv2_tiny hiera_tiny_224 pvt_v2_b0
    twins_pcpvt_small maxvit_pico_rw_256 coatnet_pico_rw_224 focalnet_tiny_srf davit_tiny sequencer2d_s halonet26t
    botnet26t_256 lambda_resnet26t samvit_base_patch16 swinv2_tiny_window8_256 tnt_s_legacy_patch16_224
    torchvision:googlenet torchvision:shufflenet_v2_x0_5 torchvision:squeezenet1_1 torchvision:mnasnet0_5
    torchvision:regnet_y_400mf torchvision:swin_v2_t torchvision:vit_b_16 torchvision:r2plus1d_18
    torchvision:fcn_resnet50 torchvision:deeplabv3_mobilenet_v3_large torchvision:raft_small
"""


class Recorded(NamedTuple):
    """What autograd recorded of a forward pass; ``marks`` are the nodes in which kernel layers end."""

    modules: set[str]  # kernel modules that were called
    functions: int  # calls of kernels that are no modules, such as ``F.linear`` with a weight of an attention's own
    marks: dict[Any, None]
    ends: list[Any]


def recorded(model: Any, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """One forward pass on the meta device, with gradients of the input alone."""
    module = build_on(model.build, "cpu" if "regnet_y" in model.name else "meta").to("meta").eval()
    module.requires_grad_(False)
    modules: set[str] = set()
    marks: dict[Any, None] = {}
    functions = depth = 0

    def enter(*_: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(_: nn.Module, __: Any, result: Any, *, name: str) -> None:
        nonlocal depth
        depth -= 1
        modules.add(name)
        mark(result[0] if isinstance(result, tuple) else result)

    def mark(result: Tensor) -> None:
        if result.grad_fn is not None:  # else nothing of the input is in it
            marks[result.grad_fn] = None

    def marking(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def called(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal functions
            result = function(x, weight, *args, **kwargs)
            if depth == 0 and not any(weight is b or weight._base is b for b in module.buffers()):  # no fixed blur
                functions += 1
                mark(result)
            return result

        return called

    for name, part in module.named_modules():
        if isinstance(part, KERNELS):
            part.register_forward_pre_hook(enter)
            part.register_forward_hook(functools.partial(leave, name=name))
    args, kwargs = next(iter(examples_for(model, module))).on("meta")
    for given in _tensors((args, kwargs)):
        given.requires_grad_(given.is_floating_point())
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in FUNCTIONS:
            patch.setattr(F, name, marking(getattr(F, name)))
        patch.setattr(
            Tensor, "detach", lambda tensor: tensor
        )  # what RAFT does not differentiate is a path all the same
        patch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
        with torch.enable_grad(), fixed_chance(), torch.device("meta"), Shortcuts():
            result = module(*args, **kwargs)
    return Recorded(modules, functions, marks, [t.grad_fn for t in _tensors(result) if t.grad_fn is not None])


def _tensors(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def longest(seen: Recorded) -> tuple[int, int]:
    """The most marks on a path from the input to a result, and how many sequences of marks have as many."""
    length: dict[Any, int] = {}
    last: dict[Any, frozenset[Any]] = {}  # the marks in which the longest sequences up to a node end
    ways: dict[Any, int] = {}

    def best(nodes: Iterable[Any]) -> tuple[int, frozenset[Any]]:
        nodes = list(nodes)
        most = max((length[node] for node in nodes), default=0)
        return most, frozenset().union(*(last[node] for node in nodes if length[node] == most))

    stack = [(node, False) for node in seen.ends]
    while stack:
        node, ready = stack.pop()
        before = [other for other, _ in node.next_functions if other is not None]
        if ready and node not in length:
            length[node], last[node] = best(before)
            if node in seen.marks:
                ways[node] = sum(ways[other] for other in last[node]) or 1
                length[node], last[node] = length[node] + 1, frozenset({node})
        elif node not in length:
            stack += [(node, True), *((other, False) for other in before if other not in length)]
    most, ends = best(seen.ends)
    return most, sum(ways[end] for end in ends)


@pytest.mark.parametrize("name", NAMES.split())
def test_family(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(name, role="target")
    graph = trace(model)
    chain, kernels = longest_chain(graph), {layer.name for layer in graph.kernels()}
    seen = recorded(model, monkeypatch)
    assert seen.modules <= kernels
    assert len(kernels - seen.modules) == seen.functions
    assert (len(chain), chain.ties) == longest(seen)
    if name in KNOWN:
        assert (len(chain), len(kernels)) == KNOWN[name]


def test_the_longest_path_of_a_small_network() -> None:
    """By hand: of two branches the one with two convolutions counts, and two of them tie."""
    convs = [nn.Conv2d(1, 1, 1).requires_grad_(False) for _ in range(6)]
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    marks: dict[Any, None] = {}

    def call(number: int, at: Tensor) -> Tensor:
        result = convs[number](at)
        marks[result.grad_fn] = None
        return result

    stem = call(0, x).relu()
    result = call(5, call(1, stem) + call(3, call(2, stem)) + call(4, call(2, stem)))
    assert longest(Recorded(set(), 0, marks, [result.grad_fn])) == (4, 2)
