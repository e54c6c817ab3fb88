"""DELTA: what the loss grows by without a channel, by brute force and by autograd; the attention; the loss."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import safetensors.torch
import scipy.special
import torch
import torch.nn.functional as F
from support.runs import NET, steps, training, with_source, write_nets
from support.updates import EXACT, STILL, array, begin, first_update, number, outputs
from torch import nn

from netgraft.errors import UsageError
from netgraft.finetune.engine.loader import to_device
from netgraft.finetune.toolbox.channel_attention import (
    Classified,
    attention,
    estimated_increase,
    exact_increase,
    train_probe,
)
from netgraft.finetune.toolbox.suffix import Suffix

PAIRS = "stem:stem,body:body,last:last"
LAYERS = ("stem", "body", "last")


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def delta(folder, **given):
    options = {"pairs": PAIRS, "target_arg": {"drop": 0.0}}
    return training(with_source(folder, method="delta", **(options | given)))


def first_batches(running, count=1):
    return [to_device(batch, running.run.device) for batch in islice(running.prepared.loader.epoch(0), count)]


def zeroed(module, layer, channel, x, factor=0.0):
    """Logits of the whole network with one channel of a layer times a factor."""

    def scale(_, __, output):
        output = output.clone()
        output[:, channel] *= factor
        return output

    handle = module.get_submodule(layer).register_forward_hook(scale)
    try:
        with torch.no_grad():
            return module(x)
    finally:
        handle.remove()


def cross_entropy(logits, labels):
    z = array(logits)
    return (scipy.special.logsumexp(z, axis=1) - z[np.arange(len(z)), labels.numpy()]).mean()


# -------------------------------------------------------------------------------------------------------- increase


@pytest.mark.parametrize("layer", LAYERS)
def test_exact_is_the_whole_network_without_the_channel(folder, layer):
    running = delta(folder)
    module, (batch,) = running.run.source_module, first_batches(running)
    found = exact_increase(Classified(running.run, None), layer, batch)
    with torch.no_grad():
        plain = cross_entropy(module(batch.x), batch.y)
    expected = [cross_entropy(zeroed(module, layer, c, batch.x), batch.y) - plain for c in range(len(found))]
    assert np.abs(expected).max() > 1e-4
    assert array(found) == pytest.approx(np.array(expected), abs=1e-6)


def test_exact_by_a_classifier_of_its_features(folder):
    """The trained linear layer reads what the source's own classifier does."""
    running = delta(folder)
    run, (batch,) = running.run, first_batches(running)
    classified = train_probe(run, [batch], 3)
    heard = []
    run.source_module.head.register_forward_pre_hook(lambda _, args: heard.append(args[0].detach()))

    def loss(c, factor):
        zeroed(run.source_module, "body", c, batch.x, factor)
        features = heard[-1].double()
        weight, bias = (p.detach().double() for p in classified.probe.parameters())
        return cross_entropy(features @ weight.T + bias, batch.y)

    expected = [loss(c, 0.0) - loss(c, 1.0) for c in range(16)]
    assert array(exact_increase(classified, "body", batch)) == pytest.approx(np.array(expected), abs=1e-6)


def test_only_what_is_behind_the_layer_runs(folder):
    running = delta(folder)
    module, (batch,) = running.run.source_module, first_batches(running)
    counts = Counter()

    def counting(name, forward):
        return lambda *args: (counts.update([name]), forward(*args))[1]

    for name in ("stem", "stem_norm", "body", "body_norm", "last"):
        part = module.get_submodule(name)
        part.forward = counting(name, part.forward)
    exact_increase(Classified(running.run, None), "body", batch)  # recorded once, checked once, 16 channels in one pass
    assert counts == {"stem": 1, "stem_norm": 1, "body": 1, "body_norm": 3, "last": 3}


@pytest.mark.parametrize("layer", LAYERS)
def test_first_order_is_autograd_of_the_zeroing(folder, layer):
    """-<dJ/do, o> by autograd on the layer's output, and the slope of the loss as the channel fades."""
    running = delta(folder)
    module, (batch,) = running.run.source_module, first_batches(running)
    kept = []

    def keep(_, __, output):
        kept.append(output.requires_grad_())

    handle = module.get_submodule(layer).register_forward_hook(keep)
    loss = F.cross_entropy(module(batch.x), batch.y)
    handle.remove()
    (gradient,) = torch.autograd.grad(loss, kept)
    expected = -(gradient.double() * kept[0].double()).sum((0, 2, 3)).detach()
    found = dict(zip(LAYERS, estimated_increase(Classified(running.run, None), LAYERS, batch), strict=True))[layer]
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    double = module.double()
    slopes = [
        (cross_entropy(zeroed(double, layer, c, batch.x.double(), 1 - 1e-4), batch.y)
         - cross_entropy(zeroed(double, layer, c, batch.x.double(), 1 + 1e-4), batch.y)) / 2e-4
        for c in range(len(found))
    ]  # fmt: skip
    assert array(found) == pytest.approx(np.array(slopes), abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- suffix


class Block(nn.Module):
    def __init__(self, width, act):
        super().__init__()
        self.one, self.other, self.act = nn.Linear(width, width), nn.Linear(width, width), act

    def forward(self, x, scale):
        out = self.other(self.act(self.one(x)))
        out += x * scale
        return self.act(out), scale


class Tokens(nn.Module):
    """Tokens, one activation in place for all blocks, outputs in tuples, and a module that no image goes through."""

    def __init__(self, width=6, positions=7):
        super().__init__()
        act = nn.ReLU(inplace=True)
        self.patch = nn.Linear(4, width)
        self.start = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Embedding(positions, width)
        self.act = act
        self.blocks = nn.ModuleList(Block(width, act) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.patch(x)
        x = torch.cat([self.start.expand(len(x), -1, -1), x], 1) + self.places(torch.arange(7))
        for block in self.blocks:
            x, _ = block(self.act(x), 1.5)
        return self.head(self.norm(x)[:, 0])


def by_hook(module, layer, outputs, x):
    """The whole network, with a hook that puts ``outputs`` in place of the layer's."""

    def replace(_, __, output):
        return (outputs, *output[1:]) if isinstance(output, tuple) else outputs

    handle = module.get_submodule(layer).register_forward_hook(replace)
    try:
        return module(x)
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("layer", "batch", "partial"),
    [
        ("patch", 4, False),  # nothing is before it
        ("blocks.0.one", 4, True),
        ("blocks.1", 4, True),
        ("blocks.1.other", 4, True),
        ("norm", 4, True),
        ("blocks.1", 7, False),  # as many images as places: their embedding looks like rows of images
    ],
)
@torch.no_grad()
def test_suffix_of_any_layer(layer, batch, partial):
    torch.manual_seed(0)
    module = Tokens().eval()
    x = torch.randn(batch, 6, 4)
    suffix = Suffix(module, layer, lambda copies: module(x.repeat(copies, 1, 1)), batch)
    assert suffix.partial == partial
    torch.testing.assert_close(suffix.result, module(x))
    outputs = torch.randn(3 * batch, *suffix.output.shape[1:])
    expected = by_hook(module, layer, outputs.clone(), x.repeat(3, 1, 1))
    found = suffix(outputs.clone())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not any("forward" in vars(part) or part._forward_hooks for part in module.modules())


@torch.no_grad()
def test_suffix_of_a_compiled_network():
    """What is compiled does not ask the modules; meanwhile it is not used."""

    def compiled(*_):
        raise AssertionError("compiled code ran")

    module = Tokens().eval()
    module._compiled_call_impl = compiled
    x = torch.randn(4, 6, 4)
    suffix = Suffix(module, "blocks.1", lambda copies: module(x.repeat(copies, 1, 1)), 4)
    suffix(suffix.output)
    assert module._compiled_call_impl is compiled


NESTED = """
from torch import nn


class Nested(nn.Module):
    input_size = (1, 8, 8)

    def __init__(self, num_classes=10):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3)))
        self.two = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3), nn.ReLU(inplace=True))
        self.head = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.head(self.two(self.one(x)).mean((2, 3)))
"""


@pytest.mark.parametrize("layer", ["one.0", "one.1.1", "one", "two.1", "two"])
def test_pairs_inside_of_one_another(folder, layer):
    """Paired layers are listened to in every pass; some are inside of modules that are not run again."""
    (folder / "nested.py").write_text(NESTED)
    given = {"source": f"{folder}/nested.py:Nested", "source_weights": None, "random_source": True, "source_arg": {}}
    pairs = "one.0:stem,one.1.1:body,one:body,two.1:last,two:last"
    running = delta(folder, **given, pairs=pairs, set={"probe_epochs": 0})
    module, (batch,) = running.run.source_module, first_batches(running)
    found = exact_increase(Classified(running.run, None), layer, batch)
    plain = cross_entropy(zeroed(module, layer, 0, batch.x, 1.0), batch.y)
    expected = [cross_entropy(zeroed(module, layer, c, batch.x), batch.y) - plain for c in range(6)]
    assert np.abs(expected).max() > 1e-5
    assert array(found) == pytest.approx(np.array(expected), abs=1e-6)


# ------------------------------------------------------------------------------------------------------- attention


def test_attention_of_increases():
    increase = torch.randn(9, dtype=torch.float64) * 3
    z = (increase.numpy() - increase.numpy().mean()) / increase.numpy().std()
    assert array(attention(increase, "code")) == pytest.approx(scipy.special.softmax(z / 5), abs=1e-12)
    assert array(attention(increase, "paper")) == pytest.approx(scipy.special.softmax(increase.numpy()), abs=1e-12)
    assert attention(torch.full((4,), 2.0), "code").tolist() == [0.25] * 4


@pytest.mark.parametrize("kind", ["exact", "first-order"])
def test_attention_is_that_of_the_mean_over_batches(folder, kind):
    options = {"attention": kind, "attention_batches": 2, "probe_epochs": 0}
    running = delta(folder, set=options)
    running.prepare()
    classified, batches = Classified(running.run, None), first_batches(running, 2)
    for layer, weight in zip(LAYERS, running.parts["attention"].module.buffers(), strict=True):
        if kind == "exact":
            found = [exact_increase(classified, layer, batch) for batch in batches]
        else:
            found = [estimated_increase(classified, [layer], batch)[0] for batch in batches]
        torch.testing.assert_close(weight, attention((found[0] + found[1]) / 2, "code"), rtol=1e-5, atol=1e-8)
        assert weight.std() > 0.01 / len(weight)


def test_uniform_attention_is_the_start(folder):
    running = delta(folder, set={"attention": "uniform"})
    running.prepare()
    weights = running.parts["attention"].module.buffers()
    assert [set(weight.tolist()) for weight in weights] == [{1 / 8}, {1 / 16}, {1 / 16}]


def test_classifier_of_the_features_is_trained_by_sgd(folder):
    """Softmax regression in NumPy: momentum 0.9, 0.01, and a tenth of it after six epochs."""
    running = delta(folder)
    batches = first_batches(running, 3)
    probe = train_probe(running.run, batches, 8).probe
    heard = []
    running.run.source_module.head.register_forward_pre_hook(lambda _, args: heard.append(array(args[0])))
    with torch.no_grad():
        for batch in batches:
            running.run.source_module(batch.x)
    weight, bias, moved, moved_bias = np.zeros((10, 16)), np.zeros(10), np.zeros((10, 16)), np.zeros(10)
    for epoch in range(8):
        for features, batch in zip(heard, batches, strict=True):
            p = scipy.special.softmax(features @ weight.T + bias, axis=1) - np.eye(10)[batch.y.numpy()]
            moved, moved_bias = 0.9 * moved + p.T @ features / len(p), 0.9 * moved_bias + p.mean(0)
            rate = 0.01 if epoch < 6 else 0.001
            weight, bias = weight - rate * moved, bias - rate * moved_bias
    for found, expected in ((probe.weight, weight), (probe.bias, bias)):
        assert np.abs(expected).max() > 1e-3
        assert array(found) == pytest.approx(expected, abs=1e-6 * np.abs(expected).max())


def test_own_answers_need_the_classes(folder):
    names = {}
    exec(NET, names)
    safetensors.torch.save_file(names["Net"](8, num_classes=7).state_dict(), folder / "seven.safetensors")
    given = {"source_arg": {"width": 8, "num_classes": 7}, "source_weights": f"{folder}/seven.safetensors"}
    with pytest.raises(UsageError, match="has 7 classes"):
        delta(folder, **given, set={"probe_epochs": 0})
    running = delta(folder, **given)
    running.prepare()
    steps(running, 1)


# ------------------------------------------------------------------------------------------------------------ loss


def test_delta(folder):
    """Channel by channel in NumPy, with weights of all kinds; the classifier's pull beside it."""
    running = training(with_source(folder, method="delta", pairs=PAIRS, set={"alpha": 0.6, "beta": 0.2}, **STILL))
    buffers = list(running.parts["attention"].module.buffers())
    for buffer in buffers:
        buffer.copy_(torch.rand(len(buffer)).softmax(0))
    update = first_update(running)
    here, there = outputs(running)
    expected = 0.0
    for name, adapt, a in zip(LAYERS, running.parts["adapters"].module, buffers, strict=True):
        mapped = np.einsum("bchw,dc->bdhw", array(here.at[name]), array(adapt.weight)[:, :, 0, 0])
        apart = (mapped + array(adapt.bias)[None, :, None, None] - array(there.at[name])) ** 2
        expected += 0.3 * (array(a) * apart.mean((0, 2, 3))).sum()
    assert number(update.losses["delta"]) == pytest.approx(expected, **EXACT)
    head = running.run.target_module.head
    norms = sum(float(p.detach().double().square().sum()) for p in head.parameters())
    assert float(update.penalties["head"].value) == pytest.approx(0.1 * norms, **EXACT)
    assert set(update.parts) == {"target", "adapters"}


def test_uniform_delta_of_one_architecture_is_the_mean_over_channels(folder):
    """Half of --method knowdist's sum, whose channels all count alike."""
    given = {"source_arg": {"width": 6}, "pairs": PAIRS, "source_weights": None, "random_source": True}
    running, update, *_ = begin(folder, "delta", **given, set={"attention": "uniform"})
    _, other, *_ = begin(folder, "knowdist", **given)
    assert set(running.parts) == {"target", "attention"}
    assert number(update.losses["delta"]) == pytest.approx(1.5 * number(other.losses["knowdist"]), rel=1e-6)
