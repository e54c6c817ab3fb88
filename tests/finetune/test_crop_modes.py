"""Crop modes: where in the picture the crop is, by pictures whose pixels tell their place."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import settings, write_nets
from torchvision.transforms import functional as F

from netgraft.data.pictures import LabelledPictures
from netgraft.errors import UnknownName, UsageError
from netgraft.finetune.engine.loader import Augmentation, Views
from netgraft.finetune.engine.processes import Processes
from netgraft.finetune.engine.sets import make_loader
from netgraft.models.normalisation import Normalisation

STILL = {"hflip": 0, "color_jitter": 0, "scale": (1, 1), "ratio": (1, 1)}


def picture(height, width):
    """Noise in three channels: no two windows of it are alike."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def views(image, size, **options):
    pictures = LabelledPictures("one", "train", ("a",), (0,), ("0",), lambda item, edge: image)  # noqa: ARG005
    return Views(pictures, (3, size, size), Normalisation((0,), (1,)), Augmentation(**{**STILL, **options}))


def places(image, size, **options):
    """(top, left) of the crops of so many views, in ``image`` as it is resized; fails where one is no window of it."""
    found, resized = set(), options.pop("resized", image)
    pixels = F.to_tensor(resized)
    seen = views(image, size, **options)
    for view in range(60):
        crop = seen.images([0], view)[0]
        assert crop.shape == (3, size, size)
        tops = [
            (top, left)
            for top in range(pixels.shape[1] - size + 1)
            for left in range(pixels.shape[2] - size + 1)
            if torch.equal(pixels[:, top : top + size, left : left + size], crop)
        ]
        assert len(tops) == 1
        found.update(tops)
    return found


def test_resized_and_cropped_anywhere():
    """16 of 20 pixels: the picture is as large as it is resized to, and every edge of it is seen."""
    found = places(picture(20, 23), 16, train_crop_mode="rc", crop_pct=0.8)
    assert {top for top, _ in found} == set(range(5))
    assert {left for _, left in found} == set(range(8))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 80), (10, 10)])
def test_the_shorter_edge_is_resized(height, width):
    """As torchvision's Resize does, bilinear; smaller pictures grow."""
    image = picture(height, width)
    found = places(image, 14, train_crop_mode="rc", resized=F.resize(image, 16))  # 14 / 0.875
    assert {top for top, _ in found} == {0, 1, 2}


def test_modes_of_timm():
    """Without random scales and aspects: rkrc takes the middle of the longer edge, rkrr any part of it."""
    image = picture(16, 22)
    assert places(image, 16, train_crop_mode="rkrc") == {(0, 3)}
    assert places(image, 16, train_crop_mode="rkrr") == {(0, left) for left in range(7)}


def test_the_same_view_is_the_same_crop():
    seen = views(picture(20, 23), 16, train_crop_mode="rc")
    crops = [seen.images([0], view) for view in (0, 1, 0)]
    assert torch.equal(crops[0], crops[2])
    assert not torch.equal(crops[0], crops[1])


def test_each_option_is_in_the_key_of_a_cache():
    """Also where timm's own text is the same: it rounds."""
    image = picture(8, 8)
    changed = ({"train_crop_mode": mode} for mode in ("rkrc", "rkrr", "rc"))
    given = [{}, *changed, {"train_crop_mode": "rc", "crop_pct": 0.87501}, {"scale": (0.99999, 1)}]
    keys = {repr(views(image, 8, **options).key()) for options in given}
    assert len(keys) == len(given)


def test_settings_reach_the_images(tmp_path):
    folder = write_nets(tmp_path)
    chosen = settings(folder, aug=True, train_crop_mode="rc", crop_pct=0.5)
    image = picture(8, 8)
    pictures = LabelledPictures("one", "train", ("a",), (0,), ("0",), lambda item, edge: image)  # noqa: ARG005
    loader = make_loader(chosen, (1, 8, 8), Normalisation(), pictures, {}, Processes("cpu"))
    augmentation = loader.target.augmentation
    assert (augmentation.train_crop_mode, augmentation.crop_pct) == ("rc", 0.5)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"train_crop_mode": "random"}, UnknownName, "rkrc"),
        ({"train_crop_mode": "rc", "crop_pct": 0.0}, UsageError, "--crop-pct"),
        ({"crop_pct": 0.5}, UsageError, "--train-crop-mode rc"),
    ],
    ids=lambda value: str(value),
)
def test_wrong_values_are_refused(tmp_path, given, error, words):
    with pytest.raises(error, match=words):
        settings(tmp_path, **given)
