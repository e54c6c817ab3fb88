"""One decoder: what is seen in a folder does not depend on who looks, and is what the person who saved it saw."""

import numpy as np
import pytest
import torch
from PIL import Image

from netgraft.data.decode import as_array, plain, read_picture
from netgraft.data.images import ImageSource
from netgraft.data.opening import open_data
from netgraft.data.pictures import Pixels
from netgraft.data.unlabelled import load_folder
from netgraft.finetune.engine.loader import Augmentation, Views
from netgraft.models.normalisation import Normalisation

RAMP = np.linspace(0, 255, 32).round().astype(np.uint8)
LEFT_TO_RIGHT = np.broadcast_to(RAMP, (32, 32)).copy()


def turned(path):
    """Stored with its left side up; the tag says how to turn it back."""
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(LEFT_TO_RIGHT.T[:, ::-1].copy()).convert("RGB").save(path, exif=exif, quality=100)


def clear(path):
    """Half of a red picture is transparent."""
    picture = np.zeros((32, 32, 4), np.uint8)
    picture[:, :, 0] = 255
    picture[:, 16:, 3] = 255
    Image.fromarray(picture).save(path)


def deep(path):
    Image.fromarray(LEFT_TO_RIGHT.astype(np.uint16) * 257).save(path)


def deep_and_clear(path):
    picture = LEFT_TO_RIGHT.astype(np.uint16) * 257
    picture[:16] = 1000
    Image.fromarray(picture).save(path, transparency=1000)


def palette(path):
    picture = Image.new("P", (32, 32), 0)
    picture.putpalette([0, 0, 255, 10, 20, 30])
    picture.paste(1, (16, 0, 32, 32))
    picture.save(path, transparency=0)


def grey_and_clear(path):
    Image.merge("LA", [Image.fromarray(LEFT_TO_RIGHT), Image.fromarray(LEFT_TO_RIGHT.T.copy())]).save(path)


def inks(path):
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(path, quality=100)


def large(path):
    """Many times as large as it is looked at, so that a JPEG need not be decoded in full."""
    Image.fromarray(LEFT_TO_RIGHT).resize((640, 600)).convert("RGB").save(path, quality=95)


def plane(value):
    return np.full((32, 32), value)


def alpha_over_white():
    alpha = LEFT_TO_RIGHT.T / 255
    return LEFT_TO_RIGHT * alpha + 255 * (1 - alpha)


LEFT, RIGHT = (np.arange(32) < 16) * np.ones((32, 1)), (np.arange(32) >= 16) * np.ones((32, 1))
PICTURES = {  # file -> how it is made, what is seen in red, green and blue
    "turned.jpg": (turned, [LEFT_TO_RIGHT] * 3),
    "clear.png": (clear, [plane(255), 255 * LEFT, 255 * LEFT]),
    "deep.png": (deep, [LEFT_TO_RIGHT] * 3),
    "deep_and_clear.png": (deep_and_clear, [np.where(np.arange(32)[:, None] < 16, 255, LEFT_TO_RIGHT)] * 3),
    "palette.png": (palette, [255 * LEFT + value * RIGHT for value in (10, 20, 30)]),
    "grey_and_clear.png": (grey_and_clear, [alpha_over_white()] * 3),
    "inks.jpg": (inks, [plane(255), plane(0), plane(0)]),
    "large.jpg": (large, [LEFT_TO_RIGHT] * 3),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each picture in a class of its own, in the folders of both splits, and a twin: data need two of each."""
    root = tmp_path_factory.mktemp("pictures")
    for split in ("train", "val"):
        for name, (make, _) in PICTURES.items():
            below = root / split / name.partition(".")[0]
            below.mkdir(parents=True)
            make(below / name)
    return root


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_seen(folder, name):
    picture = read_picture(folder / "train" / name.partition(".")[0] / name)
    seen, wanted = as_array(picture, (3, 32, 32)).astype(float), np.stack(PICTURES[name][1])
    assert np.abs(seen - wanted).max() <= (12 if name == "large.jpg" else 3 if name.endswith("jpg") else 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 8, 40])
def test_transfer_score_and_finetune_see_the_same_pixels(folder, channels, side):
    size, count = (channels, side, side), len(PICTURES)
    unlabelled = ImageSource.of(str(folder / "train")).draw(count, size, 3)
    labelled = open_data(str(folder))
    statistics = Normalisation((0.4,), (0.25,))
    scored = Pixels(labelled, size, statistics)
    trained = Views(labelled, size, statistics)
    views = statistics(unlabelled), scored.all(), trained.images(range(count), 0)
    shown = [sorted(image.numpy().tobytes() for image in images) for images in views]
    assert shown[0] == shown[1] == shown[2]


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_begins_with_the_same_picture(folder, channels):
    """A view that is the whole picture at its own size, neither mirrored nor recoloured."""
    labelled = open_data(str(folder))
    labelled = labelled.take(i for i, item in enumerate(labelled.items) if "large" not in item)
    whole = Augmentation(scale=(1, 1), ratio=(1, 1), hflip=0, color_jitter=0)
    views = Views(labelled, (channels, 32, 32), Normalisation((0,), (1,)), whole)
    plainly = Views(labelled, (channels, 32, 32), Normalisation((0,), (1,)))
    ids = range(len(labelled))
    torch.testing.assert_close(views.images(ids, 0), plainly.images(ids, 0), atol=1e-6, rtol=0)


def test_sixteen_bits_are_a_straight_line():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    seen = np.asarray(plain(Image.fromarray(values)))
    assert (seen[0, 0], seen[-1, -1]) == (0, 255)
    assert np.abs(seen - values / 257).max() <= 0.5
    widened = np.arange(256, dtype=np.uint16)[None] * 257
    assert np.asarray(plain(Image.fromarray(widened))).tolist() == [list(range(256))]


def test_all_kinds_of_files_count_for_everybody(tmp_path):
    for number, name in enumerate(["a.tif", "b.gif", "c.ppm", "d.webp"]):
        Image.new("RGB", (8, 8), (60 * number,) * 3).save(
            tmp_path / name, **({"lossless": True} if number == 3 else {})
        )
    levels = load_folder(tmp_path, 4, (1, 8, 8), 0).mean((1, 2, 3)).mul(255 / 60).round().int().tolist()
    assert sorted(levels) == [0, 1, 2, 3]


def test_data_sets_by_name_are_decoded_alike(monkeypatch):
    """What a package hands over is a picture as it was stored."""
    from netgraft.data import named

    stored = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(np.zeros((4, 8), np.uint8))
    upright.getexif().update(exif)

    class Data(list):
        targets = (0, 1)

    monkeypatch.setattr(named, "_create", lambda *_, **__: Data([(stored, 0), (upright, 1)]))
    first, second = (open_data("torch/cifar10")[i][0] for i in (0, 1))
    assert (first.mode, first.getpixel((0, 0)), second.size) == ("RGB", (255, 255, 255), (4, 8))
