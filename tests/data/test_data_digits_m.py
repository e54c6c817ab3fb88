"""Digits in front of photographs, and the folders in which the field's domains come."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from netgraft.data import blended
from netgraft.data.opening import load_data, names, open_data
from netgraft.errors import UsageError

RGB = {"size": (3, 16, 16), "mean": (0,), "std": (1,)}


def test_they_are_the_plain_digits():
    for split in ("train", "test"):
        plain, shifted = (open_data(f"netgraft:{name}", split=split) for name in ("digits", "digits-m"))
        assert (shifted.items, shifted.labels, shifted.classes) == (plain.items, plain.labels, plain.classes)
    picture, label = shifted[0]
    assert (picture.mode, picture.size) == ("RGB", (16, 16))
    assert label == load_digits().target[int(shifted.items[0])]
    assert "netgraft:digits-m" in names()


def test_they_are_the_same_always():
    data = load_data("netgraft:digits-m", **RGB)
    assert torch.equal(data.images, load_data("netgraft:digits-m", **RGB).images)
    assert (float(data.images.mean()), float(data.images.std())) == pytest.approx((0.37, 0.26), abs=0.06)
    few = load_data("netgraft:digits-m", **RGB, samples_per_class=3)
    where = (data.images[:, None] == few.images[None]).flatten(2).all(2).any(0)
    assert where.all()


def test_blending():
    digit = np.array([[0, 255], [100, 7]], np.uint8)
    patch = np.array([[[1, 2, 3], [255, 0, 10]], [[90, 100, 120], [7, 0, 200]]], np.uint8)
    expected = [[[1, 2, 3], [0, 255, 245]], [[10, 0, 20], [0, 7, 193]]]
    assert blended.blend(digit, patch).tolist() == expected


def test_without_ink_they_are_patches_of_the_photographs():
    """Where the digit is black, the picture is its patch, which lies in one of the photographs."""
    photographs = [np.asarray(Image.fromarray(image).reduce(4)) for image in load_sample_images().images]
    pictures, plain = open_data("netgraft:digits-m"), open_data("netgraft:digits")
    seen = set()
    for i in range(12):
        digit = np.asarray(plain[i][0].resize((16, 16), Image.Resampling.BICUBIC)).astype(int)
        patch = blended._patch(int(pictures.items[i])).astype(int)
        np.testing.assert_array_equal(np.abs(patch - digit[:, :, None]), np.asarray(pictures[i][0]))
        views = [np.lib.stride_tricks.sliding_window_view(p, (16, 16, 3))[:, :, 0] for p in photographs]
        found = [bool((view == patch).all((2, 3, 4)).any()) for view in views]
        assert any(found)
        seen.add(tuple(found))
    assert len(seen) == 2


def test_a_linear_classifier_of_digits_fails_on_them():
    """There is a shift: least squares on the pixels."""
    data = {name: load_data(f"netgraft:{name}", **RGB) for name in ("digits", "digits-m")}
    x, y = data["digits"].images.flatten(1), torch.eye(10)[data["digits"].labels]
    weights = torch.linalg.lstsq(x.T @ x + 10 * torch.eye(x.shape[1]), x.T @ y).solution
    right = {n: float(((d.images.flatten(1) @ weights).argmax(1) == d.labels).float().mean()) for n, d in data.items()}
    assert right["digits"] > 0.9
    assert right["digits-m"] < 0.6


# -------------------------------------------------------------------------------------------------------------- folders


def make_mnist_m(folder):
    for split, count in (("train", 6), ("test", 3)):
        below = folder / f"mnist_m_{split}"
        below.mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (28, 28), (i, 7, 9)).save(below / f"{i:08}.png")
        lines = "".join(f"{i:08}.png {i % 3}\n" for i in reversed(range(count)))
        (folder / f"mnist_m_{split}_labels.txt").write_text(lines)
    return folder


def test_mnist_m_as_it_comes(tmp_path):
    make_mnist_m(tmp_path)
    train, test = (open_data(str(tmp_path), split=split) for split in ("train", "test"))
    assert (train.classes, train.labels, test.labels) == (("0", "1", "2"), (2, 1, 0, 2, 1, 0), (2, 1, 0))
    assert (train.items[0], train[0][0].getpixel((0, 0)), test[0][0].getpixel((0, 0))) == (
        "00000005.png",
        (5, 7, 9),
        (2, 7, 9),
    )


def test_broken_lists(tmp_path):
    make_mnist_m(tmp_path)
    (tmp_path / "mnist_m_test" / "00000002.png").unlink()
    with pytest.raises(UsageError, match="not there") as error:
        open_data(str(tmp_path), split="test")
    assert error.value.where == str(tmp_path / "mnist_m_test" / "00000002.png")
    labels = tmp_path / "mnist_m_train_labels.txt"
    labels.write_text("00000000.png 1\n00000001.png one\n")
    with pytest.raises(UsageError, match="cannot be understood") as error:
        open_data(str(tmp_path))
    assert error.value.where == f"{labels}:2"
    labels.write_text("\n")
    with pytest.raises(UsageError, match="empty"):
        open_data(str(tmp_path))


def test_a_domain_of_office(tmp_path):
    for name in ("bike", "mug"):
        (tmp_path / "amazon" / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "amazon" / "images" / name / f"frame_{i}.jpg")
    train, test = (open_data(str(tmp_path / "amazon"), split=split) for split in ("train", "test"))
    assert (train.classes, len(train), len(test)) == (("bike", "mug"), 6, 2)
    assert all(item.startswith(("bike/frame_", "mug/frame_")) for item in train.items)


@pytest.mark.parametrize("name", ["usps", "svhn"])
def test_other_digits_are_torchvisions(name, tmp_path, monkeypatch):
    """By torchvision's own classes, whose options for the split differ."""
    import torchvision.datasets

    asked = {}

    class Fake:
        targets = (3, 1, 0)

        def __init__(self, root, download, **split):
            asked.update(split, root=root, download=download)

        def __getitem__(self, index):
            return Image.new("L", (4, 4), index), self.targets[index]

    monkeypatch.setattr(torchvision.datasets, name.upper(), Fake)
    pictures = open_data(f"torch/{name}", split="test", root=tmp_path)
    assert asked == {"root": str(tmp_path), "download": False} | (
        {"train": False} if name == "usps" else {"split": "test"}
    )
    assert (pictures.labels, pictures.classes) == ((3, 1, 0), ("0", "1", "2", "3"))
    assert pictures[2][0].getpixel((0, 0)) == 2


def test_what_is_not_there_is_not_downloaded(tmp_path):
    with pytest.raises(UsageError, match="are not below"):
        open_data("torch/usps", root=tmp_path)
