"""What a model's images are normalised by, found where each kind of model says it."""

import json

import pytest
import torch
from torch import nn

from netgraft.errors import UsageError
from netgraft.files.checkpoint import write_checkpoint
from netgraft.models.model import load_model
from netgraft.models.normalisation import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalisation,
    normalisation_for,
    normalisation_of,
    parse_statistics,
    trained_on,
)

NET = "from torch import nn\n{head}\nclass Net(nn.Module):\n    input_size = (3, 8, 8)\n{body}\n    pass\n"
HALF = ((0.5,) * 3, (0.5,) * 3)


def load(reference, role="source", **options):
    return load_model(str(reference), role=role, random_weights=role == "source", **options)


def of(reference, **options):
    found = normalisation_of(load(reference, **options))
    return found.mean, found.std, found.remark


@pytest.mark.parametrize("name", ["resnet20-glyphs", "vgg11-glyphs"])
def test_embedded_nets(name):
    assert of(f"netgraft:{name}") == ((0.5,), (0.35,), "")


def test_timm():
    assert of("resnet18") == (IMAGENET_MEAN, IMAGENET_STD, "")
    assert of("vit_tiny_patch16_224") == (*HALF, "")


def test_timm_with_other_channels_takes_the_average():
    mean, std, remark = of("resnet18", args={"in_chans": 1})
    assert mean == pytest.approx((0.449,))
    assert std == pytest.approx((0.226,))
    assert "averaged" in remark
    assert len(of("resnet18", args={"in_chans": 5})[0]) == 5


def test_a_folder_with_a_config_of_timm(tmp_path):
    config = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert of(tmp_path) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "")


def test_a_built_module_is_not_built_again():
    model = load("resnet18")
    module = nn.Identity()
    module.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": [1, 2, 3]}
    assert normalisation_of(model, module) == Normalisation((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


def test_torchvision_asks_the_weights_of_that_name():
    assert of("torchvision:resnet18") == (IMAGENET_MEAN, IMAGENET_STD, "")
    assert of("torchvision:efficientnet_v2_l") == (*HALF, "")
    assert of("torchvision:efficientnet_v2_s") == (IMAGENET_MEAN, IMAGENET_STD, "")
    assert of("torchvision:r3d_18")[0] == pytest.approx((0.43216, 0.394666, 0.37645))


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


@pytest.mark.parametrize(
    "head", ["", "from statistics import mean\nstd = 1", "mean, std = 0.5, 0", "mean = 0.5", "mean, std = 1e999, 1"]
)
def test_else_a_half_with_a_remark(tmp_path, head):
    mean, std, remark = of(write(tmp_path, head))
    assert (mean, std) == HALF
    assert "0.5 are assumed" in remark
    assert "std = (...)" in remark


def test_an_importable_module_says_it(tmp_path, monkeypatch):
    (tmp_path / "netgraft_test_arch.py").write_text(NET.format(head="mean, std = 0.3, 0.2", body=""))
    monkeypatch.chdir(tmp_path)
    assert of("netgraft_test_arch:Net") == ((0.3,) * 3, (0.2,) * 3, "")


# -------------------------------------------------------------------------------------------------------------- weights


def trained(file, mean, std):
    record = {"finetune": {"normalisation": {"mean": mean, "std": std}}}
    write_checkpoint(file, {"x": torch.zeros(1)}, record)
    return file


def test_the_training_that_wrote_the_weights_knows_best(tmp_path):
    file = trained(tmp_path / "best.safetensors", [0.1], [0.2])
    model = load_model("resnet18", role="source", weights_file=file)
    found = normalisation_of(model)
    assert (found, found.said, found.of) == (Normalisation((0.1,) * 3, (0.2,) * 3), "training", str(file))


@pytest.mark.parametrize(("mean", "std"), [([0.1], [0]), ("0.1", [0.2]), ([], []), ([None], [1])])
def test_a_file_with_numbers_that_are_none_says_nothing(tmp_path, mean, std):
    assert trained_on(trained(tmp_path / "best.safetensors", mean, std)) is None


def test_other_files_say_nothing(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"")
    (tmp_path / "w.pth").write_bytes(b"abc")
    assert [trained_on(tmp_path / name) for name in ("w.safetensors", "w.pth", "none.safetensors")] == [None] * 3


# --------------------------------------------------------------------------------------------------- source and target


def test_the_numbers_go_with_the_weights_unless_the_users_file_has_its_own(tmp_path):
    """A name's own numbers are those of its own weights, which a target does not get."""
    source, silent = load("netgraft:resnet20-glyphs"), load(write(tmp_path), "target")
    for target in (silent, load("resnet18", "target"), load("torchvision:resnet18", "target")):
        assert normalisation_for(target, [source]) == Normalisation((0.5,) * 3, (0.35,) * 3)
    assert normalisation_for(load("resnet18", "target"), []) == Normalisation(IMAGENET_MEAN, IMAGENET_STD)
    (tmp_path / "own").mkdir()
    says = load(write(tmp_path / "own", "mean, std = 0.1, 0.2"), "target")
    assert normalisation_for(says, [source]) == Normalisation((0.1,) * 3, (0.2,) * 3)
    assert normalisation_for(silent, [silent, says, source]) == Normalisation((0.1,) * 3, (0.2,) * 3)
    assert normalisation_for(silent, [silent]).said == "nobody"


def test_a_grey_target_gets_the_average_of_three(tmp_path):
    target = load(write(tmp_path), "target", input_size=(1, 8, 8))
    found = normalisation_for(target, [load("resnet18")])
    assert found.mean == pytest.approx((0.449,))
    assert "averaged" in found.remark


# -------------------------------------------------------------------------------------------------------------- applied


def test_it_is_per_channel_and_leaves_its_argument():
    images = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3, 1, 1).repeat(2, 1, 2, 2)
    before = images.clone()
    result = Normalisation((0.5, 0.25, 0.0), (0.5, 0.25, 2.0))(images)
    assert torch.equal(images, before)
    assert result[0, :, 0, 0].tolist() == [-1.0, 1.0, 0.5]
    assert torch.equal(Normalisation((0.5,), (0.25,))(images), (images - 0.5) / 0.25)


def test_tensors():
    mean, std = Normalisation((0.2, 0.4, 0.6), (0.3,)).tensors(1)
    assert (mean.flatten().tolist(), std.flatten().tolist()) == (pytest.approx([0.4]), pytest.approx([0.3]))
    assert Normalisation((0.5,), (0.3,)).tensors(3)[0].shape == (3, 1, 1)
    with pytest.raises(UsageError, match="has 2 numbers for 3 channels"):
        Normalisation((0.5, 0.5), (1,)).tensors(3)
    for std in ((0,), (float("nan"),)):
        with pytest.raises(UsageError, match="positive"):
            Normalisation((0.5,), std).tensors(3)


def test_numbers_as_typed():
    assert parse_statistics("0.5, 0.25,1", "--mean") == (0.5, 0.25, 1)
    for text in ("", "a", "0.5;0.2", "nan", "0.5,inf"):
        with pytest.raises(UsageError, match="--std is one number"):
            parse_statistics(text, "--std")
