"""Pictures of what a method makes of test images: their pixels, when they are written, and when they are not."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import Killed, Killer, other_folder, train, training, with_source, write_nets

from netgraft.data.opening import load_data
from netgraft.errors import UsageError
from netgraft.finetune.engine.pictures import GAP, mosaic, write_pictures

MEAN, STD = (0.4,), (0.3,)
CETL = {"method": "cetl", "set": {"config": "e"}, "epochs": 3, "mean": MEAN, "std": STD, "pictures": 5}


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def tiles(picture, rows, count, edge):
    """The images of a picture, [rows, n, edge, edge], as they stand in it, and what lies between them."""
    pixels = np.array(picture)
    side = edge + GAP
    assert pixels.shape[:2] == (rows * side + GAP, count * side + GAP)
    found = np.stack(
        [
            np.stack([pixels[GAP + r * side :][:edge, GAP + c * side :][:, :edge] for c in range(count)])
            for r in range(rows)
        ]
    )
    between = pixels.astype(int).sum() - found.astype(int).sum()
    assert between == 255 * (pixels.size - found.size), "white"
    return found


def test_cetls_pictures_are_what_its_modules_compute(folder):
    """Recomputed from the saved state, module by module, for the first test images."""
    chosen = with_source(folder, **CETL)
    result, _ = train(chosen)
    assert [path.name for path in result.pictures] == ["epoch-3.png"]
    picture = Image.open(result.pictures[0])
    assert picture.mode == "L"
    assert picture.text["rows"] == "x, T1 o S(x), T1 o T2(x)"
    found = tiles(picture, 3, 5, 64)  # of 8x8, enlarged eight times
    small = found[:, :, ::8, ::8]
    assert np.array_equal(small.repeat(8, 2).repeat(8, 3), found)

    again = training(chosen)
    state = torch.load(folder / "run" / "state.pt", weights_only=True)["modules"]
    modules = {name: part.module.eval() for name, part in again.parts.items()}
    for name, module in modules.items():
        module.load_state_dict(state[name])
    x = load_data("netgraft:digits", size=(1, 8, 8), mean=MEAN, std=STD, split="test").images[:5]
    pair, seen = again.run.pairs[-1], {}
    for name, module in (("source", again.run.source_module), ("target", modules["target"])):
        layer = module.get_submodule(getattr(pair, name))
        layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        with torch.no_grad():
            module(x)
    with torch.no_grad():
        made = [modules["decoder"](modules[f"{name}_adapter"](seen[name])) for name in ("source", "target")]
    for row, values in zip(small, (x, *made), strict=True):
        shades = (values[:, 0].double().numpy() * STD[0] + MEAN[0]).clip(0, 1) * 255
        assert np.abs(row - shades).max() <= 0.5 + 1e-3
    assert small[1:].std() > 1, "not one shade"


def test_a_resumed_training_leaves_the_same_pictures(folder):
    """They are in each folder after every second epoch and the last; making them changes no weight."""
    chosen = with_source(folder, **CETL | {"epochs": 5, "picture_interval": 2, "recovery_interval": 2})
    _, whole = train(other_folder(chosen, "whole"))
    killed = other_folder(chosen, "killed")
    with pytest.raises(Killed):
        train(killed, watch=Killer(13))
    assert pictures(folder / "killed") == {"epoch-2.png": pictures(folder / "whole")["epoch-2.png"]}
    train(killed, resume=True)
    assert pictures(folder / "killed") == pictures(folder / "whole")
    assert set(pictures(folder / "whole")) == {"epoch-2.png", "epoch-4.png", "epoch-5.png"}
    _, without = train(with_source(folder, **CETL | {"epochs": 5, "pictures": 0}))
    assert all(torch.equal(without[name], tensor) for name, tensor in whole.items())
    assert not pictures(folder / "run")
    train(with_source(folder, **CETL | {"out": str(folder / "whole"), "epochs": 1}), force=True)
    assert set(pictures(folder / "whole")) == {"epoch-1.png"}, "those of the training before are gone"


def pictures(path):
    return {file.name: file.read_bytes() for file in (path / "pictures").glob("*")}


def test_other_methods_write_none(folder):
    result, _ = train(with_source(folder, method="fm"))
    assert result.pictures == ()
    assert not (folder / "run" / "pictures").exists()


class Shower:
    """One row, of another shape where it is told so."""

    def __init__(self, rows):
        self.rows = rows

    def pictures(self, run, images, parts):  # noqa: ARG002
        return {"row": images[: self.rows]}


def test_rows_of_another_shape_are_refused(folder):
    found = training(with_source(folder, method="fm"))
    test, written = found.prepared.judge.test, []
    out = SimpleNamespace(write_picture=lambda epoch, content: written.append((epoch, content)))
    with pytest.raises(UsageError, match="shape of the images") as refused:
        write_pictures(Shower(2), found.run, found.parts, test, 3, out)
    assert "row: (2, 1, 8, 8)" in refused.value.where
    assert written == []
    write_pictures(Shower(None), found.run, found.parts, test, 10**6, out)
    ((epoch, content),) = written
    assert epoch == 1
    assert tiles(Image.open(io.BytesIO(content)), 1, len(test), 64).shape[1] == len(test), "no more than there are"


def test_colours_and_large_images():
    """Three channels, not enlarged from 64 pixels on; values below 0 are black, above 1 white."""
    rows = [torch.rand(2, 3, 64, 40, generator=torch.Generator().manual_seed(row)) * 1.4 - 0.2 for row in range(2)]
    picture = mosaic(rows).numpy()
    assert picture.shape == (2 * 66 + GAP, 2 * 42 + GAP, 3)
    for row in range(2):
        for place in range(2):
            seen = picture[GAP + row * 66 :][:64, GAP + place * 42 :][:, :40]
            expected = np.round(rows[row][place].numpy().clip(0, 1) * 255).transpose(1, 2, 0)
            assert np.array_equal(seen, expected)
