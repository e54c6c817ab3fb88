"""Losses of features against formulas written down a second time, in NumPy and float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.runs import same, state_of, steps, training, with_source, write_nets
from support.updates import EXACT, array, begin, first_update, moved, number, outputs

from netgraft.errors import UsageError
from netgraft.finetune.methods.at import attention_distance
from netgraft.finetune.protocol import FeaturePair
from netgraft.finetune.toolbox.adapters import adapter, check_places
from netgraft.finetune.toolbox.terms import match_size


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


# -------------------------------------------------------------------------------------------------------- features

PAIRS = "stem:body,body:body,last:last"  # the first 8x8 against 4x4


def halved(maps):
    """What bilinear resizing of even maps to half their size is: the mean of four neighbours."""
    b, c, h, w = maps.shape
    return maps.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))


def their_maps(there):
    return {"stem": halved(array(there.at["stem"]))} | {name: array(there.at[name]) for name in ("body", "last")}


def mapped(features, weight, bias):
    return np.einsum("bchw,dc->bdhw", array(features), array(weight)[:, :, 0, 0]) + array(bias)[None, :, None, None]


def fm(adapters, layers, here, theirs):
    """The sum over ``layers`` of mean squared distances."""
    return sum(
        ((mapped(here.at[b], adapt.weight, adapt.bias) - theirs(a, b)) ** 2).mean()
        for (a, b), adapt in zip(layers, adapters, strict=True)
    )


def test_fm(folder):
    running, update, here, there = begin(folder, "fm", pairs=PAIRS, set={"beta": 0.25})
    adapters, theirs = running.parts["adapters"].module, their_maps(there)
    layers = [("stem", "body"), ("body", "body"), ("last", "last")]
    expected = 0.25 * fm(adapters, layers, here, lambda a, _: theirs[a])
    assert number(update.losses["fm"]) == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("match", ["single", "one-to-one", "all"])
def test_fm_of_other_pairs(folder, match):
    names = ("stem", "body", "last")
    layers = {
        "single": [("last", "last")],
        "one-to-one": [(name, name) for name in names],
        "all": [(a, b) for b in names for a in names],
    }[match]
    given = {"pairs": "stem:stem,body:body,last:last", "set": {"beta": 1, "match": match}}
    running, update, here, there = begin(folder, "fm", **given)
    adapters = running.parts["adapters"].module
    expected = fm(adapters, layers, here, lambda a, b: array(match_size(there.at[a], here.at[b])))
    assert number(update.losses["fm"]) == pytest.approx(expected, **EXACT)


def test_hints_first_and_the_task_after(folder):
    """FitNets: the first epoch trains what is below the hint, the second everything on the task alone."""
    running = training(with_source(folder, method="fm", pairs="body:body", set={"hint_epochs": 1}))
    before = state_of(running.run.target_module)
    steps(running, 2)
    after = state_of(running.run.target_module)
    changed = {name for name in before if not torch.equal(before[name], after[name]) and "norm" not in name}
    assert changed - {"stem.bias"} == {"stem.weight", "body.weight", "body.bias"}  # that bias moves by rounding alone
    adapters = state_of(running.parts["adapters"].module)
    running.run.epoch = 1
    steps(running, 2, epoch=1)
    assert not torch.equal(before["head.weight"], running.run.target_module.head.weight)
    assert same(adapters, state_of(running.parts["adapters"].module))
    with pytest.raises(UsageError, match="no epoch for the second"):
        training(with_source(folder, method="fm", set={"hint_epochs": 2}))


def test_knowdist(folder):
    running, update, here, there = begin(folder, "knowdist", pairs=PAIRS, set={"beta": 2})
    theirs, adapters = their_maps(there), running.parts["adapters"].module
    expected = np.mean(
        [
            ((mapped(here.at[b], adapt.weight, adapt.bias) - theirs[a]) ** 2).mean()
            for (a, b), adapt in zip([("stem", "body"), ("body", "body"), ("last", "last")], adapters, strict=True)
        ]
    )
    assert number(update.losses["knowdist"]) == pytest.approx(2 * expected, **EXACT)


def test_knowdist_as_the_paper_weighs_it(folder):
    """Eq. 3: sums over the filters of all layers and over places, 1/n over the n images."""
    given = {"pairs": PAIRS, "set": {"beta": 0.01, "form": "paper"}}
    running, update, here, there = begin(folder, "knowdist", **given)
    theirs, adapters = their_maps(there), running.parts["adapters"].module
    total, images = 0.0, 16
    for (a, b), adapt in zip([("stem", "body"), ("body", "body"), ("last", "last")], adapters, strict=True):
        away = mapped(here.at[b], adapt.weight, adapt.bias) - theirs[a]
        assert len(away) == images
        for image in away:
            total += sum(np.linalg.norm(map_of_filter) ** 2 for map_of_filter in image)
    assert number(update.losses["knowdist"]) == pytest.approx(0.01 * total / images, **EXACT)


def test_knowdist_of_one_architecture_has_no_adapters(folder):
    given = {"source_arg": {"width": 6}, "source_weights": f"{folder}/init.safetensors", "pairs": "stem:stem,last:last"}
    running, update, here, _ = begin(folder, "knowdist", **given)
    assert set(running.parts) == {"target"}
    assert number(update.losses["knowdist"]) == 0  # the source is where the target starts
    moved(running)
    update = first_update(running)
    here, there = outputs(running)
    expected = np.mean([((array(here.at[n]) - array(there.at[n])) ** 2).mean() for n in ("stem", "last")])
    assert number(update.losses["knowdist"]) == pytest.approx(expected, **EXACT)


def attention_of(maps):  # [B, C, H, W]
    flat = (maps**2).sum(1).reshape(len(maps), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


@pytest.mark.parametrize(("form", "beta"), [("code", 1000), ("paper", 1)])
def test_at(folder, form, beta):
    _, update, here, there = begin(folder, "at", pairs="stem:stem,body:body,last:last", set={"form": form})
    expected = 0.0
    for name in ("stem", "body", "last"):
        difference = attention_of(array(there.at[name])) - attention_of(array(here.at[name]))
        if form == "code":
            expected += (difference**2).mean()
        else:
            expected += np.sqrt((difference**2).sum(1)).mean() / 2
    assert number(update.losses["at"]) == pytest.approx(beta * expected, **EXACT)


def test_attention_of_other_sizes_and_of_tokens():
    maps, small = torch.rand(3, 5, 8, 8), torch.rand(3, 4, 4, 4)
    resized = halved((array(maps) ** 2).sum(1, keepdims=True)).reshape(3, -1)
    resized = resized / np.linalg.norm(resized, axis=1, keepdims=True)
    expected = ((resized - attention_of(array(small))) ** 2).mean()
    assert float(attention_distance(maps, small, "code")) == pytest.approx(expected, **EXACT)
    tokens, other = torch.rand(3, 9, 5), torch.rand(3, 9, 7)
    as_maps = [t.transpose(1, 2).unsqueeze(2) for t in (tokens, other)]
    for form in ("code", "paper"):
        assert float(attention_distance(tokens, other, form)) == float(attention_distance(*as_maps, form))


@pytest.mark.parametrize("form", ["code", "paper"])
def test_attention_has_gradients_where_it_is_equal_or_zero(form):
    for source in (torch.rand(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)):
        target = source.clone().requires_grad_()
        attention_distance(source, target, form).backward()
        assert torch.equal(target.grad, torch.zeros_like(target))


# -------------------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("shape", [(4, 3, 3), (9, 4), (4,)])
def test_adapter_maps_channels_and_leaves_places(shape):
    found = adapter(shape, 5)(torch.randn(2, *shape))
    assert tuple(found.shape) == (2, *(5 if size == 4 else size for size in shape))


def test_maps_of_layers_with_channels_last(folder):
    """A linear layer on [B, H, W, C]: compared as [B, C, H, W]."""
    net = """
import torch
from torch import nn

class Last(nn.Module):
    input_size = (1, 8, 8)

    def __init__(self, width=6, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 2, stride=2)
        self.mix = nn.Linear(width, 2 * width)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        return self.head(self.mix(self.stem(x).permute(0, 2, 3, 1)).relu().mean((1, 2)))
"""
    (folder / "last.py").write_text(net)
    given = {
        "target": f"{folder}/last.py:Last",
        "target_arg": {},
        "init": None,
        "pairs": "body:mix",
        "samples_per_class": 2,
    }
    running, update, here, there = begin(folder, "fm", **given, set={"beta": 1})
    assert here.at["mix"].shape[1:] == (4, 4, 12)
    (adapt,) = running.parts["adapters"].module
    expected = fm(
        [adapt],
        [("body", "mix")],
        replace(here, at={"mix": here.at["mix"].permute(0, 3, 1, 2)}),
        lambda a, _: array(there.at[a]),
    )
    assert number(update.losses["fm"]) == pytest.approx(expected, **EXACT)
    for method in ("at", "knowdist"):
        steps(training(with_source(folder, method=method, **given)), 2)


def test_tokens_must_be_as_many():
    check_places(
        [
            FeaturePair("a", "b", (50, 8), (50, 9)),
            FeaturePair("a", "b", (8, 4, 4), (9, 7, 7)),
            FeaturePair("a", "b", (8,), (9,)),
        ]
    )
    with pytest.raises(UsageError, match="numbers of tokens"):
        check_places([FeaturePair("a", "b", (50, 8), (197, 8))])
