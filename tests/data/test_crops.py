"""Many images out of few pictures, and out of pairs of images."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from support.command_line import run, write_net

from netgraft.data.crops import crops, cut_into_one_another
from netgraft.data.decode import read_picture
from netgraft.data.images import ImageSource
from netgraft.data.mixing import cutmix, mixup
from netgraft.data.unlabelled import held_out_files, load_folder
from netgraft.errors import UsageError
from netgraft.files.checkpoint import read_provenance


@pytest.fixture
def _threads_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def photo(tmp_path):
    """Coarse random colours, so that every place is told from every other."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    file = tmp_path / "photo.jpg"
    Image.fromarray(coarse).resize((240, 180), Image.Resampling.BICUBIC).save(file, quality=95)
    return file


@pytest.mark.parametrize("size", [(3, 32, 32), (1, 16, 16), (3, 40, 17), (3, 300, 310), (1, 4, 90)], ids=str)
def test_one_picture_gives_many(photo, size):
    images = load_folder(photo, 40, size, 0)
    assert images.shape == (40, *size)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    assert torch.equal(images[0], load_folder(photo, 1, size, 5)[0])  # whole, once
    assert len({image.numpy().tobytes() for image in images}) == 40


def test_the_seed_decides(photo):
    images = load_folder(photo, 12, (3, 24, 24), 1)
    torch.manual_seed(5)
    random.seed(5)
    state, python = torch.get_rng_state(), random.getstate()
    assert torch.equal(images, load_folder(photo, 12, (3, 24, 24), 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert not torch.isclose(images[1:], load_folder(photo, 12, (3, 24, 24), 2)[1:]).all((1, 2, 3)).any()


@pytest.mark.usefixtures("_threads_restored")
def test_threads_change_no_bit(photo):
    images = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        images.append(load_folder(photo, 70, (3, 65, 65), 0))
        assert torch.get_num_threads() == threads
    assert torch.equal(*images)


@pytest.mark.parametrize("shape", [(64, 64), (300, 20), (1, 1), (2, 5)], ids=str)
@pytest.mark.parametrize("size", [(3, 33, 33), (1, 9, 40)], ids=str)
def test_no_corner_is_filled_with_black(shape, size):
    """Whatever is turned and sheared, every pixel is one of the picture's; all of this one are white."""
    torch.manual_seed(0)
    for crop in crops(Image.new("RGB", shape, "white"), 60, size):
        assert crop.std() < 1e-6
        assert crop.min() > 0.5


def test_crops_are_small_and_large_turned_and_mirrored():
    """Of a picture whose red and green say where a pixel is: the affine map of each crop is read off it."""
    ramp = np.linspace(0, 255, 256)
    places = np.stack(np.broadcast_arrays(ramp[None], ramp[:, None], 128.0), -1).round().astype(np.uint8)
    torch.manual_seed(1)
    areas, angles, mirrored = [], [], 0
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    design = torch.stack([x.flatten(), y.flatten(), torch.ones(1024)], 1)
    for crop in crops(Image.fromarray(places), 300, (3, 32, 32)):
        if abs(float(crop[2].mean()) - 128 / 255) > 1e-3 or float(crop[2].std()) > 1e-3:
            continue  # recoloured
        found = torch.linalg.lstsq(design, crop[:2].flatten(1).T * 256).solution[:2].T  # d(place in picture) / d(x, y)
        areas.append(float(torch.linalg.det(found).abs()) * 32 * 32 / 256**2)
        mirrored += bool(torch.linalg.det(found) < 0)
        angles.append(float(torch.atan2(found[1, 1], found[0, 1])))
    assert 120 < len(areas) < 180  # half are left in their colours
    assert min(areas) < 0.01
    assert max(areas) > 0.25
    assert 0.35 < mirrored / len(areas) < 0.65
    assert np.std(angles) > 0.15
    assert max(areas) < 1


def test_about_half_of_the_repeated_ones_are_mixed_and_the_others_left():
    images = torch.arange(300.0).reshape(300, 1, 1, 1).expand(300, 3, 16, 16).clone()
    cut_into_one_another(images, 100, 0)
    assert torch.equal(images[:100], torch.arange(100.0).reshape(100, 1, 1, 1).expand(100, 3, 16, 16))
    plain = (images.flatten(1) == torch.arange(300.0)[:, None]).all(1)
    assert 0.4 < float(plain[100:].float().mean()) < 0.65  # some rectangles are empty
    assert {len(image.unique()) for image in images} <= {1, 2, 3, 4}


def test_few_pictures_share_the_crops_evenly(tmp_path):
    for k, colour in enumerate(["red", "lime", "blue"]):
        Image.new("RGB", (30, 30), colour).save(tmp_path / f"{k}.png")
    images = load_folder(tmp_path, 90, (3, 12, 12), 0)
    order = images[:3].mean((2, 3)).argmax(1)
    strongest = images.mean((2, 3)).argmax(1).reshape(30, 3)
    assert (strongest == order).float().mean() > 0.75  # but for the mixed ones, of which some show more of the other


def test_a_rectangle_of_the_other_stands_at_its_own_place():
    generator = torch.Generator().manual_seed(3)
    images, others = torch.rand(400, 2, 20, 30), torch.rand(400, 2, 20, 30) + 2
    found = cutmix(images, others, generator)
    inside = found > 1.5
    assert torch.equal(found, torch.where(inside, others, images))
    assert torch.equal(inside[:, 0], inside[:, 1])
    rows, columns = inside[:, 0].any(2), inside[:, 0].any(1)
    assert torch.equal(inside[:, 0], rows[:, :, None] & columns[:, None, :])  # a box
    for side in (rows, columns):
        assert ((side[:, 1:] & ~side[:, :-1]).sum(1) + side[:, 0] <= 1).all()  # in one piece
    # A box of side s around a uniform place covers, in each direction, s - s^2 / 4 of the image on average; s^2 is
    # uniform, so the expected share is the integral of (s - s^2 / 4)^2 2s ds = 1/2 - 1/5 + 1/48.
    assert inside.float().mean() == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.03)


def test_blended_images_lie_between():
    generator = torch.Generator().manual_seed(3)
    images, others = torch.rand(2000, 1, 4, 4).double(), torch.rand(2000, 1, 4, 4).double()
    found = mixup(images, others, generator)
    share = ((found - images) / (others - images)).flatten(1)
    torch.testing.assert_close(share, share[:, :1].expand_as(share), atol=1e-6, rtol=0)
    ordered = share[:, 0].sort().values
    assert (ordered - torch.linspace(0, 1, 2000)).abs().max() < 0.05  # uniform (Kolmogorov and Smirnov)


@pytest.mark.usefixtures("photo")
def test_what_images_are_is_told_by_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ImageSource.of("photo.jpg") == ImageSource("photo.jpg", folder=True)
    assert ImageSource.of(str(tmp_path)).folder
    (tmp_path / "own.py").write_text("")
    assert not ImageSource.of("own.py").folder
    assert not ImageSource.of("strokes").folder
    with pytest.raises(UsageError, match="no such picture"):
        ImageSource.of("foto.jpg").draw(1, (3, 8, 8), 0)
    (tmp_path / "photo.heic").write_bytes(b"unknown")
    with pytest.raises(UsageError, match="cannot be read"):
        ImageSource.of("photo.heic").draw(1, (3, 8, 8), 0)


def test_nothing_is_held_out_of_a_picture(photo):
    assert held_out_files(photo) == []
    assert ImageSource.of(str(photo)).held_out() == ImageSource("mosaic")


def test_how_images_were_made_is_told(photo, tmp_path):
    source = ImageSource.of(str(photo))
    assert source.made_by(1) == ""
    assert source.made_by(1024).startswith("1,023 of 1,024 images are random crops of 1 picture:")
    assert ImageSource().made_by(1024) == ""
    read_picture(photo).save(tmp_path / "other.png")
    assert ImageSource.of(str(tmp_path)).made_by(5).startswith("3 of 5 images are random crops of 2 pictures:")


@pytest.mark.usefixtures("photo")
def test_a_transfer_from_one_picture_says_so_in_its_ledger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_net(tmp_path)
    command = ("transfer", "netgraft:resnet20-glyphs", "./net.py", "--recipe", "refit", "--images", "photo.jpg")
    written = []
    for name in ("one.safetensors", "two.safetensors"):
        result = run(*command, "--set", "refit_images=24", "-o", name, "--no-receipt")
        assert result.exit_code == 0, result.stderr
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    told = read_provenance(tmp_path / "one.safetensors")
    refit = next(report for report in told["passes"] if report["name"] == "refit")
    assert "images are random crops of 1 picture" in refit["pictures"]
    assert f"refit: {refit['pictures']}" in " ".join(result.stdout.split())
