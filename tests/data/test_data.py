"""Images by name: which they are, how they look as tensors, and what is said of those that are not there."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from netgraft.data.decode import as_array, plain
from netgraft.data.opening import load_data, open_data
from netgraft.data.pictures import Pixels, few
from netgraft.errors import UnknownName, UsageError
from netgraft.models.normalisation import Normalisation

GREY = {"size": (1, 8, 8), "mean": (0.5,), "std": (0.25,)}


def paint(file, colour, size=(12, 12), mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file)


def make_folder(folder, classes=("ant", "bee", "cat"), count=8, below=""):
    for c, name in enumerate(classes):
        for i in range(count):
            paint(folder / below / name / f"{i}.png", (40 * c + 10, i, 0))
    return folder


# --------------------------------------------------------------------------------------------------------------- digits


def test_digits_are_those_of_scikit_learn():
    digits = load_digits()
    both = [open_data("netgraft:digits", split=split) for split in ("train", "test")]
    numbers = [[int(item) for item in pictures.items] for pictures in both]
    assert sorted(numbers[0] + numbers[1]) == list(range(1797))
    for pictures, chosen in zip(both, numbers, strict=True):
        assert list(pictures.labels) == digits.target[chosen].tolist()
        for i in (0, 5):
            picture, label = pictures[i]
            assert label == digits.target[chosen[i]]
            np.testing.assert_allclose(np.asarray(picture) / 255 * 16, digits.images[chosen[i]], atol=0.05)
    data = load_data("netgraft:digits", **GREY)
    raw = torch.from_numpy(digits.images[numbers[0]]).float()[:, None] / 16
    torch.testing.assert_close(data.images, (raw - 0.5) / 0.25, atol=0.02, rtol=0)
    assert (data.images.dtype, data.labels.dtype, data.classes) == (torch.float32, torch.int64, tuple("0123456789"))
    counts = [torch.tensor(pictures.labels).bincount() for pictures in both]
    assert (counts[0] - counts[1]).abs().max() <= 1


def test_hard_digits_are_the_same_always():
    hard = open_data("netgraft:digits-hard")
    plain = open_data("netgraft:digits")
    assert (hard.items, hard.labels) == (plain.items, plain.labels)
    images = load_data("netgraft:digits-hard", size=(1, 16, 16), mean=(0,), std=(1,)).images
    assert torch.equal(images, load_data("netgraft:digits-hard", size=(1, 16, 16), mean=(0,), std=(1,)).images)
    assert (float(images.mean()), float(images.std())) == pytest.approx((0.5029, 0.3267), abs=0.002)
    assert 0.4 < (images[:, 0, 0, 0] > 0.5).double().mean() < 0.6  # polarity


def test_few_are_nested_seeded_and_recorded():
    train = open_data("netgraft:digits")
    draws = {count: few(train, count, 3) for count in (5, 10, 50)}
    assert set(draws[5].items) < set(draws[10].items) < set(draws[50].items) < set(train.items)
    assert torch.tensor(draws[10].labels).bincount().tolist() == [10] * 10
    record = draws[10].record()
    assert record == few(open_data("netgraft:digits"), 10, 3).record()
    assert {k: record[k] for k in ("samples_per_class", "seed", "images", "split")} == {
        "samples_per_class": 10,
        "seed": 3,
        "images": 100,
        "split": "train",
    }
    assert record["sha256"] != few(train, 10, 4).record()["sha256"]
    data = load_data("netgraft:digits", **GREY, samples_per_class=10, seed=3)
    assert (len(data.images), data.record) == (100, record)
    with pytest.raises(UsageError, match="has 89 images to train with, not 90"):
        few(train, 90, 0)


# --------------------------------------------------------------------------------------------------------------- folder


def test_folder_split_by_chance(tmp_path):
    make_folder(tmp_path)
    train, test = (open_data(str(tmp_path), split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (18, 6)
    assert not set(train.items) & set(test.items)
    assert train.classes == test.classes == ("ant", "bee", "cat")
    assert sorted(set(test.labels)) == [0, 1, 2]
    assert all(
        item.split("/")[0] == train.classes[label] for item, label in zip(train.items, train.labels, strict=True)
    )
    assert train.items == open_data(str(tmp_path)).items
    data = load_data(str(tmp_path), size=(3, 4, 6), mean=(0, 0, 0), std=(1, 1, 1))
    assert data.images.shape == (18, 3, 4, 6)
    assert (data.images[:, 0, 0, 0] * 255).round().int().tolist() == [40 * label + 10 for label in data.labels]


@pytest.mark.parametrize("test", ["val", "test"])
def test_folder_with_splits(tmp_path, test):
    make_folder(tmp_path, below="train")
    make_folder(tmp_path, classes=("bee",), count=2, below=test)
    pictures = open_data(str(tmp_path), split="test")
    assert (pictures.classes, pictures.labels) == (("ant", "bee", "cat"), (1, 1))
    assert len(open_data(str(tmp_path))) == 24
    make_folder(tmp_path, classes=("dog",), count=1, below=test)
    with pytest.raises(UsageError, match="'dog' has no folder to train with"):
        open_data(str(tmp_path), split="test")


def test_tiny_imagenet(tmp_path):
    make_folder(tmp_path, below="train")
    for i in range(2):
        paint(tmp_path / "val" / "images" / f"v{i}.png", (1, 2, 3))
    (tmp_path / "val" / "val_annotations.txt").write_text("v0.png\tcat\t0\t0\nv1.png\tant\t0\t0\n")
    pictures = open_data(str(tmp_path), split="test")
    assert (pictures.labels, pictures[0][0].getpixel((0, 0))) == ((2, 0), (1, 2, 3))


def test_broken_folders(tmp_path):
    with pytest.raises(UsageError, match="too few classes"):
        open_data(str(tmp_path))
    paint(tmp_path / "1.png", (0, 0, 0))
    with pytest.raises(UsageError, match="lie in no class folders"):
        open_data(str(tmp_path))
    make_folder(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(UsageError, match="has no images") as error:
        open_data(str(tmp_path))
    assert error.value.where == str(tmp_path / "dog")
    paint(tmp_path / "dog" / "only.png", (0, 0, 0))
    with pytest.raises(UsageError, match="'dog' has one image"):
        open_data(str(tmp_path))
    (tmp_path / "dog" / "broken.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    pictures = [open_data(str(tmp_path), split=split) for split in ("train", "test")]
    broken = next(p for p in pictures if "dog/broken.png" in p.items)
    with pytest.raises(UsageError, match="cannot be read") as error:
        Pixels(broken, (1, 8, 8), Normalisation()).all()
    assert error.value.where == str(tmp_path / "dog" / "broken.png")


# --------------------------------------------------------------------------------------------------------------- images


def test_colours_sizes_and_depths():
    red = Image.new("RGB", (40, 20), (255, 0, 0))
    assert as_array(red, (1, 20, 40)).tolist() == np.full((1, 20, 40), 76).tolist()  # ITU-R 601
    assert as_array(red, (3, 10, 10))[:, 5, 5].tolist() == [255, 0, 0]
    grey = Image.new("L", (8, 8), 9)
    assert as_array(grey, (3, 8, 8)).tolist() == np.full((3, 8, 8), 9).tolist()
    deep = Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16))
    assert as_array(plain(deep), (1, 4, 4)).min() == 255
    halves = Image.fromarray(
        np.repeat(np.array([0, 0, 255, 255], dtype=np.uint8), 2)[None].repeat(4, 0)
    )  # 8 wide, 4 high
    middle = as_array(halves, (1, 4, 4))[0]  # cropped, not squeezed
    assert (middle[:, :2].max(), middle[:, 2:].min()) == (0, 255)


def test_pixels_are_the_same_however_they_are_read(tmp_path, monkeypatch):
    make_folder(tmp_path)
    pictures = open_data(str(tmp_path))
    statistics = Normalisation((0.1, 0.2, 0.3), (1, 2, 3))
    kept = Pixels(pictures, (3, 8, 8), statistics)
    monkeypatch.setattr("netgraft.data.pictures.MEMORY", 0)
    streamed = Pixels(pictures, (3, 8, 8), statistics)
    assert torch.equal(kept.batch([3, 1]), streamed.batch([3, 1]))
    assert torch.equal(kept.all()[3], streamed.batch([3])[0])
    with pytest.raises(UsageError, match="does not read images"):
        Pixels(pictures, (12,), statistics)


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("netgraft:digit", "netgraft:digits"),
        ("cifar10", "torch/cifar10"),
        ("digits", "netgraft:digits"),
        ("torch/cifar1", "torch/cifar10"),
    ],
)
def test_unknown_names(name, meant):
    with pytest.raises(UnknownName) as error:
        open_data(name)
    assert meant in error.value.hint


def test_data_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match="torch/cifar10 are not below") as error:
        open_data("torch/cifar10", root=tmp_path)
    assert "--download" in error.value.hint
    with pytest.raises(UsageError, match="no such folder"):
        open_data(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="is a stream"):
        open_data("tfds/mnist")
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(UsageError, match="are a file"):
        open_data(str(tmp_path / "file.txt"))


def test_timm_names(tmp_path):
    """MNIST in its own format, as torchvision reads it."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 6), ("t10k", 3)):
        pixels = np.arange(count * 28 * 28, dtype=np.uint8)
        head = b"".join(n.to_bytes(4, "big") for n in (2051, count, 28, 28))
        (raw / f"{name}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = bytes(i % 3 for i in range(count))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes((2049).to_bytes(4, "big") + count.to_bytes(4, "big") + labels)
    data = load_data("torch/mnist", size=(1, 28, 28), mean=(0,), std=(1,), root=tmp_path)
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (data.images[0].flatten() * 255).round().int().tolist() == [i % 256 for i in range(784)]
    assert len(open_data("torch/mnist", split="test", root=tmp_path)) == 3


@pytest.mark.parametrize(("module", "package"), [("sklearn.datasets", "scikit-learn"), ("PIL.Image", "Pillow")])
def test_missing_packages(monkeypatch, module, package):
    from netgraft.data import digits

    digits._plain.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=f"needs {package}") as error:
        load_data("netgraft:digits", **GREY)
    assert "pip install 'netgraft[train]'" in error.value.hint


def test_hub_data_need_a_word(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="needs the package datasets") as error:
        open_data("hfds/org/name")
    assert error.value.hint == "Type pip install datasets"
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    with pytest.raises(UsageError, match="asking the hub") as error:
        open_data("hfds/org/name")
    assert "--download" in error.value.hint
