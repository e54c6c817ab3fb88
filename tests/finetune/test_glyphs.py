"""``netgraft:glyphs``: letters of installed fonts, families apart."""

import numpy as np
import pytest

from netgraft.data import glyphs
from netgraft.data.opening import open_data
from netgraft.errors import UsageError


@pytest.fixture(scope="module")
def splits():
    try:
        return [open_data("netgraft:glyphs", split=split) for split in ("train", "test")]
    except UsageError:
        pytest.skip("this computer has no fonts")


def test_every_font_has_every_letter_twice(splits):
    for pictures in splits:
        counts = np.bincount(pictures.labels, minlength=26)
        fonts = {item.rpartition(":")[0] for item in pictures.items}
        assert set(counts) == {2 * len(fonts)}
        assert pictures.classes == tuple("abcdefghijklmnopqrstuvwxyz")


def test_typefaces_are_on_one_side(splits):
    train, test = (
        {glyphs._family(glyphs._fonts()[f]) for f in glyphs._fonts() if glyphs._fonts()[f].name in names}
        for names in ({item.rpartition(":")[0] for item in pictures.items} for pictures in splits)
    )
    assert train
    assert test
    assert not train & test


def test_pictures(splits):
    """Light ink on dark paper, as large as it fits; letters of one font differ."""
    pictures = splits[0]
    images = np.stack([np.asarray(pictures[i][0]) for i in range(52)])
    assert images.shape == (52, 32, 32)
    assert images.max(axis=(1, 2)).min() > 128
    assert (images[:, 0] == 0).all()
    assert len({image.tobytes() for image in images}) >= 50
    again = np.asarray(open_data("netgraft:glyphs").read(pictures.items[0], 0))
    assert (again == images[0]).all()


@pytest.mark.usefixtures("splits")
def test_the_embedded_net_reads_them():
    """It was trained on augmented renders of such letters: far better than chance on typefaces of the test side."""
    import torch

    from netgraft.data.opening import load_data
    from netgraft.models.model import load_model, read_weights

    data = load_data("netgraft:glyphs", size=(1, 16, 16), mean=(0.5,), std=(0.35,), split="test")
    model = load_model("netgraft:resnet20-glyphs", role="source")
    net = model.build()
    net.load_state_dict(read_weights(model).tensors)
    with torch.no_grad():
        right = net.eval()(data.images).argmax(1) == data.labels
    assert float(right.float().mean()) > 0.6


def test_no_fonts(monkeypatch):
    monkeypatch.setattr(glyphs, "_fonts", dict)
    with pytest.raises(UsageError, match="too few fonts") as caught:
        open_data("netgraft:glyphs")
    assert "matplotlib" in caught.value.hint
