"""Every loss against formulas written down a second time, in NumPy and float64."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from runs import NET, same, state_of, steps, train, training, with_source, write_nets

from netgraft.checkpoint import file_sha256
from netgraft.errors import UsageError
from netgraft.finetune.adapters import adapter, check_places
from netgraft.finetune.gradients import Gradients
from netgraft.finetune.loader import to_device
from netgraft.finetune.methods.at import attention_distance
from netgraft.finetune.methods.kd import soft_divergence
from netgraft.finetune.parts import set_train_mode
from netgraft.finetune.protocol import Pair
from netgraft.finetune.terms import match_size
from netgraft.transfer import Side, transfer

EXACT = {"rel": 1e-6, "abs": 1e-9}
STILL = {"bn": "eval", "target_arg": {"drop": 0.0}}  # the same features in every pass


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def first_update(running, batch=None):
    """What the method yields for a batch, the first of the training if none is given."""
    batch = batch or to_device(next(running.prepared.loader.epoch(0)), running.run.device)
    set_train_mode(running.parts, bn=running.settings.bn)
    running.run.begin(batch)
    return next(running.prepared.method.epoch(running.run, iter([batch]), running.parts))


def outputs(running):
    """What the target and the source put out for that batch."""
    batch = next(running.prepared.loader.epoch(0))
    with torch.no_grad():
        return running.run.target(batch), running.run.source(batch)


def begin(folder, method, **more):
    """A training, its first update, and the outputs."""
    running = training(with_source(folder, method=method, **(STILL | more)))
    return running, first_update(running), *outputs(running)


def number(tensor):
    return float(tensor.detach())


def array(tensor):
    return tensor.detach().double().numpy()


# ---------------------------------------------------------------------------------------------------------- weights


def sums(folder, keep):
    """sum ||theta||^2 of the weights in the file that ``keep`` names."""
    weights = safetensors.torch.load_file(folder / "init.safetensors")
    return sum(float((array(w) ** 2).sum()) for name, w in weights.items() if keep(name, w))


def is_weight(name, tensor):
    return tensor.ndim > 1 and "running" not in name


def test_l2(folder):
    _, update, *_ = begin(folder, "l2", set={"alpha": 0.3})
    assert float(update.penalties["l2"].value) == pytest.approx(0.15 * sums(folder, is_weight), **EXACT)
    _, update, *_ = begin(folder, "l2", set={"alpha": 0.3, "scope": "all"})
    everything = sums(folder, lambda name, _: "running" not in name and "tracked" not in name)
    assert float(update.penalties["l2"].value) == pytest.approx(0.15 * everything, **EXACT)


def moved(running, size=0.1):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in running.run.target_module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def autograd_of(running, omega):
    """Gradients of ``omega(name, parameter)`` summed over all parameters, by autograd."""
    named = dict(running.run.target_module.named_parameters())
    return torch.autograd.grad(sum(omega(n, p) for n, p in named.items()), list(named.values()))


@pytest.mark.parametrize("scope", ["weights", "all"])
def test_l2_sp_and_its_gradient(folder, scope):
    """Penalty and gradient away from the start, against autograd on Eq. 2-3 with the start read from the file."""
    running = training(with_source(folder, method="l2-sp", set={"alpha": 0.3, "beta": 0.7, "scope": scope}, **STILL))
    moved(running)
    start = safetensors.torch.load_file(folder / "init.safetensors")

    def omega(name, p):
        if scope == "weights" and p.ndim == 1:
            return 0 * p.sum()
        return 0.35 * p.pow(2).sum() if name.startswith("head.") else 0.15 * (p - start[name]).pow(2).sum()

    expected = autograd_of(running, omega)
    value = sum(float(omega(n, p.detach())) for n, p in running.run.target_module.named_parameters())
    update = first_update(running)
    assert sum(float(p.value) for p in update.penalties.values()) == pytest.approx(value, **EXACT)
    assert not any(g.requires_grad for p in update.penalties.values() for g in p.gradients)
    parameters = list(running.run.target_module.parameters())
    Gradients(running.processes, running.prepared.rule)(replace(update, losses={}), parameters)
    for parameter, gradient in zip(parameters, expected, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, gradient, rtol=1e-6, atol=1e-7)


def test_l2_sp_across_architectures(folder):
    """theta_S is what the ledger took from the source: here the body of a wider net, resized, and not the head."""
    names = {}
    exec(NET, names)
    wide = folder / "seven.safetensors"
    safetensors.torch.save_file(names["Net"](8, num_classes=7).state_dict(), wide)
    source = Side(f"{folder}/net.py:Net", "source", args={"width": 8, "num_classes": 7}, weights=wide)
    planned = transfer(source, Side(f"{folder}/net.py:Net", "target"), folder / "grafted.safetensors")
    fates = planned.plan.fates
    assert fates["head.weight"] == "kept"
    assert fates["body.weight"] != "kept"
    chosen = with_source(folder, method="l2-sp", init=f"{folder}/grafted.safetensors", set={"alpha": 1}, **STILL)
    running = training(chosen)
    moved(running)
    start = safetensors.torch.load_file(folder / "grafted.safetensors")
    now = state_of(running.run.target_module)
    weights = [name for name, _ in running.run.target_module.named_parameters() if now[name].ndim > 1]
    anchored = [name for name in weights if fates[name] != "kept"]
    assert 0 < len(anchored) < len(weights)
    update = first_update(running)
    expected = sum(((array(now[n]) - array(start[n])) ** 2).sum() / 2 for n in anchored)
    assert float(update.penalties["sp"].value) == pytest.approx(expected, **EXACT)
    expected = sum(0.005 * (array(now[n]) ** 2).sum() for n in weights if n not in anchored)
    assert float(update.penalties["new"].value) == pytest.approx(expected, **EXACT)


def test_dtnh_is_l2_sp_with_its_rule(folder):
    chosen = with_source(folder, method="dtnh", lam=3.0, set={"alpha": 1.0})
    _, short = train(chosen)
    _, long = train(replace(chosen, method="l2-sp", combine="dtnh", out=str(folder / "long")))
    _, without = train(replace(chosen, method="l2-sp", out=str(folder / "without")))
    assert same(short, long)
    assert not same(short, without)


# ---------------------------------------------------------------------------------------------------- predictions


def test_kd(folder):
    _, update, here, there = begin(folder, "kd", set={"alpha": 0.8, "temperature": 3})
    p, q = (np.exp(array(z.logits) / 3) for z in (there, here))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    expected = 9 * (p * np.log(p / q)).sum(1).mean()
    assert number(update.losses["kd"]) == pytest.approx(4 * expected, abs=1e-6)
    exact = soft_divergence(here.logits.double(), there.logits.double(), 3.0)
    assert float(exact) == pytest.approx(expected, rel=1e-12)


def test_kd_at_high_temperature_compares_logits():
    """For T -> infinity, K T^2 KL is half the squared distance of logits of mean 0 (Hinton et al., section 2.1)."""
    one, other = (z - z.mean(1, keepdim=True) for z in torch.randn(2, 5, 7, dtype=torch.float64))
    expected = (one - other).square().sum(1).mean() / 2
    assert float(7 * soft_divergence(one, other, 1e4)) == pytest.approx(float(expected), rel=1e-3)


def test_kd_refuses_other_classes(folder):
    """Before anything is written."""
    (folder / "seven.safetensors").write_bytes((folder / "theirs.safetensors").read_bytes())
    names = {}
    exec(NET, names)
    safetensors.torch.save_file(names["Net"](8, num_classes=7).state_dict(), folder / "seven.safetensors")
    given = {"source_arg": {"width": 8, "num_classes": 7}, "source_weights": f"{folder}/seven.safetensors"}
    with pytest.raises(UsageError, match=r"compares classes.*has 7, the data 10"):
        train(with_source(folder, method="kd", **given))
    assert not (folder / "run").exists()


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
    assert changed == {"stem.weight", "stem.bias", "body.weight", "body.bias"}
    adapters = state_of(running.parts["adapters"].module)
    running.run.epoch = 1
    steps(running, 2, epoch=1)
    assert not torch.equal(before["head.weight"], running.run.target_module.head.weight)
    assert same(adapters, state_of(running.parts["adapters"].module))
    with pytest.raises(UsageError, match="leave none"):
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


def test_losses_do_not_depend_on_the_batch_size(folder):
    """Of twice the same images as of the images once."""
    for method, name in (("kd", "kd"), ("fm", "fm"), ("at", "at"), ("knowdist", "knowdist")):
        running, update, *_ = begin(folder, method)
        batch = next(running.prepared.loader.epoch(0))
        twice = replace(batch, x=batch.x.repeat(2, 1, 1, 1), y=batch.y.repeat(2), ids=batch.ids.repeat(2))
        again = first_update(running, twice)
        assert number(again.losses[name]) == pytest.approx(number(update.losses[name]), rel=1e-5)


@pytest.mark.parametrize("method", ["l2", "l2-sp", "kd", "fm", "at", "knowdist"])
def test_dtnh_on_each(method, folder):
    """In conflict the task's loss falls as if there were no regulariser: <d, g> = |g|^2."""
    running, update, *_ = begin(folder, method, combine="dtnh", lam=100.0)
    history = []
    for _ in range(2):
        parameters = [p for name in update.parts for p in running.parameters[name]]
        g = torch.autograd.grad(update.losses["task"], parameters, retain_graph=True, allow_unused=True)
        history.append(Gradients(running.processes, running.prepared.rule)(update, parameters).telemetry)
        dot = sum(float((p.grad * a).sum()) for p, a in zip(parameters, g, strict=True) if a is not None)
        norm = sum(float((a * a).sum()) for a in g if a is not None)
        assert dot >= norm * (1 - 1e-3)
        moved(running, 0.3)
        update = first_update(running)
    assert all("obtuse" in record for record in history)


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
    check_places([Pair("a", "b", (50, 8), (50, 9)), Pair("a", "b", (8, 4, 4), (9, 7, 7)), Pair("a", "b", (8,), (9,))])
    with pytest.raises(UsageError, match="numbers of tokens"):
        check_places([Pair("a", "b", (50, 8), (197, 8))])


def test_source_is_as_it_was(folder):
    before = file_sha256(folder / "theirs.safetensors")
    train(with_source(folder, method="fm"))
    assert file_sha256(folder / "theirs.safetensors") == before
