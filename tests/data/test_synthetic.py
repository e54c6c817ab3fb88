"""Normalising, and joining a folder with synthetic images."""

import pytest
import torch
from PIL import Image

from netgraft.data.synthetic import join_folder, make_images, normalise
from netgraft.errors import UsageError


def test_normalise_is_per_channel_and_leaves_its_argument():
    images = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3, 1, 1).repeat(2, 1, 2, 2)
    before = images.clone()
    result = normalise(images, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    assert torch.equal(images, before)
    assert result[0, :, 0, 0].tolist() == [-1.0, 1.0, 0.5]
    assert torch.equal(normalise(images, (0.5,), (0.25,)), (images - 0.5) / 0.25)


def test_normalise_refuses_other_counts():
    with pytest.raises(UsageError, match="3 channels"):
        normalise(torch.zeros(1, 3, 2, 2), (0.5, 0.5), (0.5,))


@pytest.mark.parametrize(("share", "found"), [(0, 0), (0.3, 6), (1, 20)])
def test_a_folder_joins_synthetic_images_by_share(tmp_path, share, found):
    Image.new("L", (16, 16), 51).save(tmp_path / "a.png")
    images = join_folder(tmp_path, share, "noise", 20, (1, 16, 16), 3)
    real = torch.isclose(images, torch.tensor(0.2)).all((1, 2, 3))
    assert int(real.sum()) == found
    assert torch.equal(images, join_folder(tmp_path, share, "noise", 20, (1, 16, 16), 3))
    if share == 0.3:
        assert not real[:found].all()  # shuffled
    made = make_images("noise", 20 - found, (1, 16, 16), 3)
    assert {image.numpy().tobytes() for image in made} == {image.numpy().tobytes() for image in images[~real]}


def test_a_share_beyond_one_is_refused(tmp_path):
    with pytest.raises(UsageError, match="between 0 and 1"):
        join_folder(tmp_path, 1.5, "noise", 20, (1, 16, 16), 3)
