"""The training-free verdict: what it measures, on what, and what the command line makes of it."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from sklearn.linear_model import RidgeCV
from support.command_line import link_examples, run, write_net
from torch import nn

from netgraft.architecture.graph import Layer
from netgraft.data.opening import load_data, open_data
from netgraft.data.pictures import Pixels, few
from netgraft.errors import CheckFailed, ForwardError, UnknownName, UsageError, WeightsMismatch
from netgraft.evidence.features import FrozenNetwork, pooled
from netgraft.models.model import load_model
from netgraft.models.normalisation import Normalisation
from netgraft.models.side import Side, own_weights
from netgraft.planning import TransferRequest
from netgraft.score.compare import compare
from netgraft.score.probe import score
from netgraft.score.settings import ScoreSettings
from netgraft.score.verdict import check_scratch
from netgraft.trace import trace
from netgraft.transfer import transfer

GLYPHS = "netgraft:resnet20-glyphs"
FEW = ScoreSettings("netgraft:digits", samples_per_class=10)
SMALL = (1, 8, 8)  # a quarter of the work
NET = """
import torch
from torch import nn

class Net(nn.Module):
    input_size = (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = self.drop(self.norm(self.conv(x)).relu()).mean((2, 3))
        return self.head(x)
"""


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    """The embedded net into itself with ten classes."""
    file = tmp_path_factory.mktemp("init") / "init.safetensors"
    transfer(
        TransferRequest(
            Side(GLYPHS, "source"), Side(GLYPHS, "target", {"num_classes": 10}), file, receipt=False, recipe="hmt"
        )
    )
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_net(tmp_path, text=NET)
    return tmp_path


def target(**kwargs):
    return Side(GLYPHS, "target", {"num_classes": 10}, **kwargs)


def small(*args):
    return ("./net.py", "--data", "netgraft:digits", "--samples-per-class", "5", *args)


def save(name, tensors):
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, name)
    return Path(name)


def scratch(seed=0):
    return own_weights(Side("./net.py", "target").load(), seed, allow_nonfinite=False)[0]


# ------------------------------------------------------------------------------------------------------------- verdicts


def test_pretrained_features_beat_scratch(init):
    scores = score([init], target(), FEW)
    (scored,) = scores.scored
    assert scored.verdict == "better"
    assert scored.difference > 0.15
    assert scored.interval.low > 0.1
    assert (scores.heads, scores.features, scores.norms) == (("fc",), 64, 21)
    assert (scores.normalisation.of, scores.normalisation) == (GLYPHS, Normalisation((0.5,), (0.35,)))
    assert (scores.train["images"], scores.test["images"]) == (100, 898)
    mean = sum(probe.accuracy for probe in scores.scratch) / 3
    assert scored.difference == pytest.approx(scored.probe.accuracy - mean)
    check_scratch(scores)


def test_equals_a_probe_written_out(folder):
    """Features by hand, normalisation by scikit-learn's definition, the classifier of scikit-learn."""
    weights = scratch(7)
    file = save(folder / "w.safetensors", weights)
    settings = ScoreSettings("netgraft:digits", 10, seed=5, bn="as-is", normalisation=Normalisation((0.3,), (0.4,)))
    (scored,) = score([file], Side("./net.py", "target"), settings).scored
    names = {}
    exec(NET, names)
    net = names["Net"]().eval()
    net.load_state_dict(weights)
    read = {}
    net.head.register_forward_pre_hook(lambda _, args: read.update(x=args[0].detach().double()))
    sides = []
    for split, count in (("train", 10), ("test", None)):
        size = {"size": (1, 8, 8), "mean": (0.3,), "std": (0.4,)}
        data = load_data("netgraft:digits", **size, split=split, samples_per_class=count, seed=5)
        net(data.images)
        sides.append((read["x"], data.labels))
    (x, y), (new, truth) = sides
    mean, std = x.mean(0), x.std(0, correction=0)
    theirs = RidgeCV(alphas=[scored.probe.penalty]).fit(((x - mean) / std).numpy(), nn.functional.one_hot(y).numpy())
    right = torch.from_numpy(theirs.predict(((new - mean) / std).numpy())).argmax(1) == truth
    assert torch.equal(scored.probe.right, right)


def test_same_weights_same_score(folder):
    one, other, else_ = (save(folder / f"{i}.safetensors", scratch(i // 2)) for i in range(3))
    settings = ScoreSettings("netgraft:digits", 5, batch=16)
    first = score([one, other, else_], Side("./net.py", "target"), settings)
    a, b, c = first.scored
    assert torch.equal(a.probe.right, b.probe.right)
    assert torch.equal(a.probe.right, first.scratch[0].right)
    assert torch.equal(c.probe.right, first.scratch[1].right)
    assert (a.difference, a.interval) == (b.difference, b.interval)
    again = score([one, other, else_], Side("./net.py", "target"), settings)
    assert [s.interval for s in again.scored] == [s.interval for s in first.scored]
    assert a.verdict == "no difference"


def test_fail_under_scratch(folder):
    weights = scratch(0)
    broken = {k: v.clone() for k, v in weights.items()}
    broken["conv.weight"][:] = 0
    save("same.safetensors", weights)
    save("broken.safetensors", broken)
    assert run("score", "same.safetensors", *small("--fail-under-scratch")).exit_code == 0
    assert run("score", "broken.safetensors", *small()).exit_code == 0
    result = run("score", "same.safetensors", "broken.safetensors", *small("--fail-under-scratch"))
    assert result.exit_code == 1
    assert "netgraft: Worse than scratch: broken.safetensors." in result.stderr
    assert "broken.safetensors" in result.stdout
    with pytest.raises(CheckFailed):
        check_scratch(score([folder / "broken.safetensors"], Side("./net.py", "target"), FEW))


# ------------------------------------------------------------------------------------------------------------- features


@pytest.mark.usefixtures("folder")
def test_recalibration_is_the_mean_over_batches():
    model = Side("./net.py", "target").load()
    weights = scratch(1)
    pixels = Pixels(few(open_data("netgraft:digits"), 3, 0), (1, 8, 8), Normalisation())
    net = FrozenNetwork(model, trace(model), weights, "cpu", 8)
    assert net.recalibrate(pixels) == 1
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0)).tensor_split(4)
    maps = [net.module.conv(pixels.batch(part.tolist())) for part in order]
    torch.testing.assert_close(net.module.norm.running_mean, sum(m.mean((0, 2, 3)) for m in maps) / 4)
    torch.testing.assert_close(net.module.norm.running_var, sum(m.transpose(0, 1).flatten(1).var(1) for m in maps) / 4)
    assert (net.module.norm.momentum, net.module.norm.training) == (0.1, False)
    for key, tensor in net.module.state_dict().items():
        if "running" not in key and "tracked" not in key:
            assert torch.equal(tensor, weights[key])
    assert torch.equal(net.features(pixels), net.features(pixels))  # dropout sleeps


@pytest.mark.usefixtures("folder")
def test_stale_statistics_are_repaired(init):
    """Statistics of another scale ruin the features as they are, and do no harm once re-estimated."""
    tensors = safetensors.torch.load_file(init)
    stale = save("stale.safetensors", {k: v * 9 if k.endswith("running_var") else v for k, v in tensors.items()})
    fine, repaired = score([init, stale], target(input_size=SMALL), FEW).scored
    assert torch.equal(fine.probe.right, repaired.probe.right)
    as_is = score([init, stale], target(input_size=SMALL), replace(FEW, bn="as-is"))
    assert as_is.norms == 0
    assert not torch.equal(as_is.scored[0].probe.right, as_is.scored[1].probe.right)


@pytest.mark.parametrize(
    ("name", "args", "heads", "features"),
    [
        ("squeezenet1_0", {}, ["classifier.1"], 512),
        ("alexnet", {}, ["classifier.6"], 4096),
    ],
)
def test_heads_of_torchvision(name, args, heads, features):
    model = load_model(f"torchvision:{name}", role="target", args=args, input_size=(3, 64, 64))
    check_head(model, heads, features)


@pytest.mark.parametrize(
    ("name", "heads", "features"),
    [("test_vit", ["head"], 64), ("test_convnext", ["head.fc"], 64), ("test_resnet", ["fc"], 96)],
)
def test_heads_of_timm(name, heads, features):
    check_head(load_model(name, role="target"), heads, features)


def check_head(model, heads, features):
    graph = trace(model)
    pixels = Pixels(few(open_data("netgraft:digits"), 1, 0), model.input_size, Normalisation())
    net = FrozenNetwork(model, graph, own_weights(model, 0, allow_nonfinite=False)[0], "cpu", 4)
    found = net.features(pixels)
    assert ([layer.name for layer, _ in net.heads], found.shape) == (heads, (10, features))
    assert found.std(0).max() > 0


def test_maps_and_tokens_are_averaged():
    graph = {"conv2d": torch.rand(2, 5, 3, 4), "linear": torch.rand(2, 3, 4, 5)}

    conv, linear = Layer("conv", "conv2d", (5, 3, 3, 3)), Layer("linear", "linear", (5, 3))
    torch.testing.assert_close(pooled(graph["conv2d"], conv), graph["conv2d"].mean((2, 3)))
    torch.testing.assert_close(pooled(graph["linear"], linear), graph["linear"].mean((1, 2)))
    assert pooled(torch.rand(2, 7), linear).shape == (2, 7)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_refusals(folder, init):
    side = Side("./net.py", "target")
    with pytest.raises(WeightsMismatch):
        score([init], side, FEW)
    file = save("w.safetensors", scratch())
    with pytest.raises(UnknownName):
        score([file], side, ScoreSettings("netgraft:digit"))
    with pytest.raises(UsageError, match="device 'cupd' cannot be used"):
        score([file], side, ScoreSettings("netgraft:digits", device="cupd"))
    with pytest.raises(UsageError, match="The target has weights") as error:
        score([file], Side("./net.py=w.safetensors", "target"), FEW)
    assert error.value.hint == "Type w.safetensors ./net.py"
    with pytest.raises(UsageError, match="does not read images"):
        score([file], Side("./net.py", "target", input_size=(2, 8, 8)), FEW)
    write_net(folder, "bare.py", NET.replace("    input_size = (1, 8, 8)\n", ""))
    with pytest.raises(UsageError, match=r"input size of \./bare\.py is not known"):
        score([file], Side("./bare.py", "target"), FEW)
    failing = NET.replace("x = self.drop", "assert x.shape[0] < 9\n        x = self.drop")
    write_net(folder, "failing.py", failing)
    with pytest.raises(ForwardError, match="failed on images of shape") as failed:
        score([file], Side("./failing.py", "target"), FEW)
    assert "failing.py:" in failed.value.where
    write_net(folder, "raw.py", NET.replace("self.head(x)", "x @ self.head.weight.T"))
    with pytest.raises(UsageError, match=r"is no module of its own|reads no features"):
        score([file], Side("./raw.py", "target"), FEW)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("w.safetensors", "./net.py"), "Missing option '--data'"),
        (("./net.py", "--data", "netgraft:digits"), "Missing argument"),
        (("no.safetensors", *small()), "No such file"),
        (("w.safetensors", *small("--mean", "0.5")), "--mean and --std belong together."),
        (("w.safetensors", *small("--seeds", "2")), "--seeds"),
        (("w.safetensors", *small("--bn", "recalibrated")), "--bn"),
    ],
)
def test_bad_commands(args, said):
    save("w.safetensors", scratch())
    result = run("score", *args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


# ------------------------------------------------------------------------------------------------------------- compare


def test_compare(folder):
    write_net(folder, "refuses.py", REFUSES)
    source, wanted = Side(GLYPHS, "source"), target(input_size=SMALL)
    scores = compare(source, wanted, FEW, recipes=["hmt", "./refuses.py"])
    (scored,) = scores.scored
    assert (scored.name, scored.verdict, scores.source) == ("hmt", "better", GLYPHS)
    assert scores.refused == {"./refuses.py": "This recipe never works."}
    with pytest.raises(CheckFailed, match="never works"):
        compare(source, wanted, FEW, recipes=["./refuses.py"])
    with pytest.raises(UnknownName):
        compare(source, wanted, FEW, recipes=["hmtt"])


REFUSES = """
from dataclasses import dataclass
from netgraft.errors import CheckFailed

@dataclass(frozen=True)
class Refuses:
    '''Never works.'''

    def pair(self, source, target):
        raise CheckFailed("This recipe never works.")

    def plan(self, task):
        raise AssertionError("never asked")
"""


def test_compare_agrees_with_score(init):
    ours = compare(Side(GLYPHS, "source"), target(input_size=SMALL), FEW, recipes=["hmt"]).scored[0]
    theirs = score([init], target(input_size=SMALL), FEW).scored[0]
    assert torch.equal(ours.probe.right, theirs.probe.right)


# ---------------------------------------------------------------------------------------------------------- the reports


@pytest.mark.usefixtures("folder")
def test_reports():
    save("w.safetensors", scratch(3))
    text = run("score", "w.safetensors", *small()).stdout
    assert "target: ./net.py, the 6 features that head reads, frozen" in text
    assert "50 training images (5 per class, seed 0), 898 test images, 10 classes" in text
    assert "1x8x8, mean 0.5, std 0.5 (the default)" in text
    document = json.loads(run("score", "w.safetensors", *small("--format", "json")).stdout)
    assert document == json.loads(run("score", "w.safetensors", *small("--format", "json")).stdout)
    (entry,) = document["files"]
    assert set(entry) == {"file", "sha256", "accuracy", "interval", "difference", "difference_interval", "verdict"}
    assert f"{100 * entry['accuracy']:.1f} %" in text
    assert len(document["scratch"]["accuracies"]) == 3
    given = ("--mean", "0.1", "--std", "0.2", "--seeds", "4", "--seed", "9", "--bn", "as-is", "--format", "json")
    other = json.loads(run("score", "w.safetensors", *small(*given)).stdout)
    assert other["normalisation"] == {"mean": [0.1], "std": [0.2], "of": "--mean and --std"}
    assert (len(other["scratch"]["accuracies"]), other["train"]["seed"], other["bn"]) == (4, 9, "as-is")


@pytest.mark.parametrize("command", ["score", "compare"])
def test_examples_run(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    link_examples(tmp_path)
    page = run(command, "--help")
    assert (page.exit_code, page.stderr) == (0, "")
    lines = [line.strip() for line in page.stdout.partition("Examples:\n")[2].splitlines() if line.strip()]
    assert lines
    transfer(
        TransferRequest(
            Side(GLYPHS, "source"),
            Side("examples/my_arch.py", "target"),
            Path("init.safetensors"),
            receipt=False,
            recipe="hmt",
        )
    )
    for line in lines:
        program, *words = shlex.split(line)
        result = run(*words)
        assert (program, result.exit_code) == ("netgraft", 0), result.stderr
