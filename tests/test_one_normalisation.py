"""Whoever asks gets one answer: transfer's passes, score, compare and fine-tuning normalise by the same numbers."""

import json
import sys
from pathlib import Path

import pytest
import torch
from support.command_line import run

from netgraft.data.synthetic import make_images
from netgraft.evidence.parity import Party
from netgraft.evidence.recorded import choose_normalisation, recorded_source
from netgraft.files.checkpoint import write_checkpoint
from netgraft.finetune.engine.sets import find_normalisation
from netgraft.finetune.engine.source import build_source
from netgraft.finetune.settings import TrainingSettings
from netgraft.models.model import load_model
from netgraft.models.normalisation import IMAGENET_MEAN, IMAGENET_STD, Normalisation
from netgraft.models.side import Side, own_weights
from netgraft.passes.run import make_networks
from netgraft.score.probe import Bench
from netgraft.score.settings import ScoreSettings
from netgraft.trace import trace

NET = """
from torch import nn
{head}

class Net(nn.Module):
    input_size = (3, 32, 32)

    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.head = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))
"""
SAYS = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
CONFIG = {"architecture": "test_resnet", "pretrained_cfg": {"mean": SAYS[0], "std": SAYS[1], "input_size": [3, 32, 32]}}

SOURCES = {
    "netgraft:resnet20-glyphs": ((0.5,) * 3, (0.35,) * 3),
    "test_vit2": ((0.5,) * 3, (0.5,) * 3),
    "mobilenetv3_small_050": IMAGENET,
    "torchvision:squeezenet1_1": IMAGENET,
    "hf-hub:somebody/net": SAYS,
    "./hub": SAYS,
    "./says.py": SAYS,
    "netgraft_says:Net": SAYS,
    "./silent.py": ((0.5,) * 3, (0.5,) * 3),
    "./silent.py=trained.safetensors": SAYS,
    "test_resnet=trained.safetensors": SAYS,
}
CODE = [name for name in SOURCES if ".py" in name or name.startswith("netgraft_says")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Sources of every kind, none of them on a network, and ``target.py``, which says nothing."""
    monkeypatch.chdir(tmp_path)
    for name in ("target", "silent"):
        Path(f"{name}.py").write_text(NET.format(head=""))
    for name in ("says", "netgraft_says"):
        Path(f"{name}.py").write_text(NET.format(head=f"mean, std = {SAYS}"))
    Path("hub").mkdir()
    Path("hub/config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setattr("netgraft.models.hub._offline_reason", lambda: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(tmp_path / "hub" / "config.json"))
    yield tmp_path
    sys.modules.pop("netgraft_says", None)


def side(reference):
    """The source; with random weights unless it has a file."""
    if "trained" in reference:
        architecture = reference.partition("=")[0]
        record = {"finetune": {"normalisation": {"mean": SAYS[0], "std": SAYS[1]}}}
        model = load_model(architecture, role="target")
        write_checkpoint("trained.safetensors", own_weights(model, 0, allow_nonfinite=False)[0], record, force=True)
    return Side(reference, "source", random="trained" not in reference)


def checkpoint(source, target="./target.py", **more):
    """A file of the target's that says it was made from the source."""
    tensors = own_weights(load_model(target, role="target"), 0, allow_nonfinite=False)[0]
    asked = {"args": [], "input_size": None, "weights": "random"}
    request = {"seed": 0, "allow_nonfinite": False, "source": asked, "target": asked}
    record = {"plan": {"source": source}, "request": request, "source": {"sha256": ""}, "kept": {}}
    write_checkpoint("init.safetensors", tensors, record | more, force=True)
    return Path("init.safetensors")


def bench(files=(), source=None, target="./target.py"):
    settings = ScoreSettings("netgraft:digits", samples_per_class=1, device="cpu")
    return Bench(Side(target, "target"), settings, lambda _: None, files, source).normalisation


def numbers(normalisation):
    return normalisation.mean, normalisation.std


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("reference", SOURCES)
def test_transfer_score_and_finetune_agree(reference):
    source, target = side(reference), Side("./target.py", "target")
    models, cpu = (source.load(), target.load()), torch.device("cpu")
    networks = make_networks(*(Party(model, None, {}) for model in models), cpu)
    assert numbers(networks[1].normalisation) == SOURCES[reference]
    assert numbers(bench(source=source)) == SOURCES[reference]
    files = [checkpoint(reference)]
    if reference not in CODE:
        assert numbers(bench(files)) == SOURCES[reference]

    given = TrainingSettings(target="./target.py", data="", out="", source=reference, random_source=source.random)
    ours = find_normalisation(given, models[1], models[0])
    assert numbers(ours) == SOURCES[reference]
    net, _ = build_source(given, models[0], models[1].input_size, ours, cpu)
    images = make_images("noise", 2, (3, 32, 32), 0)
    channels = models[0].input_size[0]
    wanted = networks[0].normalisation(images.mean(1, keepdim=True) if channels == 1 else images)
    torch.testing.assert_close(net.adapt(ours(images)), wanted)


@pytest.mark.usefixtures("folder")
def test_weights_of_torchvision_that_are_not_normalised_as_the_others():
    """A large net, which nobody has to build to know this."""
    source, target = (
        Side("torchvision:efficientnet_v2_l", "source", random=True),
        load_model("target.py", role="target"),
    )
    given = TrainingSettings(target="./target.py", data="", out="", source=source.reference, random_source=True)
    assert numbers(bench(source=source)) == ((0.5,) * 3, (0.5,) * 3)
    assert numbers(bench([checkpoint(source.reference)])) == ((0.5,) * 3, (0.5,) * 3)
    assert numbers(find_normalisation(given, target, source.load())) == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.usefixtures("folder")
def test_a_targets_own_file_speaks_first():
    """In all of them; and what belongs to a target's name, never to its weights, in none."""
    source = side("netgraft:resnet20-glyphs")
    for target, wanted in (("./says.py", SAYS), ("test_resnet", ((0.5,) * 3, (0.35,) * 3))):
        model = load_model(target, role="target", args={} if target == "./says.py" else {"num_classes": 10})
        networks = make_networks(Party(source.load(), None, {}), Party(model, None, {}), torch.device("cpu"))
        assert numbers(networks[1].normalisation) == wanted
        file = checkpoint("netgraft:resnet20-glyphs", target)
        assert numbers(bench([file], target=target)) == numbers(bench(source=source, target=target)) == wanted
        given = TrainingSettings(target=target, data="", out="", init=str(file))
        assert numbers(find_normalisation(given, model, None)) == wanted


@pytest.mark.usefixtures("folder")
def test_a_trained_file_says_what_it_was_trained_on():
    file = checkpoint("netgraft:resnet20-glyphs", finetune={"normalisation": {"mean": [0.7], "std": [0.1]}})
    assert bench([file]) == Normalisation((0.7,) * 3, (0.1,) * 3)
    model = load_model("./target.py", role="target", weights_file=file)
    given = TrainingSettings(target="./target.py", data="", out="", init=str(file))
    assert find_normalisation(given, model, None) == Normalisation((0.7,) * 3, (0.1,) * 3)


@pytest.mark.usefixtures("folder")
def test_an_initialisations_source_comes_before_the_one_that_is_compared_with():
    file = checkpoint("netgraft:resnet20-glyphs")
    given = TrainingSettings(
        target="./target.py", data="", out="", init=str(file), source="test_resnet", random_source=True
    )
    models = load_model("./target.py", role="target"), side("test_resnet").load()
    assert numbers(find_normalisation(given, *models)) == ((0.5,) * 3, (0.35,) * 3)


@pytest.mark.usefixtures("folder")
def test_code_that_only_a_file_names_is_not_run():
    Path("evil.py").write_text("from pathlib import Path\nPath('canary').touch()\n" + NET.format(head="mean = std = 1"))
    file = checkpoint("./evil.py")
    target = load_model("./target.py", role="target")
    found = choose_normalisation(target, [file])
    assert (found, Path("canary").exists()) == (Normalisation((0.5,) * 3, (0.5,) * 3), False)
    assert "init.safetensors was made from ./evil.py" in found.remark
    assert "--mean and --std" in found.remark
    for text in ("os:getcwd", "./evil.py:Net", "./evil.py=init.safetensors"):
        assert isinstance(recorded_source(checkpoint(text), [target]), str)
    assert not Path("canary").exists()
    known = load_model("./evil.py", role="source", random_weights=True)  # now the user names it
    assert numbers(choose_normalisation(target, [checkpoint("./evil.py")], [known])) == ((1.0,) * 3, (1.0,) * 3)
    assert recorded_source(checkpoint("evil.py"), [known]) is known
    assert isinstance(recorded_source(checkpoint("evil.py:Other"), [known]), str)


@pytest.mark.usefixtures("folder")
def test_a_source_that_is_not_at_hand_is_told():
    result = run(*f"score {checkpoint('./gone')} ./target.py --data netgraft:digits --samples-per-class 2".split())
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "mean 0.5,0.5,0.5, std 0.5,0.5,0.5 (the default)" in said
    assert "init.safetensors was made from ./gone, whose normalisation is not known" in said


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("ledger", [{}, {"plan": {}}, {"plan": {"source": 3}}, {"plan": {"source": ""}}])
def test_files_without_a_ledger(ledger):
    tensors = own_weights(load_model("./target.py", role="target"), 0, allow_nonfinite=False)[0]
    write_checkpoint("w.safetensors", tensors, ledger)
    assert bench([Path("w.safetensors")]).said == "nobody"


@pytest.mark.usefixtures("folder")
def test_a_ledger_of_old_that_recorded_no_request():
    tensors = own_weights(load_model("./target.py", role="target"), 0, allow_nonfinite=False)[0]
    write_checkpoint("w.safetensors", tensors, {"plan": {"source": "netgraft:vgg11-glyphs"}})
    assert numbers(bench([Path("w.safetensors")])) == ((0.5,) * 3, (0.35,) * 3)


@pytest.mark.usefixtures("folder")
def test_passes_show_the_target_what_score_shows_it():
    """The pixels, not only the numbers."""
    from netgraft.data.images import ImageSource
    from netgraft.passes.protocol import Stage

    models = side("netgraft:resnet20-glyphs").load(), load_model("./target.py", role="target")
    parties = [Party(model, trace(model), {}) for model in models]
    stage = Stage(None, *make_networks(*parties, torch.device("cpu")), ImageSource())
    images = make_images("noise", 2, (3, 32, 32), 0)
    mean, std = ((torch.tensor(v)[:, None, None]) for v in numbers(bench(source=side("netgraft:resnet20-glyphs"))))
    torch.testing.assert_close(stage.shown(images, stage.target), (images - mean) / std, rtol=0, atol=0)
