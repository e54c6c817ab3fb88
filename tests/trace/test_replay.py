"""A forward pass run node by node: the values are those of a plain pass, whatever is done between two nodes."""

import weakref

import pytest
import support.user_nets  # noqa: F401  (registers the cases)
import timm
import torch
import torch.nn.functional as F
from support.cases import CASES
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from netgraft.errors import TraceError
from netgraft.trace import trace
from netgraft.trace.replay import Replay, check_replay
from netgraft.trace.structure import tensors_in

IMAGE = (3, 32, 32)
FAMILIES = {
    "resnet": lambda: timm.create_model("resnet10t", num_classes=5),
    "mobilenet": lambda: timm.create_model("mobilenetv3_small_050", num_classes=5),
    "vit": lambda: VisionTransformer(32, 8, embed_dim=24, depth=2, num_heads=3, num_classes=5),
    "swin": lambda: SwinTransformer(32, 2, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=5),
    "convnext": lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=5),
}
REFUSED = {"Recurrent": "one operation at a time", "UnusedInPlaceResult": "something else"}
"""What cannot be run again, and is said not to be: a recurrent layer's tuple, a buffer written behind its back."""
USER_NETS = {
    case.name: case
    for case in CASES
    if case.input_size and not case.example_inputs and case.name not in ("TiedEmbedding", "LazyModules", *REFUSED)
}
every_family = pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)


def made(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build().eval().requires_grad_(False)
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():  # no statistic, layer scale or bias that does nothing
                tensor.add_(0.2 * torch.rand_like(tensor))
    return net


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def leaves(value):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def result(replay):
    found = []
    replay.watch({replay.nodes[-1]: found.append})
    return leaves(found)


class Residual(nn.Module):
    """In-place activations around a residual addition, a functional convolution with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.kernel = nn.Parameter(torch.randn(6, 6, 3, 3) * 0.2)
        self.last = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu_(self.norm(self.stem(x)))
        y = F.relu_(F.conv2d(x, self.kernel, padding=1))
        y = self.last(y)
        y += x
        return self.head(F.relu_(y).mean((2, 3)))


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


# ------------------------------------------------------------------------------------------------ the pass itself


@every_family
def test_families(build):
    net, images = made(build), drawn(3, *IMAGE)
    replay = Replay(net, images)
    check_replay(replay)
    with torch.no_grad():
        wanted = net(images)
    assert wanted.std() > 0
    torch.testing.assert_close(result(replay), [wanted])


@pytest.mark.parametrize("case", USER_NETS.values(), ids=USER_NETS)
def test_user_nets(case):
    net, x = made(case.build), drawn(3, *case.input_size)
    with torch.no_grad():
        wanted = tensors_in(net(x.clone()))
    replay = Replay(net, x)
    found = result(replay)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    check_replay(replay)


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_what_cannot_be_run_again_is_refused(name, message):
    case = next(case for case in CASES if case.name == name)
    replay = Replay(made(case.build), drawn(3, *case.input_size))
    with pytest.raises(TraceError, match=message):
        check_replay(replay)


def test_two_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, x, y):
            return self.a(x) - self.b(y)

    net, inputs = made(Two), (drawn(2, 4), drawn(2, 5, seed=1))
    torch.testing.assert_close(result(Replay(net, *inputs)), [net(*inputs)])


def test_the_same_graph_as_tracing():
    class Model:
        build, input_size, example_inputs, name, file = Residual, (3, 8, 8), None, "net", None

    graph, traced = Replay(made(Residual), drawn(2, 3, 8, 8)).graph, trace(Model())
    assert list(graph.layers) == list(traced.layers)
    assert [node.id for node in graph.nodes] == [node.id for node in traced.nodes]


def test_it_is_in_eval_mode_and_without_gradients():
    net = Residual().train()
    replay = Replay(net, drawn(2, 3, 8, 8))
    assert not net.training
    assert not any(leaf.requires_grad for leaf in result(replay))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) + torch.randn_like(x)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.calls = nn.Linear(4, 4), 0

    def forward(self, x):
        self.calls += 1
        return self.fc(x) * self.calls


@pytest.mark.parametrize("build", [Noisy, Counting])
def test_chance_and_state_are_refused(build):
    with pytest.raises(TraceError, match="something else"):
        check_replay(Replay(made(build), drawn(3, 4)))


# ---------------------------------------------------------------------------------------------- between two nodes


def weights_of(replay, name):
    return replay.module.state_dict()[replay.graph.layers[name].tensors["weight"].key]


@pytest.mark.parametrize("build", [Residual, *FAMILIES.values()], ids=["residual", *FAMILIES])
def test_a_layer_changed_just_before_it_runs(build):
    """Every layer in turn of one pass is given other weights: the result is that of a plain pass with all of them."""
    images = drawn(2, *IMAGE)
    net = made(build)
    replay = Replay(net, images)
    layers = [layer.name for layer in replay.graph.kernels() if layer.calls == 1 and "weight" in layer.tensors]
    stops = {replay.starts[name]: name for name in layers}
    found = []
    for node in replay.run():
        if node in stops:
            assert node not in replay.values
            weight = weights_of(replay, stops[node])
            weight.copy_(weight + 0.3 * weight.std() * drawn(*weight.shape, seed=3))
        if node.op == "output":
            found = leaves([replay.values[other] for other in node.all_input_nodes])
    assert len(stops) >= 4
    torch.testing.assert_close(found, [net(images)], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(images), made(build)(images), rtol=1e-2)


def test_watched_values_are_those_that_hooks_see():
    net, images = made(FAMILIES["resnet"]), drawn(2, *IMAGE)
    seen, wanted = {}, {}
    names = [name for name, part in net.named_modules() if isinstance(part, (nn.Conv2d, nn.BatchNorm2d))]
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: wanted.update({name: out.clone()}))
        for name in names
    ]
    net(images)
    for hook in hooks:
        hook.remove()
    replay = Replay(net, images)
    replay.watch({replay.ends[name]: lambda value, name=name: seen.update({name: value.clone()}) for name in names})
    assert list(seen) == list(wanted)
    for name in names:
        torch.testing.assert_close(seen[name], wanted[name])


def test_again_after_the_fact():
    """The branch of a residual block gets other weights when its end is reached, in-place operations and all."""
    net, images = made(Residual), drawn(2, 3, 8, 8)
    replay = Replay(net, images)
    add = next(node.id for node in replay.graph.nodes if node.op == "add")
    kernel = next(layer for layer in replay.graph.kernels() if layer.tensors["weight"].key == "kernel")
    start, end = replay.starts[kernel.name], replay.ends[add]
    needed = [*start.all_input_nodes, *end.all_input_nodes]
    for node in needed:
        replay.hold(node)
    for node in replay.run():
        if node is end:
            for _ in range(2):  # as often as one likes
                net.kernel.mul_(-0.5)
                replay.again(start, replay.nodes[replay.place[end] - 1])
            for other in needed:
                replay.release(other)
        if node.op == "output":
            found = [replay.values[other] for other in node.all_input_nodes]
    torch.testing.assert_close(found, [net(images)])
    assert not torch.allclose(found[0], made(Residual)(images), rtol=1e-2)


def test_attention_can_be_run_again():
    net, tokens = made(Attentive), drawn(2, 5, 6)
    replay = Replay(net, tokens)
    start, head = replay.starts["embed"], replay.starts["head"]
    for node in start.all_input_nodes:
        replay.hold(node)
    for node in replay.run():
        if node is head:
            net.embed.weight.mul_(2)
            net.attention.in_proj_weight.add_(0.1)
            replay.again(start, replay.nodes[replay.place[head] - 1])
        if node.op == "output":
            found = [replay.values[other] for other in node.all_input_nodes]
    torch.testing.assert_close(found, [net(tokens)])


# -------------------------------------------------------------------------------------------------------- memory


def chain(depth=12):
    return nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(8, 8), nn.Tanh())))


def test_values_are_released_after_their_last_use():
    replay = Replay(made(chain), drawn(4, 8))
    most = max(len([v for v in replay.values.values() if v.shape == (4, 8)]) for _ in replay.run())
    assert most <= 2
    assert len(replay.nodes) > 20
    seen = []
    for _ in replay.run():
        seen += [weakref.ref(value) for value in replay.values.values() if value is not replay.inputs[0]]
    alive = {id(ref()) for ref in seen if ref() is not None and not isinstance(ref(), nn.Parameter)}
    assert len(alive) <= 2


def test_held_values_stay_until_they_are_released_as_often():
    replay = Replay(made(chain), drawn(4, 8))
    first = replay.nodes[3]
    replay.hold(first)
    replay.hold(first)
    released = []
    for node in replay.run():
        place = replay.place[node]
        if place in (10, 14):
            assert first in replay.values
            replay.release(first)
            released.append(first in replay.values)
    assert released == [True, False]


def test_released_before_its_last_use_it_stays_till_then():
    replay = Replay(made(chain), drawn(4, 8))
    first = replay.nodes[1]
    last = replay.last_use[first]
    replay.hold(first)
    present = []
    for node in replay.run():
        if replay.place[node] == replay.place[last]:
            replay.release(first)
            present.append(first in replay.values)
        if replay.place[node] == replay.place[last] + 1:
            present.append(first in replay.values)
    assert present == [True, False]


def test_a_watched_value_is_not_kept():
    replay = Replay(made(chain), drawn(4, 8))
    refs = []
    replay.watch({node: lambda value: refs.append(weakref.ref(value)) for node in replay.nodes if node.op != "output"})
    assert len(refs) == len(replay.nodes) - 1
    large = [ref() for ref in refs if ref() is not None and ref().shape == (4, 8) and ref() is not replay.inputs[0]]
    assert len({id(value) for value in large}) <= 1
    assert set(replay.held.values()) == {0}
