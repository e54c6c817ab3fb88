"""Losses of weights and predictions against formulas written down a second time; DTNH on every method."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from support.runs import NET, same, state_of, train, training, with_source, write_nets
from support.updates import EXACT, STILL, array, begin, first_update, moved, number

from netgraft.errors import UsageError
from netgraft.files.checkpoint import file_sha256, read_provenance
from netgraft.finetune.engine.gradients import Gradients, scaled
from netgraft.finetune.methods.kd import soft_divergence
from netgraft.models.side import Side
from netgraft.planning import TransferRequest
from netgraft.transfer import transfer


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


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
    planned = transfer(
        TransferRequest(source, Side(f"{folder}/net.py:Net", "target"), folder / "grafted.safetensors", recipe="hmt")
    )
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


def test_scope_of_dtnh_is_what_the_settings_say(folder):
    """The directions of one update: each scope's own, computed from g and r of the same weights."""
    found = {}
    for scope in ("all", "shared", "per-tensor"):
        running = training(with_source(folder, method="dtnh", dtnh_scope=scope, set={"alpha": 3.0}, **STILL))
        named = dict(running.run.target_module.named_parameters())
        away = torch.autograd.grad(first_update(running).losses["task"], list(named.values()))
        with torch.no_grad():
            torch._foreach_sub_(list(named.values()), away, alpha=0.5)  # so that the way back is against the task
        update = first_update(running)
        task = torch.autograd.grad(update.losses["task"], list(named.values()), retain_graph=True)
        g = dict(zip(named, task, strict=True))
        r = {}
        for penalty in update.penalties.values():
            r |= {n: x.clone() for n, p in named.items() for q, x in zip(*penalty[1:], strict=True) if q is p}
        assert 0 < len(r) < len(g)
        performed = Gradients(running.processes, running.prepared.rule)(update, list(named.values()))
        found[scope] = {n: p.grad.clone() for n, p in named.items()}, float(performed.telemetry["obtuse"])
        gr, gg = ({n: float((g[n] * x).sum()) for n, x in v.items()} for v in (r, g))
        shared = sum(gr.values()) / sum(gg[n] for n in r)
        whole = sum(gr.values()) / sum(gg.values())
        assert shared < 0
        less = {
            "all": dict.fromkeys(g, whole),
            "shared": dict.fromkeys(r, shared),
            "per-tensor": {n: min(gr[n] / gg[n], 0) for n in r},
        }[scope]
        for n in named:
            expected = g[n] * (1 - less.get(n, 0.0)) + r.get(n, 0.0)
            assert (found[scope][0][n] - expected).norm() <= 1e-5 * expected.norm()
    assert found["all"][1] == found["shared"][1] == 1
    assert 0 < found["per-tensor"][1] <= 1


def test_scope_is_in_the_provenance(folder):
    _, whole = train(with_source(folder, method="dtnh", lam=30.0, set={"alpha": 1.0}, epochs=1))
    shared = with_source(folder, method="dtnh", lam=30.0, set={"alpha": 1.0}, epochs=1, dtnh_scope="shared")
    _, other = train(replace(shared, out=str(folder / "shared")))
    assert not same(whole, other)
    told = [read_provenance(folder / out / "last.safetensors")["finetune"] for out in ("run", "shared")]
    assert [one.get("dtnh_scope") for one in told] == [None, "shared"]


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


# --------------------------------------------------------------------------------------------------- all of them


def test_losses_do_not_depend_on_the_batch_size(folder):
    """Of twice the same images as of the images once."""
    names = ("kd", "fm", "at", "knowdist", "lwf", "fsp", "jacobian", "delta")
    for name in names:
        options = {"warmup_epochs": 0} if name == "lwf" else {}
        running, update, *_ = begin(folder, name, set=options)
        batch = next(running.prepared.loader.epoch(0))
        twice = replace(batch, x=batch.x.repeat(2, 1, 1, 1), y=batch.y.repeat(2), ids=batch.ids.repeat(2))
        again = first_update(running, twice)
        assert number(again.losses[name]) == pytest.approx(number(update.losses[name]), rel=1e-5)


def flat(gradients, parameters):
    pieces = (torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True))
    return torch.cat([piece.flatten().double() for piece in pieces])


def of_regularisers(update, parameters):
    """The gradient of all losses but the task's, and of the penalties as they state it, as one vector."""
    rest = [loss for name, loss in update.losses.items() if name != "task"]
    none = [None] * len(parameters)
    found = torch.autograd.grad(sum(rest), parameters, retain_graph=True, allow_unused=True) if rest else none
    whole = flat(found, parameters)
    for penalty in update.penalties.values():
        known = {id(p): g for p, g in zip(penalty.parameters, penalty.gradients, strict=True)}
        whole += flat([known.get(id(p)) for p in parameters], parameters)
    return whole


ON_EACH = (
    *("l2", "l2-sp", "l1-sp", "group-lasso-sp", "l2-sp-fisher", "ewc"),
    *("kd", "fm", "at", "knowdist", "lwf", "fsp", "jacobian", "delta"),
)


@pytest.mark.parametrize("method", ON_EACH)
def test_dtnh_on_each(method, folder):
    """In conflict d = g + r - <g, r> / |g|^2 g, so that <d, g> = |g|^2; else g + r.

    r is five times as long as g. Steps on the task alone leave what every regulariser but AT's wants, and so lead to
    conflict; AT's wants something else at first.
    """
    options = {"warmup_epochs": 0} if method == "lwf" else {}
    running = training(with_source(folder, method=method, combine="dtnh", set=options, **STILL))
    running.prepare()
    conflicts = []
    for _ in range(9):
        update = first_update(running)
        parameters = [p for name in update.parts for p in running.parameters[name]]
        task = torch.autograd.grad(update.losses["task"], parameters, retain_graph=True, allow_unused=True)
        g, r = flat(task, parameters), of_regularisers(update, parameters)
        lam = 5 * float(g.norm() / r.norm().clamp(min=1e-12))  # EWC's is 0 at the start
        r = lam * r
        conflict = float(g @ r) < 0
        expected = g + r - (g @ r) / (g @ g) * g if conflict else g + r
        told = Gradients(running.processes, running.prepared.rule)(scaled(update, lam), parameters).telemetry
        d = flat([p.grad for p in parameters], parameters)
        assert float((d - expected).norm() / expected.norm()) < 1e-4
        if abs(float(torch.cosine_similarity(g, r, 0))) > 1e-4:  # at right angles float32 may see the other side
            assert float(told["obtuse"]) == conflict
        if conflict:
            assert float(d @ g / (g @ g)) == pytest.approx(1, abs=2e-3)
            conflicts.append(1 - float((g + r) @ g / (g @ g)))  # how much the task would fall less without the rule
        with torch.no_grad():
            for p, piece in zip(parameters, task, strict=True):
                if piece is not None:
                    p.sub_(piece, alpha=0.5)
    assert max(conflicts) > 0.05


def test_source_is_as_it_was(folder):
    before = file_sha256(folder / "theirs.safetensors")
    train(with_source(folder, method="fm"))
    assert file_sha256(folder / "theirs.safetensors") == before
