"""Unlabelled images from a folder, made here with Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from netgraft.data.unlabelled import image_files, load_folder
from netgraft.errors import UsageError


def gradient(width, height):
    """A picture whose red says the column, green the row (0 to 255 over the picture), blue 128."""
    x, y = np.linspace(0, 255, width), np.linspace(0, 255, height)
    return np.stack(np.broadcast_arrays(x[None, :], y[:, None], 128.0), -1).round().astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for k, name in enumerate(["a.png", "b.PNG", "deep/c.bmp", "deep/er/d.webp", "e.jpg", "f.jpeg"]):
        Image.new("RGB", (20, 30), (40 * k, 40 * k, 40 * k)).save(tmp_path / name, quality=100)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.png").write_text("not an image either")
    return tmp_path


def test_files_are_found_recursively(folder):
    names = [file.relative_to(folder).as_posix() for file in image_files(folder)]
    assert names == ["a.png", "b.PNG", "deep/c.bmp", "deep/er/d.webp", "e.jpg", "f.jpeg"]


@pytest.mark.parametrize("channels", [1, 3])
def test_each_file_comes_once_in_a_seeded_order(folder, channels):
    images = load_folder(folder, 6, (channels, 8, 8), 0)
    assert images.shape == (6, channels, 8, 8)
    assert images.dtype == torch.float32
    levels = images.mean((1, 2, 3)).mul(255 / 40).round().int().tolist()
    assert sorted(levels) == [0, 1, 2, 3, 4, 5]
    assert torch.equal(images, load_folder(folder, 6, (channels, 8, 8), 0))
    orders = {tuple(load_folder(folder, 6, (1, 8, 8), seed).mean((1, 2, 3)).tolist()) for seed in range(5)}
    assert len(orders) > 1


def test_too_few_files_come_whole_once_and_then_as_crops(folder):
    images = load_folder(folder, 15, (1, 8, 8), 0)
    assert torch.equal(images[:6], load_folder(folder, 6, (1, 8, 8), 0))
    assert len({image.numpy().tobytes() for image in images}) > 10  # where each is of one grey, crops may be alike


def test_a_wide_picture_is_scaled_to_cover_and_cropped_around_its_centre(tmp_path):
    Image.fromarray(gradient(200, 100)).save(tmp_path / "wide.png")
    red, green, blue = load_folder(tmp_path, 1, (3, 50, 50), 0)[0]
    assert red[:, 0].mean() == pytest.approx(0.25, abs=0.02)
    assert red[:, -1].mean() == pytest.approx(0.75, abs=0.02)
    assert green[0].mean() == pytest.approx(0, abs=0.02)
    assert green[-1].mean() == pytest.approx(1, abs=0.02)
    assert blue.mean() == pytest.approx(128 / 255, abs=0.005)


def test_a_tall_picture_and_another_shape(tmp_path):
    Image.fromarray(gradient(90, 300)).save(tmp_path / "tall.png")
    red, green, _ = load_folder(tmp_path, 1, (3, 20, 60), 0)[0]
    assert red[:, -1].mean() - red[:, 0].mean() > 0.95
    assert green[0].mean() == pytest.approx(0.45, abs=0.02)
    assert green[-1].mean() == pytest.approx(0.55, abs=0.02)


def test_small_pictures_are_enlarged(tmp_path):
    Image.fromarray(gradient(4, 4)).save(tmp_path / "small.png")
    assert load_folder(tmp_path, 1, (3, 32, 32), 0).shape == (1, 3, 32, 32)


def test_grey_is_luminance(tmp_path):
    Image.new("RGB", (9, 9), (255, 0, 0)).save(tmp_path / "red.png")
    assert load_folder(tmp_path, 1, (1, 8, 8), 0).mean() == pytest.approx(0.299, abs=0.003)
    assert load_folder(tmp_path, 1, (3, 8, 8), 0).mean((0, 2, 3)).tolist() == [1, 0, 0]


def test_palettes_transparency_and_sixteen_bits(tmp_path):
    clear = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
    half = Image.new("RGB", (9, 9), (200, 100, 50)).convert("P", palette=Image.Palette.ADAPTIVE)
    deep = Image.fromarray(np.full((9, 9), 128 * 256 + 10, dtype=np.uint16))
    one = Image.new("1", (9, 9), 1)
    expected = {"clear": 1.0, "half": 350 / 3 / 255, "deep": 128 / 255, "one": 1.0}
    for name, image in {"clear": clear, "half": half, "deep": deep, "one": one}.items():
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "x.png")
        assert load_folder(tmp_path / name, 1, (3, 8, 8), 0).mean() == pytest.approx(expected[name], abs=0.005), name


def test_photographs_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(gradient(64, 64)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    red, green, _ = load_folder(tmp_path, 1, (3, 32, 32), 0)[0]
    assert red[-1].mean() - red[0].mean() > 0.8  # what was left is now at the top
    assert green[:, 0].mean() - green[:, -1].mean() > 0.8


@pytest.mark.parametrize("content", [b"", b"this is text", b"\x89PNG\r\n\x1a\n broken"])
def test_a_broken_file_is_named(folder, content):
    (folder / "deep" / "broken.png").write_bytes(content)
    with pytest.raises(UsageError, match=r"broken\.png"):
        load_folder(folder, 7, (3, 8, 8), 0)


def test_a_truncated_file_is_named(folder):
    whole = folder / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
    whole.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(UsageError, match=r"cut\.png"):
        load_folder(folder, 7, (3, 8, 8), 0)


def test_missing_empty_and_wrong_folders(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no such picture, or folder"):
        load_folder(tmp_path / "nowhere", 1, (3, 8, 8), 0)
    with pytest.raises(UsageError, match="no images in this folder"):
        load_folder(tmp_path / "empty", 1, (3, 8, 8), 0)
    with pytest.raises(UsageError, match=r"cannot be read.*") as caught:
        load_folder(folder / "notes.txt", 1, (3, 8, 8), 0)
    assert "notes.txt" in str(caught.value.where)
    with pytest.raises(UsageError, match="4 channels"):
        load_folder(folder, 1, (4, 8, 8), 0)
