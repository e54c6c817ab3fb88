"""Networks that are nearly the source: what both have is bit-equal, and where nothing was lost the function is kept."""

import pytest
import torch
import torch.nn.functional as F
from support.nets import traced, weights
from support.recipe_laws import check_laws
from torch import nn

from netgraft.graft import graft
from netgraft.recipes.almost_equal import ALONE, AlmostEqual


class Block(nn.Module):
    def __init__(self, width, norm, gate):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), norm(width)
        self.gate = nn.Conv2d(width, width, 1) if gate else None

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.gate is not None:
            y = y * F.hardsigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        return F.relu(x + y)


class Net(nn.Module):
    def __init__(
        self, blocks="abc", width=8, chans=3, classes=5, gates="", norm=nn.BatchNorm2d, act=F.relu, decoder=False
    ):
        super().__init__()
        self.order, self.act = blocks, act
        self.stem, self.norm = nn.Conv2d(chans, width, 3, padding=1), nn.BatchNorm2d(width)
        self.blocks = nn.ModuleDict({name: Block(width, norm, name in gates) for name in blocks})
        self.head = nn.Linear(width, classes)
        self.decoder = nn.Sequential(nn.Conv2d(width, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)) if decoder else None

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        for name in self.order:
            x = self.blocks[name](x)
        scores = self.head(x.mean((2, 3)))
        return scores if self.decoder is None else (scores, self.decoder(x))


SIZE = (3, 8, 8)


def made(other, chans=3, source=Net, **options):
    """The plan, the source's state_dict, and the target's after the plan."""
    graphs = traced(source, SIZE), traced(other, (chans, *SIZE[1:]))
    plan = check_laws(AlmostEqual(**options), *graphs)
    state, own = weights(source, 1), weights(other, 2)
    return plan, state, graft(plan, state, own), own


def outputs(source, other, state, result):
    nets = source(), other()
    nets[0].load_state_dict(state)
    nets[1].load_state_dict(result)
    x = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = [net.eval()(x) for net in nets]
    return [each[0] if isinstance(each, tuple) else each for each in found]


KEPT = {
    "a block more at the end": {"blocks": "abcx"},
    "a block more in between": {"blocks": "axbc"},
    "three blocks more": {"blocks": "xaybzc"},
    "gates": {"gates": "ac"},
    "a decoder": {"decoder": True},
    "a block and gates": {"blocks": "abxc", "gates": "xb"},
}


@pytest.mark.parametrize("name", KEPT)
def test_the_function_of_the_source_is_kept(name):
    def other():
        return Net(**KEPT[name])

    plan, state, result, own = made(other)
    for key, value in state.items():
        assert torch.equal(result[key], value), key
    before, after = outputs(Net, other, state, result)
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    for kept in plan.kept:
        assert torch.equal(result[kept.key], own[kept.key])
        assert kept.why in (ALONE, "no counterpart in the source")


CHANGED = {  # change -> tensors that cannot be equal
    "other classes": ({"classes": 7}, {"head.weight", "head.bias"}),
    "another activation": ({"act": F.silu}, set()),
    "group norms": (
        {"norm": lambda width: nn.GroupNorm(2, width)},
        {
            f"blocks.{b}.norm{i}.{s}"
            for b in "abc"
            for i in (1, 2)
            for s in ("weight", "bias", "running_mean", "running_var")
        },
    ),
    "a block less": ({"blocks": "ac"}, {key for key in Net().state_dict() if ".b." in key}),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_did_not_change_is_bit_equal(name):
    options, apart = CHANGED[name]
    _, state, result, _ = made(lambda: Net(**options))
    for key, value in state.items():
        if key not in apart and not key.endswith("num_batches_tracked"):
            assert torch.equal(result[key], value), key


def test_other_input_channels():
    plan, state, result, _ = made(lambda: Net(chans=6), chans=6)
    assert not plan.kept
    for key, value in state.items():
        if key != "stem.weight":
            assert torch.equal(result[key], value), key
    images = torch.randn(2, 3, 8, 8)
    nets = Net(), Net(chans=6)
    nets[0].load_state_dict(state)
    nets[1].load_state_dict(result)
    with torch.no_grad():  # the same image twice is seen as it was once
        torch.testing.assert_close(
            nets[1].eval()(torch.cat([images, images], 1)), nets[0].eval()(images), rtol=1e-4, atol=1e-4
        )


def test_a_wider_network_takes_all():
    plan, state, result, _ = made(lambda: Net(width=16))
    assert not plan.kept
    before, after = outputs(Net, lambda: Net(width=16), state, result)
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


def test_a_plain_chain_gets_steps_that_pass_on():
    def chain(count):
        steps = [step for _ in range(count) for step in (nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())]
        return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), *steps, nn.Flatten(), nn.Linear(384, 3))

    _, state, result, _ = made(lambda: chain(4), source=lambda: chain(2))
    before, after = outputs(lambda: chain(2), lambda: chain(4), state, result)
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


def test_another_name_for_everything():
    class Renamed(Net):
        def __init__(self):
            super().__init__()
            self.trunk, self.classifier, self.gamma = self.blocks, self.head, self.norm
            del self.blocks, self.head, self.norm

        def forward(self, x):
            x = self.act(self.gamma(self.stem(x)))
            for name in self.order:
                x = self.trunk[name](x)
            return self.classifier(x.mean((2, 3)))

    plan, state, result, _ = made(Renamed)
    assert not plan.kept
    before, after = outputs(Net, Renamed, state, result)
    assert torch.equal(before, after)


@pytest.mark.parametrize("blocks", ["xabc", "abxc"])
def test_a_new_block_has_the_weights_of_its_neighbour_but_for_its_end(blocks):
    plan, state, result, _ = made(lambda: Net(blocks=blocks))
    donor = "a" if blocks == "xabc" else "b"
    for name in ("conv1.weight", "norm1.running_var", "conv2.weight"):
        assert torch.equal(result[f"blocks.x.{name}"], state[f"blocks.{donor}.{name}"]), name
    assert not result["blocks.x.norm2.weight"].any()
    assert not plan.kept
