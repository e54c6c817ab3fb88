"""What the options of a training do, against their formulas: rates, smoothing, clipping, mirroring, top-5 accuracy."""

import math

import numpy as np
import pytest
import safetensors.torch
import torch
from support.runs import Killed, Killer, same, settings, state_of, steps, train, training, write_nets, written_net
from torch.nn import functional as F

from netgraft.data.opening import load_data
from netgraft.errors import UsageError
from netgraft.finetune.protocol import Part, Update

BATCHES = 5  # of an epoch: 80 images, 16 a batch


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


class Watching:
    """Plain fine-tuning; ``rates`` are the learning rates of the steps, ``before`` the network's state before each."""

    needs = frozenset()

    def __init__(self):
        self.rates, self.before = [], []

    def parts(self, run):
        return {"target": Part(run.target_module)}

    def epoch(self, run, batches, parts):  # noqa: ARG002
        for batch in batches:
            self.rates.append(run.optimizer("target").param_groups[0]["lr"])
            self.before.append(state_of(run.target_module))
            yield Update(("target",), {"task": run.task(run.target(batch), batch)})


def watched(folder, **given):
    """A whole training, and what was seen of it."""
    method = Watching()
    running = training(settings(folder, **given), method)
    (folder / "run").mkdir()
    return running, method, running.all()


# ------------------------------------------------------------------------------------------------------ learning rates


def cosine(step, steps, lr, least):
    return least + (lr - least) * (1 + math.cos(math.pi * step / steps)) / 2


def test_cosine_ends_with_the_training(folder):
    """Half a wave over all steps: the rate is the smallest one step after the last."""
    _, seen, _ = watched(folder, epochs=4, lr=0.08, min_lr=0.01)
    expected = [cosine(step, 4 * BATCHES, 0.08, 0.01) for step in range(4 * BATCHES)]
    assert seen.rates == pytest.approx(expected, rel=1e-9)


def test_warm_up_rises_in_a_line(folder):
    """From timm's 1e-5 to the rate in as many epochs; the cosine runs on below it and takes over where it has got."""
    _, seen, _ = watched(folder, epochs=4, lr=0.08, warmup_epochs=2)
    warm = 2 * BATCHES
    rising = [1e-5 + (0.08 - 1e-5) * step / warm for step in range(warm)]
    falling = [cosine(step, 4 * BATCHES, 0.08, 0.0) for step in range(warm, 4 * BATCHES)]
    assert seen.rates == pytest.approx(rising + falling, rel=1e-9)


def test_steps_down_after_so_many_epochs(folder):
    _, seen, _ = watched(folder, epochs=3, lr=0.08, sched="step", decay_epochs=1, decay_rate=0.5)
    expected = [0.08 * 0.5 ** (step // BATCHES) for step in range(3 * BATCHES)]
    assert seen.rates == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("warmup", [0, 1])
def test_milestones(folder, warmup):
    """Against PyTorch's MultiStepLR, stepped after every epoch; during the warm-up timm's line."""
    given = {"epochs": 4, "lr": 0.08, "sched": "multistep", "milestones": (1, 3), "decay_rate": 0.5}
    _, seen, _ = watched(folder, **given, warmup_epochs=warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.08)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], gamma=0.5)
    expected = []
    for _ in range(4):
        expected += [optimizer.param_groups[0]["lr"]] * BATCHES
        optimizer.step()
        schedule.step()
    for step in range(warmup * BATCHES):
        expected[step] = 1e-5 + (0.08 - 1e-5) * step / (warmup * BATCHES)
    assert seen.rates == pytest.approx(expected, rel=1e-9)


def test_milestones_of_a_resumed_training(folder):
    """Killed in the epoch after the first milestone: the state is that of the step before, and the end is the same."""
    given = {"epochs": 3, "sched": "multistep", "milestones": (1, 2), "decay_rate": 0.1, "recovery_interval": 1}
    whole, weights = train(settings(folder, **given, out=f"{folder}/whole"))
    with pytest.raises(Killed):
        train(settings(folder, **given), watch=Killer(BATCHES + 2))
    result, resumed = train(settings(folder, **given), resume=True)
    assert same(weights, resumed)
    rates = [[record["lr"] for record in each.history] for each in (whole, result)]
    assert rates[0] == rates[1] == pytest.approx([0.05, 0.005, 0.0005])


@pytest.mark.parametrize(
    "given",
    [
        {"milestones": (1,)},
        {"sched": "multistep"},
        {"sched": "multistep", "milestones": (3, 2)},
        {"sched": "multistep", "milestones": (0, 2)},
        {"sched": "multistep", "milestones": ()},
        {"sched": "multistep", "milestones": (2, 5)},
    ],
    ids=str,
)
def test_wrong_milestones_are_refused(folder, given):
    with pytest.raises(UsageError, match="ilestone"):
        settings(folder, epochs=5, **given)


# ----------------------------------------------------------------------------------------------------------- the loss


def test_label_smoothing(folder):
    """Cross-entropy with 1 - s + s / K for the label and s / K for the K - 1 others."""
    run = training(settings(folder, smoothing=0.3)).run
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 3, 9, 9, 1, 5])
    goal = np.full((6, 10), 0.3 / 10)
    goal[np.arange(6), labels] += 0.7
    log_p = logits.numpy() - np.log(np.exp(logits.numpy()).sum(1, keepdims=True))
    expected = -(goal * log_p).sum(1).mean()
    plain = float(F.cross_entropy(logits, labels))
    assert abs(expected - plain) > 0.1
    seen, batch = type("Seen", (), {"logits": logits})(), type("Batch", (), {"y": labels})()
    assert float(run.task(seen, batch)) == pytest.approx(expected, rel=1e-9)


# ------------------------------------------------------------------------------------------------------------ the step

BARE = {"opt": "momentum", "momentum": 0.0, "weight_decay": 0.0, "lr": 0.1, "target_arg": {"drop": 0.0}}


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_clipping_scales_the_whole_direction(folder, share):
    """A bare step of -lr g min(1, c / |g|), with c a share of the gradient's own length."""
    running = training(settings(folder, **BARE))
    net = running.run.target_module
    net.train()
    batch = next(running.prepared.loader.epoch(0))
    named = dict(net.named_parameters())
    gradient = torch.autograd.grad(F.cross_entropy(net(batch.x), batch.y), list(named.values()))
    length = math.sqrt(sum(float(g.double().square().sum()) for g in gradient))
    clipped = training(settings(folder, clip_grad=share * length, **BARE))
    before = state_of(clipped.run.target_module)
    steps(clipped, 1)
    after = state_of(clipped.run.target_module)
    moved = 0.0
    for name, g in zip(named, gradient, strict=True):
        torch.testing.assert_close(after[name] - before[name], -0.1 * min(1, share) * g, rtol=1e-3, atol=1e-6)
        moved += float((after[name] - before[name]).double().square().sum())
    assert math.sqrt(moved) == pytest.approx(0.1 * min(1, share) * length, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------- the images

STILL = {"aug": True, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "color_jitter": 0.0, "vflip": 0.0}


def images(folder, **given):
    """What the first epoch shows of each image, by the image's number."""
    shown = {}
    for batch in training(settings(folder, **(STILL | given))).prepared.loader.epoch(0):
        shown |= zip(batch.ids.tolist(), batch.x, strict=True)
    return shown


@pytest.mark.parametrize(("option", "axis"), [("hflip", 2), ("vflip", 1)])
def test_mirroring_as_often_as_asked(folder, option, axis):
    """Never at 0, each image at 1, about every second at 0.5; left and right, or above and below."""
    never, always, half = (images(folder, **({"hflip": 0.0} | {option: p})) for p in (0.0, 1.0, 0.5))
    plain = images(folder, aug=False)
    assert len(plain) == 80
    turned = 0
    for number, image in plain.items():
        torch.testing.assert_close(never[number], image, rtol=0, atol=1e-6)
        torch.testing.assert_close(always[number], image.flip(axis), rtol=0, atol=1e-6)
        turned += bool(torch.allclose(half[number], image.flip(axis), rtol=0, atol=1e-6))
    assert 25 <= turned <= 55


# ----------------------------------------------------------------------------------------------------- what is measured


def test_top5_counts_labels_among_the_five_largest(folder):
    """From the written file: images whose label has fewer than five logits above it."""
    result, last = train(settings(folder, epochs=1))
    net = written_net(folder, last)
    data = load_data("netgraft:digits", size=(1, 8, 8), mean=(0.5,), std=(0.5,), split="test")
    with torch.no_grad():
        logits = net.eval()(data.images)
    above = (logits > logits.gather(1, data.labels[:, None])).sum(1)
    shares = [100 * float((above < k).double().mean()) for k in (4, 5, 6)]
    assert shares[0] + 1 < shares[1] < shares[2] - 1  # top 4 and top 6 would be seen
    assert result.history[-1]["eval_top5"] == pytest.approx(shares[1], abs=1e-3)


def test_average_of_the_weights(folder):
    """With e_1 = theta_1 and e_t = d e_(t-1) + (1 - d) theta_t, of the states theta that the steps left."""
    running, seen, result = watched(folder, model_ema=True, model_ema_decay=0.7)
    states = [*seen.before[1:], state_of(running.run.target_module)]
    assert len(states) == 2 * BATCHES
    expected = {key: value.double() for key, value in states[0].items()}
    for state in states[1:]:
        expected = {key: 0.7 * mean + 0.3 * state[key].double() for key, mean in expected.items()}
    written = safetensors.torch.load_file(result.folder / "last.safetensors")
    assert written.keys() == expected.keys()
    for key, mean in expected.items():
        if key.endswith("num_batches_tracked"):
            assert torch.equal(written[key], states[-1][key])
            continue
        torch.testing.assert_close(written[key].double(), mean, rtol=1e-5, atol=1e-6)
    for key in ("stem.weight", "stem_norm.running_var", "head.bias"):  # all of them moved from step to step
        assert not torch.allclose(states[-1][key].double(), expected[key], rtol=1e-4, atol=1e-5), key
