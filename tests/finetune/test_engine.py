"""The engine keeps what the protocol promises to methods."""

# ruff: noqa: ARG001, ARG005 - methods here take what every method takes

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import safetensors.torch
import torch
from support.runs import same, settings, state_of, steps, train, training, with_source, write_nets, written_net
from torch import nn
from torch.nn import functional as F

from netgraft.errors import OutputError, UnknownName, UsageError
from netgraft.files.checkpoint import file_sha256, read_provenance
from netgraft.finetune.engine.diverged import Diverged
from netgraft.finetune.engine.prepare import prepare
from netgraft.finetune.protocol import Need, Part, Update
from netgraft.finetune.toolbox.terms import l2_penalty, squared_distance


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


@dataclass(frozen=True)
class Own:
    """A method made of two functions."""

    do: object
    more: object = None
    needs: ClassVar[frozenset] = frozenset()

    def parts(self, run):
        return {"target": Part(run.target_module)} | (self.more(run) if self.more else {})

    def epoch(self, run, batches, parts):
        for batch in batches:
            yield from self.do(run, batch, parts)


def plain(run, batch, parts):
    yield Update(("target",), {"task": run.task(run.target(batch), batch)})


def own(folder, do, more=None, **given):
    return training(settings(folder, **given), Own(do, more))


def paired(folder, do, more=None, **given):
    """With a source, and pairs whatever the method needs."""
    pairs = "stem:stem,body:body,last:last"
    return training(with_source(folder, pairs=pairs, **given), Own(do, more))


# ------------------------------------------------------------------------------------------------------------ plain


def test_plain_is_what_torch_does(folder):
    """Ten steps against a loop written with nothing of the engine but its batches."""
    running = own(folder, plain, sched="none", weight_decay=0.01)
    net = training(settings(folder)).run.target_module
    net.train()
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.01}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    random = torch.get_rng_state()
    steps(running, 5)
    torch.set_rng_state(random)
    for batch in list(running.prepared.loader.epoch(0))[:5]:
        optimizer.zero_grad()
        F.cross_entropy(net(batch.x), batch.y).backward()
        optimizer.step()
    mine, theirs = state_of(running.run.target_module), state_of(net)
    for key in mine:
        torch.testing.assert_close(mine[key], theirs[key], rtol=1e-4, atol=1e-6)


def test_it_learns(folder):
    result, _ = train(settings(folder, samples_per_class=60, epochs=12, target_arg={"drop": 0.0}))
    assert result.best["eval_top1"] > 75
    assert result.history[-1]["train_task"] < result.history[0]["train_task"] / 2


# ------------------------------------------------------------------------------------------------------- passes


def test_only_the_first_pass_updates_statistics(folder):
    def many(run, batch, parts):
        here = run.target(batch)
        for other in (batch, batch.x, batch.source, torch.randn_like(batch.x)):
            run.target(other)
        run.target(batch, params={"head.bias": torch.zeros(10)})
        yield from ()
        yield Update(("target",), {"task": run.task(here, batch)})

    one, other = (own(folder, do, target_arg={"drop": 0.0}) for do in (plain, many))
    for running in (one, other):
        running.prepared.loader.others = {"source": running.prepared.loader.target}
        steps(running, 3)
    assert same(state_of(one.run.target_module), state_of(other.run.target_module))


def test_statistics_by_wish(folder):
    def probe(run, batch, parts):
        before = state_of(run.target_module)
        run.target(batch, stats=False)
        assert same(before, state_of(run.target_module))
        run.target(batch, params=dict(run.target_module.named_parameters()), stats=True)
        assert not same(before, state_of(run.target_module))
        yield from ()

    steps(own(folder, probe), 1)


def test_functional_pass_differentiates_twice(folder):
    """grad of |theta' - 0| through an inner step against finite differences of the step's size."""
    found = {}

    def inner(run, batch, parts):
        parameters = dict(run.target_module.named_parameters())
        rate = torch.tensor(0.1, requires_grad=True)
        loss = run.task(run.target(batch), batch)
        grads = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)

        def outer(rate):
            moved = {n: p - rate * g for (n, p), g in zip(parameters.items(), grads, strict=True)}
            return run.task(run.target(batch, params=moved), batch)

        (found["exact"],) = torch.autograd.grad(outer(rate), rate, retain_graph=True)
        with torch.no_grad():
            found["near"] = (outer(rate + 1e-2) - outer(rate - 1e-2)) / 2e-2
        yield from ()

    steps(own(folder, inner, bn="eval", target_arg={"drop": 0.0}), 1)
    torch.testing.assert_close(found["exact"], found["near"], rtol=2e-2, atol=1e-4)


def test_source_runs_once_and_stops_early(folder):
    calls = []

    def many(run, batch, parts):
        for name in ("stem", "last", "head"):
            run.source_module.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
        first = run.source(batch, logits=False)
        assert first.logits.shape == (16, 0)
        assert run.source(batch, logits=False) is first
        assert calls == ["stem", "last"]
        assert run.source(batch).logits.shape == (16, 10)
        assert run.source(batch, logits=False).logits.shape == (16, 10)
        assert calls == ["stem", "last", "stem", "last", "head"]
        assert not run.source(batch).logits.requires_grad
        yield Update(("target",), {"task": run.task(run.target(batch), batch)})

    steps(paired(folder, many, samples_per_class=2), 1)


def test_taps_are_the_layers_outputs(folder):
    def look(run, batch, parts):
        net = run.target_module
        seen = run.target(batch, stats=False)
        torch.testing.assert_close(seen.at["stem"], net.stem(batch.x))
        body = F.conv2d(F.relu(net.stem_norm(net.stem(batch.x))), net.body.weight, net.body.bias, stride=2, padding=1)
        torch.testing.assert_close(seen.at["body"], body)
        there = run.source(batch)
        torch.testing.assert_close(there.at["stem"], run.source_module.stem(batch.x))
        assert [(p.source_shape, p.target_shape) for p in run.pairs] == [
            ((8, 8, 8), (6, 8, 8)),
            ((16, 4, 4), (12, 4, 4)),
            ((16, 4, 4), (12, 4, 4)),
        ]
        yield from ()

    steps(paired(folder, look), 1)


def test_autocast_gives_float32(folder):
    def look(run, batch, parts):
        seen, there = run.target(batch), run.source(batch)
        kinds = {t.dtype for s in (seen, there) for t in (s.logits, *s.at.values())}
        assert kinds == {torch.float32}
        assert not torch.equal(seen.at["stem"], run.target_module.stem(batch.x))  # it did run in bfloat16
        yield Update(("target",), {"task": run.task(seen, batch)})

    steps(paired(folder, look, amp=True), 2)


# ------------------------------------------------------------------------------------------------ parts and updates


def adapters(run):
    return {
        "adapter": Part(nn.Conv2d(6, 8, 1), lr=0.1, opt="adam", weight_decay=0.0, options={"betas": (0.5, 0.9)}),
        "judge": Part(nn.Linear(8, 1)),
    }


def test_updates_step_what_they_name(folder):
    moved = []

    def game(run, batch, parts):
        def snapshot():
            return {name: state_of(part.module) for name, part in parts.items()}

        def note(before):
            after = snapshot()
            moved.append({name for name in parts if not same(before[name], after[name])})

        here, there = run.target(batch), run.source(batch, logits=False)
        fake = parts["adapter"].module(here.at["stem"])
        judge = parts["judge"].module
        before = snapshot()
        yield Update(("judge",), {"judge": judge(fake.detach().mean((2, 3))).mean()})
        note(before)
        before = snapshot()
        yield Update(
            ("target", "adapter"),
            {
                "task": run.task(here, batch),
                "fm": squared_distance(fake, there.at["stem"]),
                "fool": -judge(fake.mean((2, 3))).mean(),
            },
        )
        note(before)
        before = snapshot()
        yield Update(("adapter",), {"again": parts["adapter"].module(here.at["stem"].detach()).square().mean()})
        note(before)

    running = paired(folder, game, adapters)
    steps(running, 3)
    assert moved[0] == {"judge"}
    assert moved[1] == {"target", "adapter"}
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in running.run.optimizers.items()}
    assert rates == {"target": 0.05, "adapter": 0.1, "judge": 0.05}
    assert running.run.optimizers["adapter"].param_groups[0]["betas"] == (0.5, 0.9)


def test_snapshot_brings_back_everything(folder):
    def probe(run, batch, parts):
        yield Update(("target",), {"task": run.task(run.target(batch), batch)})
        saved = run.snapshot("target")
        before, momentum = state_of(run.target_module), momenta(run)
        for _ in range(3):
            yield Update(("target",), {"task": run.task(run.target(batch, stats=True), batch)})
        assert not same(before, state_of(run.target_module))
        assert not same(momentum, momenta(run))
        run.restore(saved)
        assert same(before, state_of(run.target_module))
        assert same(momentum, momenta(run))

    def momenta(run):
        state = run.optimizer("target").state
        return {str(i): s["momentum_buffer"].clone() for i, s in enumerate(state.values())}

    steps(own(folder, probe), 20)


def test_parts_draw_no_random_numbers_of_the_training(folder):
    def waste(run):
        torch.randn(17)
        return {"more": Part(nn.Linear(3, 3))}

    one, other = own(folder, plain), own(folder, plain, waste)
    results = []
    for running in (one, other):
        torch.manual_seed(5)
        from netgraft.finetune.engine.state import random_modules

        random_modules(running.modules, running.run)
        steps(running, 3)
        results.append(state_of(running.run.target_module))
    assert same(*results)


def test_a_part_with_buffers_only(folder):
    def centre(run):
        module = nn.Module()
        module.register_buffer("mean", torch.zeros(10))
        return {"centre": Part(module)}

    def track(run, batch, parts):
        seen = run.target(batch)
        with torch.no_grad():
            parts["centre"].module.mean.lerp_(seen.logits.mean(0), 0.1)
        yield Update(("target", "centre"), {"task": run.task(seen, batch)})

    running = own(folder, track, centre)
    steps(running, 2)
    assert running.modules["centre"].mean.abs().sum() > 0
    assert set(running.run.optimizers) == {"target"}


@pytest.mark.parametrize(
    "more",
    [lambda run: {"target": Part(nn.Linear(2, 2))}, lambda run: {"twice": Part(run.target_module.head)}],
    ids=["no target", "shared"],
)
def test_wrong_parts_are_refused(folder, more):
    with pytest.raises(UsageError, match="part"):
        own(folder, plain, more)


def test_frozen_trains_the_head_alone(folder):
    before = safetensors.torch.load_file(folder / "init.safetensors")
    _, after = train(settings(folder, method="frozen"))
    assert {key for key in after if not torch.equal(before[key], after[key])} == {"head.weight", "head.bias"}


def test_lambda_and_its_decay(folder):
    seen = []

    def pull(run, batch, parts):
        parameters = list(run.target_module.parameters())
        yield Update(("target",), {"task": run.task(run.target(batch), batch)}, {"sp": l2_penalty(parameters, 1.0)})
        seen.append(run.epoch)

    running = own(folder, pull, lam=0.5, lam_decay=0.1, epochs=3)
    (folder / "run").mkdir()
    history = running.all().history
    assert [record["lambda"] for record in history] == pytest.approx([0.5, 0.05, 0.005])
    assert all("train_sp" in record for record in history)


# ------------------------------------------------------------------------------------------------------ the folder


def test_folder(folder):
    chosen = settings(folder, epochs=3)
    result, last = train(chosen)
    out = folder / "run"
    names = {path.name for path in out.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "metrics.csv", "best.safetensors", "last.safetensors", "state.pt"}
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert records == result.history
    assert [record["epoch"] for record in records] == [0, 1, 2]
    assert len((out / "metrics.csv").read_text().splitlines()) == 4
    best = max(records, key=lambda record: record["eval_top1"])
    told = read_provenance(out / "best.safetensors")["finetune"]
    assert told["metrics"]["eval_top1"] == best["eval_top1"]
    assert told["init"]["sha256"] == file_sha256(folder / "init.safetensors")
    assert told["data"]["train"]["samples_per_class"] == 8
    assert (told["method"], told["combine"]) == ("plain", "total")
    names = {}
    exec((folder / "net.py").read_text(), names)
    assert not names["Net"]().load_state_dict(last, strict=True).missing_keys


def test_evaluation_is_right(folder):
    """The logged accuracy is that of the written file, computed here from scratch."""
    result, last = train(settings(folder, epochs=1))
    net = written_net(folder, last)
    from netgraft.data.opening import load_data

    data = load_data("netgraft:digits", size=(1, 8, 8), mean=(0.5,), std=(0.5,), split="test")
    with torch.no_grad():
        logits = net.eval()(data.images)
    record = result.history[-1]
    assert record["eval_top1"] == pytest.approx(100 * float((logits.argmax(1) == data.labels).float().mean()), abs=1e-3)
    assert record["eval_loss"] == pytest.approx(float(F.cross_entropy(logits, data.labels)), rel=1e-5)


def test_evaluated_now_and_then(folder):
    """Every second epoch and the last; the training is the same."""
    always, weights = train(settings(folder, epochs=5, out=f"{folder}/always"))
    seldom, same_weights = train(settings(folder, epochs=5, val_interval=2, out=f"{folder}/seldom"))
    assert [record["epoch"] for record in seldom.history if "eval_top1" in record] == [1, 3, 4]
    for one, other in zip(always.history, seldom.history, strict=True):
        one, other = ({k: v for k, v in r.items() if k != "images_per_second"} for r in (one, other))
        assert other.items() <= one.items()
    assert same(weights, same_weights)
    shown = [record for record in always.history if record["epoch"] in (1, 3, 4)]
    assert seldom.best["eval_top1"] == max(record["eval_top1"] for record in shown)


def test_there_is_a_run_already(folder):
    chosen = settings(folder, epochs=1)
    train(chosen)
    before = (folder / "run" / "last.safetensors").read_bytes()
    with pytest.raises(OutputError, match="There is a training") as caught:
        train(chosen)
    assert "--resume auto" in caught.value.hint
    train(chosen, force=True)
    assert (folder / "run" / "last.safetensors").read_bytes() == before


def test_divergence_stops(folder):
    def explode(run, batch, parts):
        loss = run.task(run.target(batch), batch)
        yield Update(("target",), {"task": loss * (float("nan") if run.step == 6 else 1)})

    running = own(folder, explode)
    (folder / "run").mkdir()
    with pytest.raises(Diverged, match="not finite") as caught:
        running.all()
    assert "step 6: task" in caught.value.where
    assert "state.pt (epoch 1, batch 0)" in caught.value.hint
    assert all(t.isfinite().all() for t in safetensors.torch.load_file(folder / "run" / "last.safetensors").values())


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"method": "plian"}, UnknownName, "plain"),
        ({"method": "frozen", "init": None}, UsageError, "--init FILE"),
        ({"combine": "dthn"}, UnknownName, "dtnh"),
        ({"target_arg": {"num_classes": 7}, "init": None}, UsageError, "num_classes=10"),
        ({"data": "netgraft:digit"}, UnknownName, "netgraft:digits"),
        ({"pairs": "a-b"}, UsageError, "SOURCE:TARGET"),
        ({"pairs": "stem:stm"}, UnknownName, "stem"),
        ({"pairs": "stem:head"}, UsageError, "compared"),
        ({"opt": "sgdd"}, UsageError, "sgdd"),
        ({"sched": "cosin"}, UsageError, "cosin"),
        ({"cache": "somewhere", "aug": True}, UsageError, "--views"),
        ({"device": "cuda:99"}, UsageError, "cpu"),
        ({"mean": (0.5,)}, UsageError, "--std"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_refused_before_anything_is_written(folder, given, error, words):
    with pytest.raises(error) as caught:
        train(with_source(folder, **given))
    assert words in str(caught.value)
    assert not (folder / "run").exists()


def test_needs_are_all_named(folder):
    from netgraft.finetune.needs import check_needs
    from netgraft.plugins import Description

    needs = ", ".join(f"Need.{need.name}" for need in Need)
    method = Description("everything", "", (), {"needs": f"frozenset({{{needs}}})"})
    with pytest.raises(UsageError) as caught:
        check_needs(settings(folder, init=None), method)
    for words in ("--init FILE", "--source REF", "--source-data NAME", "--unlabelled NAME"):
        assert words in caught.value.hint
    check_needs(replace(with_source(folder)), method)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_source_gives_the_same(folder, monkeypatch, backend):
    """``--compile-source``: Dynamo sees the hooks, and the source's features and logits stay what they were."""
    compiled = []

    def compile(module):
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend=backend)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    torch._dynamo.reset()
    runs = [prepare(with_source(folder, method="at", compile_source=wanted)).run for wanted in (False, True)]
    assert compiled == [runs[1].source_module]
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    for logits in (True, False, True):  # twice the same, whatever was kept from the pass before
        plain, fast = (run.source(images, logits=logits) for run in runs)
        assert fast.logits.shape[1] == 10  # it cannot stop early
        assert fast.at.keys() == plain.at.keys() != set()
        torch.testing.assert_close([*fast.at.values()], [*plain.at.values()], rtol=1e-5, atol=1e-5)
        if logits:
            torch.testing.assert_close(fast.logits, plain.logits, rtol=1e-5, atol=1e-5)
        images = images * 1.5


def test_tensorboard_shows_the_metrics(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result, _ = train(settings(folder, tensorboard=True))
    events = EventAccumulator(str(result.folder / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    shown = [event.value for event in events.Scalars("eval/top1")]
    assert len(shown) == len(lines) == 2
    assert shown == pytest.approx([line["eval_top1"] for line in lines])
