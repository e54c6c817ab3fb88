"""FitNets and FSP: regressors, hints and flows against formulas, what each stage trains; passes that stop early."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.runs import state_of, steps, training, with_source, write_nets
from support.updates import EXACT, array, begin, first_update, number

from netgraft.errors import UnknownName, UsageError
from netgraft.finetune.engine.loader import to_device
from netgraft.finetune.methods.fsp import flow, flow_distance
from netgraft.finetune.protocol import FeaturePair
from netgraft.finetune.toolbox.regressor import Regressor, fitting

ACTS = """
import torch
from torch import nn


class Acts(nn.Module):
    input_size = (1, 8, 8)

    def __init__(self, width=8, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.body = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        return self.head(self.act(self.body(self.stem(x).relu())).mean((2, 3)))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "acts.py").write_text(ACTS)
    return write_nets(tmp_path)


def changed(before, module):
    return {name for name, value in state_of(module).items() if not torch.equal(value, before[name])}


def in_epoch(running, epoch):
    running.run.epoch = epoch
    return first_update(running)


# ------------------------------------------------------------------------------------------------------- regressor


@pytest.mark.parametrize(
    ("target", "source", "kernel", "stride"),
    [
        ((6, 6), (6, 6), (1, 1), (1, 1)),
        ((8, 8), (4, 4), (3, 3), (2, 2)),
        ((9, 9), (3, 3), (5, 5), (3, 3)),
        ((7, 7), (4, 4), (4, 4), (1, 1)),  # as in the paper: one more than the difference
        ((8, 7), (4, 4), (3, 4), (2, 1)),
        ((4, 4), (8, 8), (4, 4), (2, 2)),
        ((3, 3), (9, 9), (5, 5), (3, 3)),
        ((4, 4), (7, 7), (4, 4), (1, 1)),
    ],
)
def test_kernel_makes_maps_fit(target, source, kernel, stride):
    layer = fitting(FeaturePair("a", "b", (5, *source), (3, *target)))
    assert (layer.kernel_size, layer.stride) == (kernel, stride)
    assert layer(torch.randn(2, 3, *target)).shape == (2, 5, *source)


def test_sides_that_differ_both_ways_are_refused():
    with pytest.raises(UsageError, match="one side shrinks"):
        fitting(FeaturePair("a", "b", (5, 4, 8), (3, 8, 4)))


@pytest.mark.parametrize("rectified", [True, False])
def test_regressor_is_convolution_norm_and_relu(rectified):
    regressor = Regressor(FeaturePair("a", "b", (5, 4, 4), (3, 8, 8))).double()
    with torch.no_grad():
        regressor.scale.uniform_(0.5, 2)
        regressor.shift.uniform_(-1, 1)
        regressor.rectified.fill_(rectified)
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        convolved = F.conv2d(x, regressor.linear.weight, regressor.linear.bias, 2, 1).float().double()
        expected = F.batch_norm(convolved, None, None, regressor.scale, regressor.shift, training=True, eps=1e-5)
        found = regressor(x, lambda tensor: tensor)
    assert bool((found < 0).any()) != rectified
    torch.testing.assert_close(found, expected.relu() if rectified else expected, rtol=1e-6, atol=1e-6)


def test_regressors_of_vectors_and_tokens_are_linear():
    for shape, source in (((3,), (5,)), ((7, 3), (7, 5))):
        regressor = Regressor(FeaturePair("a", "b", source, shape))
        x = torch.randn(2, *shape)
        expected = F.linear(x, regressor.linear.weight, regressor.linear.bias)
        assert torch.equal(regressor(x, lambda tensor: tensor), expected)


# ---------------------------------------------------------------------------------------------------------- fitnet


def test_hint(folder):
    """Eq. 3 of the middle pair: half the squared distance of a convolution with BatchNorm, as a mean."""
    running, update, here, there = begin(folder, "fitnet", pairs="stem:stem,stem:body,last:last")
    regressor = running.parts["regressor"].module
    x, weight = array(here.at["body"]), array(regressor.linear.weight)
    assert weight.shape == (12, 8, 4, 4)  # transposed, from 4x4 to 8x8
    out = F.conv_transpose2d(torch.tensor(x), torch.tensor(weight), regressor.linear.bias.double(), 2, 1)
    out = out.detach().numpy()
    out = (out - out.mean((0, 2, 3), keepdims=True)) / np.sqrt(out.var((0, 2, 3), keepdims=True) + 1e-5)
    expected = ((out - array(there.at["stem"])) ** 2).mean() / 2
    assert set(update.losses) == {"hint"}
    assert number(update.losses["hint"]) == pytest.approx(expected, **EXACT)


def test_relu_only_behind_a_relu(folder):
    for layer, rectified in (("act", True), ("body", False)):
        given = {"source": f"{folder}/acts.py:Acts", "source_weights": None, "random_source": True}
        running = training(with_source(folder, method="fitnet", pairs=f"{layer}:body", **given))
        running.prepare()
        assert bool(running.parts["regressor"].module.rectified) == rectified


def test_hints_train_what_is_up_to_the_guided_layer(folder):
    """Parameters and statistics: nothing behind the guided layer runs. Then everything but the regressor trains."""
    running = training(with_source(folder, method="fitnet", pairs="body:body"))
    net, regressor = running.run.target_module, running.parts["regressor"].module
    before, before_regressor = state_of(net), state_of(regressor)
    steps(running, 2)
    free = {"stem.bias", "body.bias"}  # a norm follows: they move by rounding alone
    assert changed(before, net) - free == {name for name in before if name.startswith(("stem", "body."))} - free
    assert {"linear.weight", "scale", "shift"} <= changed(before_regressor, regressor)
    before, before_regressor = state_of(net), state_of(regressor)
    running.run.epoch = 1
    steps(running, 2, epoch=1)
    assert changed(before, net) - free == set(before) - free
    assert not changed(before_regressor, regressor)


def test_answers_follow_with_a_weight_that_falls(folder):
    """Eq. 2: H of the predictions softened by T; its weight goes from kd to kd_last over the second stage."""
    options = {"hint_epochs": 1, "kd": 4.0, "kd_last": 1.0, "temperature": 3.0}
    running, _, here, there = begin(folder, "fitnet", pairs="body:body", epochs=4, set=options)
    p, q = (np.exp(array(seen.logits) / 3) for seen in (there, here))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    entropy = -(p * np.log(q)).sum(1).mean()
    for epoch, weight in ((1, 4.0), (2, 2.5), (3, 1.0)):
        update = in_epoch(running, epoch)
        assert update.parts == ("target",)
        assert set(update.losses) == {"task", "kd"}
        assert number(update.losses["kd"]) == pytest.approx(weight * entropy, **EXACT)


def test_half_of_the_epochs_are_for_hints(folder):
    for epochs, hints in ((1, 0), (2, 1), (5, 2)):
        running = training(with_source(folder, method="fitnet", epochs=epochs))
        kinds = ["hint" in in_epoch(running, epoch).losses for epoch in range(epochs)]
        assert kinds == [True] * hints + [False] * (epochs - hints)


# ------------------------------------------------------------------------------------------- passes that stop early


def test_a_pass_of_the_target_stops_at_a_paired_layer(folder):
    running = training(with_source(folder, method="fm", pairs="stem:stem,body:body"))
    batch = to_device(next(running.prepared.loader.epoch(0)), running.run.device)
    running.run.begin(batch)
    ran = []
    running.run.target_module.last.register_forward_hook(lambda *_: ran.append(1))
    stopped = running.run.target(batch, train=False, until="body")
    assert stopped.logits.shape == (16, 0)
    assert not ran
    whole = running.run.target(batch, train=False)
    assert torch.equal(stopped.at["body"], whole.at["body"])
    assert ran
    with pytest.raises(UnknownName, match="last"):
        running.run.target(batch, until="last")


# ------------------------------------------------------------------------------------------------------------- fsp


def pooled_to(maps, size):
    b, c, h, w = maps.shape
    return maps.reshape(b, c, size, h // size, size, w // size).max((3, 5))


def flows(layers):
    found = []
    for one, other in pairwise(layers):
        size = min(one.shape[2], other.shape[2])
        one, other = pooled_to(one, size), pooled_to(other, size)
        found.append(np.einsum("bchw,bdhw->bcd", one, other) / size**2)
    return found


def test_fsp(folder):
    """Eq. 1-2 by einsum, with the target's maps at the source's widths by 1x1 convolutions."""
    names = ["stem", "body", "last"]
    running, update, here, there = begin(folder, "fsp", pairs="stem:stem,body:body,last:last", set={"beta": 0.3})
    mapped = [
        np.einsum("bchw,dc->bdhw", array(here.at[name]), array(adapt.weight)[:, :, 0, 0])
        + array(adapt.bias)[None, :, None, None]
        for name, adapt in zip(names, running.parts["adapters"].module, strict=True)
    ]
    pairs = zip(flows(mapped), flows([array(there.at[name]) for name in names]), strict=True)
    expected = 0.3 * sum(((one - other) ** 2).mean() for one, other in pairs)
    assert number(update.losses["fsp"]) == pytest.approx(expected, **EXACT)
    assert set(update.parts) == {"target", "adapters"}


def test_fsp_of_one_architecture_has_no_adapters(folder):
    given = {"source_arg": {"width": 6}, "source_weights": f"{folder}/init.safetensors"}
    running, update, *_ = begin(folder, "fsp", **given, pairs="stem:stem,last:last")
    assert set(running.parts) == {"target"}
    assert number(update.losses["fsp"]) == 0


def test_flows_of_tokens_are_those_of_maps():
    one, other = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    tokens = [layer.flatten(2).transpose(1, 2) for layer in (one, other)]
    away = [layer + 1 for layer in (one, other)], [layer + 1 for layer in tokens]
    assert float(flow_distance(tokens, away[1])) == pytest.approx(float(flow_distance([one, other], away[0])), rel=1e-6)
    torch.testing.assert_close(flow(one, other), torch.einsum("bchw,bdhw->bcd", one, other) / 16)


def test_fsp_begins_with_the_flows_alone(folder):
    """Algorithm 1: the first stage leaves the classifier alone, the second is J."""
    running = training(with_source(folder, method="fsp", pairs="stem:stem,body:body", set={"pretrain_epochs": 1}))
    before = state_of(running.run.target_module)
    steps(running, 2)
    moved = {name for name in changed(before, running.run.target_module) if "norm" not in name}
    assert moved - {"stem.bias"} == {"stem.weight", "body.weight", "body.bias"}
    assert set(in_epoch(running, 0).losses) == {"fsp"}
    assert set(in_epoch(running, 1).losses) == {"task"}


def test_a_flow_needs_two_layers(folder):
    with pytest.raises(UsageError, match="two layers"):
        training(with_source(folder, method="fsp", pairs="body:body"))
