"""What an initialisation carries, against truths that know nothing of how it is measured."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge as TheirRidge
from sklearn.metrics import r2_score
from support.nets import Straight, traced, weights
from torch import nn

from netgraft.data.images import ImageSource
from netgraft.data.unlabelled import held_out_files, image_files, load_folder
from netgraft.evidence import carried
from netgraft.evidence.carried import Carried, Measure, leading, prediction_errors
from netgraft.evidence.parity import Party
from netgraft.evidence.ridge import fit_ridge
from netgraft.plan import Kept, Move, Pairing, Plan

# ---------------------------------------------------------------------------------------------------------- the numbers


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("count", "features"), [(200, 12), (60, 90)])
def test_the_share_is_that_of_scikit_learn(count, features):
    x, fitted = numbers(count, features), count * 3 // 4
    y = leading(x[:, :5] @ numbers(5, 7, seed=1) + 0.5 * numbers(count, 7, seed=2), fitted)
    share = 1 - float(prediction_errors(x, y, fitted).sum())
    one_scale = x[:fitted].double().std(0, correction=0).square().mean().sqrt()
    penalty = fit_ridge(x[:fitted], y[:fitted], each=False).penalty
    theirs = TheirRidge(alpha=penalty).fit(x[:fitted].double() / one_scale, y[:fitted])
    predicted = theirs.predict(x[fitted:].double() / one_scale)
    assert share == pytest.approx(r2_score(y[fitted:], predicted, multioutput="variance_weighted"), abs=1e-6)


def test_the_penalty_on_one_scale_leaves_one_out():
    x, y = numbers(20, 6), numbers(20, 2, seed=1)
    ridge = fit_ridge(x, y, [0.1, 3.0], each=False)
    scaled = ((x - x.mean(0)) / ridge.scale).double().numpy()
    for penalty, error in zip((0.1, 3.0), ridge.errors, strict=True):
        left = []
        for out in range(20):
            rest = np.arange(20) != out
            fit = TheirRidge(alpha=penalty).fit(scaled[rest], y.numpy()[rest])
            left.append(fit.predict(scaled[out : out + 1])[0] - y.numpy()[out])
        assert error == pytest.approx(float(np.square(left).mean()), rel=1e-5)


def heavy_tailed(count, width):
    """Features as a deep network has them: few strong directions, many weak ones, most of the time off."""
    return (
        numbers(count, width) @ torch.diag(torch.arange(1.0, width + 1) ** -1) @ numbers(width, width, seed=1)
    ).relu()


@pytest.mark.parametrize("count", [48, 640])
def test_few_images_are_enough_to_know_the_same_features_again(count):
    features, fitted = heavy_tailed(count, 300), count * 3 // 4
    wanted = leading(features, fitted)
    assert float(prediction_errors(features, wanted, fitted).sum()) < 1e-3
    mixed = features @ numbers(300, 300, seed=2) / 300**0.5 + 3
    assert float(prediction_errors(mixed, wanted, fitted).sum()) < 0.05
    assert float(prediction_errors(numbers(count, 300, seed=3), wanted, fitted).sum()) > 0.9
    assert float(prediction_errors(torch.ones(count, 300), wanted, fitted).sum()) >= 1


def test_held_out_images_are_never_among_the_fitted():
    """The held-out part has the opposite of the fit's law: each predicted number is wrong by twice its size."""
    x, fitted = numbers(80, 4), 60
    law = torch.where(torch.arange(80) < fitted, 1.0, -1.0)[:, None]
    variance = float((x[fitted:] - x[fitted:].mean(0)).square().sum())
    expected = 4 * float(x[fitted:].square().sum()) / variance
    assert float(prediction_errors(x, (law * x).double(), fitted).sum()) == pytest.approx(expected, rel=0.01)
    other = numbers(80, 500)
    changed = other.clone()
    changed[fitted:] = 100 * numbers(20, 500, seed=2)
    assert torch.equal(leading(changed, fitted)[:fitted], leading(other, fitted)[:fitted])  # nor choose directions


def test_gain_and_noise_are_those_of_paired_images():
    errors = torch.tensor([0.1, 0.2, 0.05, 0.05], dtype=torch.float64)
    one, other = (Carried(1 - float(each.sum()), each, float("nan")) for each in (errors, errors + 0.01))
    assert one.gain(other) == pytest.approx((0.04, carried.MARGIN))  # equal on every image: nothing but the margin
    other = Carried(0.5, errors + torch.tensor([0.1, 0.0, 0.0, 0.0]), float("nan"))
    gain, noise = one.gain(other)
    assert (gain, noise) == pytest.approx((0.1, 2 * np.std([0.1, 0, 0, 0], ddof=1) * 4**0.5))


# ------------------------------------------------------------------------------------------------------------- networks


MIX = ImageSource()


@dataclass(frozen=True)
class Built:
    """A model as ``netgraft.models`` makes them, from a function that builds it."""

    build: object
    input_size: tuple[int, ...] | None = (3, 16, 16)
    name: str = "net"
    role: str = "target"
    example_inputs: object = None
    file: object = None
    weights: object = None


def party(build, size=(3, 16, 16), state=None, seed=0):
    return Party(Built(build, size), traced(build, size), weights(build, seed) if state is None else state)


def share(source, target, state=None, shown=MIX, **more):
    """What is recorded of what the target carries with ``state``."""
    measure = Measure(source, target, shown, **more)
    plan = Plan("a", "b", "", "", "r", {}, Pairing(()), (), tuple(Kept(key, (), "") for key in target.tensors))
    return measure.record(measure.look(target.tensors if state is None else state), plan)


@pytest.fixture(autouse=True)
def _few_images_plainly_normalised(monkeypatch):
    from netgraft.models.normalisation import Normalisation

    monkeypatch.setattr(carried, "MOST", 200)
    monkeypatch.setattr(carried, "normalisation_of", lambda *_: Normalisation())
    monkeypatch.setattr(carried, "normalisation_for", lambda *_: Normalisation())


def straight(**more):
    return lambda: Straight(((16, 3), (24, 3)), **more)


class Mixed(Straight):
    """What the head reads is an invertible map of what it reads in ``Straight``."""

    def __init__(self):
        super().__init__(((16, 3), (24, 3)))
        self.mix = nn.Linear(24, 24)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)).relu()
        return self.head(self.mix(x.mean((2, 3))))


def test_identical_mixed_random_and_dead():
    source = party(straight())
    same = share(source, party(straight(), state=source.tensors))
    assert (same["share"], same["random"]) == (1, 1)
    mixed = weights(Mixed) | source.tensors
    mixed["mix.weight"] = torch.linalg.qr(mixed["mix.weight"]).Q
    assert share(source, party(Mixed, state=mixed))["share"] > 0.98
    random = share(source, party(straight(classes=3), seed=1))
    assert random["share"] < 0.9
    dead = {key: torch.zeros_like(value) for key, value in source.tensors.items()}
    told = share(source, party(straight(), seed=1), dead)
    assert (told["share"], 0 < told["random"] < 0.9) == (0, True)
    assert told["images"] == "mosaic"
    assert told["fitted"] == 3 * told["held_out"] == 150


def trunk():
    net = Straight(((16, 3), (24, 3)))
    net.head = nn.Identity()
    return net


def test_a_trunk_gives_what_a_head_would_read():
    source = party(straight())
    state = {key: value for key, value in source.tensors.items() if not key.startswith("head.")}
    assert share(source, party(trunk, state=state))["share"] == 1


def test_agreement_where_the_head_is_the_sources():
    source = party(straight())
    head = [Move(f"head.{name}", f"head.{name}", (5,), (5,), (), "") for name in ("weight", "bias")]
    rest = [key for key in source.tensors if not key.startswith("head.")]
    target = party(straight(), state=source.tensors)
    measure = Measure(source, target, ImageSource())
    found = measure.look(target.tensors)
    plan = Plan("a", "b", "", "", "r", {}, Pairing(()), tuple(head), tuple(Kept(key, (), "") for key in rest))
    assert measure.record(found, plan)["agreement"] == 1
    other = {**target.tensors, "head.weight": -target.tensors["head.weight"]}
    assert measure.record(measure.look(other), plan)["agreement"] < 0.5
    kept = replace(plan, moves=(), kept=(*plan.kept, *(Kept(move.key, (), "") for move in head)))
    assert "agreement" not in measure.record(found, kept)


class Words(nn.Module):
    def __init__(self, words=50, width=8):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.hidden = nn.Linear(width, 2 * width)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, tokens):
        return self.head(self.hidden(self.embedding(tokens)).relu().mean(1))


def test_networks_without_images():
    source = party(Words, (12,))
    told = share(source, party(Words, (12,), source.tensors))
    assert (told["share"], told["images"], told["sizes"]["target"]) == (1, "random tokens", [12])
    assert share(source, party(lambda: Words(40), (12,), seed=1))["share"] < 0.9
    told = share(party(straight()), party(Words, (12,)))
    assert told == {"skipped": "the source takes 3x16x16, the target 12"}


class Raises(Straight):
    calls = 0

    def forward(self, x):
        if not x.is_meta and x.shape[0] > 2:
            raise RuntimeError("no more than two, see /home/somebody/secret.py at 0x7f00aa")
        return super().forward(x)


def test_a_network_that_cannot_be_run_is_a_reason_and_no_error():
    told = share(party(straight()), party(Raises))
    assert told["skipped"].startswith("the networks cannot be compared: ")
    assert "secret" not in told["skipped"] or "/home" not in told["skipped"]
    flat = {key: torch.zeros_like(value) for key, value in party(straight()).tensors.items()}
    assert share(party(straight(), state=flat), party(straight()))["skipped"] == (
        "the source's last features do not vary"
    )


def test_large_networks_are_shown_few_and_small_images(monkeypatch):
    sides = party(straight(), (3, 96, 96)), party(straight(), (3, 96, 96), seed=1)
    monkeypatch.setattr(carried, "MOST", 64)
    whole = share(*sides, cost=1e13)["sizes"]["source"]
    small = share(*sides, cost=1e9)
    assert (whole, small["sizes"]["source"], small["sizes"]["target"]) == ([3, 96, 96], [3, 64, 64], [3, 64, 64])
    assert small["fitted"] + small["held_out"] >= carried.LEAST
    monkeypatch.setattr(carried, "LIMIT", 1e6)
    assert "the networks are large" in share(*sides, cost=1e9)["skipped"]
    assert share(*sides, large=True, cost=1e9)["fitted"] == small["fitted"]


def test_the_number_of_threads_and_chance_change_nothing():
    told = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(threads)
        told.append(share(party(straight()), party(straight(), seed=1)))
    torch.set_num_threads(before)
    assert told[0] == told[1]


# ----------------------------------------------------------------------------------------------------------- the images


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        (ImageSource(), "mosaic"),
        (ImageSource("pink"), "mosaic"),
        (ImageSource("mosaic"), "leaves"),
        (ImageSource("mix", {"of": ("mosaic", "noise")}), "leaves"),
    ],
)
def test_images_are_of_another_kind_than_those_shown(shown, name):
    assert shown.held_out() == ImageSource(name)


def folder_of(path, count):
    path.mkdir()
    for i in range(count):
        level = np.full((8, 8), i, np.uint8)
        Image.fromarray(level).save(path / f"{i:03}.png")
    return str(path)


def levels(images):
    return set(images.mean((1, 2, 3)).mul(255).round().int().tolist())


def test_a_part_of_a_folder_is_never_shown(tmp_path):
    folder = folder_of(tmp_path / "many", 256)  # every image has a grey level of its own
    source = ImageSource.of(folder)
    held = source.held_out()
    assert (held.folder, held.most(640), held.most(10)) == (True, 64, 10)
    shown = set().union(*(levels(source.draw(192, (1, 8, 8), seed)) for seed in range(3)))
    kept_back = levels(held.draw(64, (1, 8, 8), 0))
    assert (len(shown), len(kept_back), shown & kept_back) == (192, 64, set())
    few = folder_of(tmp_path / "few", 255)
    assert held_out_files(few) == []
    assert ImageSource.of(few).held_out() == ImageSource("mosaic")
    assert len(levels(load_folder(few, 255, (1, 8, 8), 0))) == len(image_files(few))
    told = share(party(straight(in_chans=1), (1, 8, 8)), party(straight(in_chans=1), (1, 8, 8)), shown=source)
    assert (told["images"], told["fitted"], told["held_out"]) == ("images held out of the folder", 48, 16)


def test_repeated_channels_are_repeated_in_images():
    from netgraft.data.images import shown_as

    class Plain:
        def fitted(self, _):
            return lambda images: images

    colours = numbers(2, 3, 4, 4)
    assert torch.equal(shown_as(colours, (6, 4, 4), Plain()), torch.cat([colours, colours], 1))
    assert torch.equal(shown_as(colours, (1, 4, 4), Plain()), colours.mean(1, keepdim=True))
    assert shown_as(colours, (4, 2, 2), SimpleNamespace(fitted=Plain().fitted)).shape == (2, 4, 2, 2)
