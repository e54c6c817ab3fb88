"""How a source's images are normalised, found where each kind of model says it."""

import pytest
import torch
from torch import nn

from netgraft.data.synthetic import normalise
from netgraft.models.model import load_model
from netgraft.models.normalisation import IMAGENET_MEAN, IMAGENET_STD, preprocessing_of

NET = "from torch import nn\n{head}\nclass Net(nn.Module):\n    input_size = (3, 8, 8)\n{body}\n    pass\n"


def of(reference, **options):
    return preprocessing_of(load_model(str(reference), role="source", random_weights=True, **options))


@pytest.mark.parametrize("name", ["resnet20-glyphs", "vgg11-glyphs"])
def test_embedded_nets(name):
    assert of(f"netgraft:{name}") == ((0.5,), (0.35,), "")


def test_timm():
    assert of("resnet18") == (IMAGENET_MEAN, IMAGENET_STD, "")
    assert of("vit_tiny_patch16_224") == ((0.5,) * 3, (0.5,) * 3, "")


def test_timm_with_other_channels_takes_the_average():
    mean, std, remark = of("resnet18", args={"in_chans": 1})
    assert mean == pytest.approx((0.449,))
    assert std == pytest.approx((0.226,))
    assert "averaged" in remark
    assert len(of("resnet18", args={"in_chans": 5}).mean) == 5


def test_a_built_module_is_not_built_again():
    model = load_model("resnet18", role="source", random_weights=True)
    module = nn.Identity()
    module.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": [1, 2, 3]}
    assert preprocessing_of(model, module) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "")


def test_torchvision():
    assert of("torchvision:resnet18") == (IMAGENET_MEAN, IMAGENET_STD, "")
    assert of("torchvision:r3d_18").mean == pytest.approx((0.43216, 0.394666, 0.37645))


def write(tmp_path, head="", body=""):
    file = tmp_path / "my_arch.py"
    file.write_text(NET.format(head=head, body=body))
    return file


@pytest.mark.parametrize(
    ("head", "body", "mean", "std"),
    [
        ("", "    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ("mean = [0.1, 0.2, 0.3]\nstd = 2", "", (0.1, 0.2, 0.3), (2.0, 2.0, 2.0)),
        ("mean, std = 0, 1", "    mean, std = 0.5, 0.25", (0.5,) * 3, (0.25,) * 3),
        ("", "    pretrained_cfg = {'mean': (0.1,), 'std': (0.2,)}", (0.1,) * 3, (0.2,) * 3),
    ],
)
def test_a_users_class_or_file_says_it(tmp_path, head, body, mean, std):
    assert of(write(tmp_path, head, body)) == (mean, std, "")


@pytest.mark.parametrize("head", ["", "from statistics import mean\nstd = 1", "mean, std = 0.5, 0", "mean = 0.5"])
def test_else_a_half_with_a_remark(tmp_path, head):
    mean, std, remark = of(write(tmp_path, head))
    assert (mean, std) == ((0.5,) * 3, (0.5,) * 3)
    assert "0.5 are assumed" in remark
    assert "std = (...)" in remark


def test_an_importable_module_says_it(tmp_path, monkeypatch):
    (tmp_path / "netgraft_test_arch.py").write_text(NET.format(head="mean, std = 0.3, 0.2", body=""))
    monkeypatch.chdir(tmp_path)
    assert of("netgraft_test_arch:Net") == ((0.3,) * 3, (0.2,) * 3, "")


def test_the_result_fits_normalise():
    mean, std, _ = of("resnet18")
    assert normalise(torch.zeros(1, 3, 2, 2), mean, std).shape == (1, 3, 2, 2)
