"""Images chosen by what the source's batch norms remember, and images mixed before the source is asked."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.nets import Straight
from support.staged import check_pass, grafted, taught
from support.stages import network, stage
from torch import nn

from netgraft import plugins
from netgraft.data.images import ImageSource
from netgraft.data.mixing import mix_latter_half
from netgraft.errors import UsageError
from netgraft.passes._choosing import departures, nearest_to_statistics
from netgraft.passes._drawing import draw
from netgraft.passes.distil import Distil

SIZE = (3, 16, 16)
FAST = {"steps": 3, "images": 64, "batch": 32, "lr": 5e-3}
ANY = {"mixing": "none", "choose": "any", "candidates": 3, "batch": 32}


def source():
    return taught(lambda: Straight(((8, 3), (12, 3)), 5), SIZE)


def wider():
    return Straight(((12, 5), (16, 3)), 7)


def inputs_of_norms(net, images):
    """What each norm is given, with the norms applied by hand: ``[images, channels, H, W]`` in float64."""
    module, found = net.module.double(), []
    x = (images.double() - 0.5) / 0.5
    for conv, norm in zip(module.convs, module.norms, strict=True):
        x = conv(x)
        found.append(x.numpy())
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        x = F.relu((x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None])
    net.module.float()
    return found


def divergence(net, images):
    """KL(the images' normal distribution || the running one), the mean over channels and layers."""
    found = []
    for x, norm in zip(inputs_of_norms(net, images), net.module.norms, strict=True):
        mean, variance = (each.double().numpy() for each in (norm.running_mean, norm.running_var))
        r, away = x.var((0, 2, 3)) / variance, x.mean((0, 2, 3)) - mean
        found.append((0.5 * (r - 1 - np.log(r) + away**2 / variance)).mean())
    return np.mean(found)


def test_chosen_images_are_nearer_than_random_ones():
    """By the divergence computed by hand, of several times as many images of other kinds than the source knows."""
    work = stage(source(), source())
    work.pictures = ImageSource("strokes")
    images = work.images(600, 5)
    chosen = nearest_to_statistics(work, images, 150, 50)
    assert len(set(chosen.places.tolist())) == 150
    assert chosen.places.tolist() == sorted(chosen.places.tolist())
    ours = divergence(work.source, images[chosen.places])
    rng = np.random.default_rng(0)
    random = [divergence(work.source, images[rng.choice(600, 150, replace=False)]) for _ in range(20)]
    assert ours < 0.5 * min(random)
    assert chosen.of_chosen < chosen.of_all


def test_departures_are_those_of_the_formula():
    work = stage(source(), source())
    images = work.images(12, 5)
    found = departures(work, images).double().numpy()
    by_hand = []
    for x, norm in zip(inputs_of_norms(work.source, images), work.source.module.norms, strict=True):
        mean, variance = (each.double().numpy()[:, None, None] for each in (norm.running_mean, norm.running_var))
        spread = np.maximum(variance, 0.01 * variance.mean()) + norm.eps
        first = ((x - mean) / np.sqrt(spread)).mean((2, 3))
        second = (((x - mean) ** 2 - variance) / spread).mean((2, 3)) / np.sqrt(2)
        by_hand.append(np.concatenate([first, second], 1) / np.sqrt(x.shape[1] * 2))
    np.testing.assert_allclose(found, np.concatenate(by_hand, 1), atol=2e-6)
    # Of a set that is near, the squares of the mean departures sum to about twice the divergence.
    near = work.images(800, 7)
    summed = float(departures(work, near).mean(0).square().sum())
    assert summed == pytest.approx(2 * divergence(work.source, near), rel=0.1)


def test_the_choice_is_greedy():
    """Against the definition: each next image makes the sum of departures the shortest that it can be."""
    work = stage(source(), source())
    images = work.images(60, 5)
    seen = departures(work, images).double().numpy()
    total, left = np.zeros(seen.shape[1]), list(range(60))
    for _ in range(20):
        best = min(left, key=lambda place: ((total + seen[place]) ** 2).sum())
        total += seen[best]
        left.remove(best)
    chosen = nearest_to_statistics(work, images, 20, 32)
    assert chosen.places.tolist() == sorted(set(range(60)) - set(left))
    assert chosen.of_chosen == pytest.approx(((total / 20) ** 2).sum(), rel=1e-5)
    assert chosen.of_all == pytest.approx((seen.mean(0) ** 2).sum(), rel=1e-5)


class Tokens(nn.Module):
    """A norm over the tokens of all images, and one that sees features of none."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm1d(8)
        self.odd, self.head = nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)
        x = self.norm(x.flatten(0, 1)).reshape(x.shape)
        x = x + self.odd(x.mean((0, 1))[None].expand(3, 8)).mean(0)
        return self.head(x.mean(1))


def test_norms_over_tokens_count_and_those_that_see_no_single_image_do_not():
    work = stage(network(Tokens, SIZE), network(Tokens, SIZE))
    images = work.images(8, 0)
    found = departures(work, images)
    assert found.shape == (8, 16)
    tokens = work.source.module.conv((images - 0.5) / 0.5).flatten(2)
    assert torch.allclose(found[:, :8], tokens.mean(2) / (1 + 1e-5) ** 0.5 / 8**0.5, atol=1e-6)


def test_a_source_without_batch_norms_is_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x):
            return self.head(F.relu(self.conv(x)).mean((2, 3)))

    work = grafted(network(Bare, SIZE), wider)
    with pytest.raises(UsageError, match="no batch norms") as caught:
        Distil(**FAST, choose="statistics")(work)
    assert "choose=statistics" in str(caught.value.hint)


@pytest.mark.parametrize("mixing", ["cutmix", "mixup", "both"])
def test_half_of_the_images_are_mixed_with_the_other_half(mixing):
    images = torch.rand(101, 3, 8, 8)
    before = images.clone()
    mix_latter_half(images, mixing, 0)
    assert torch.equal(images[:50], before[:50])
    rectangles = 0
    for k in range(50, 101):
        shares = []
        for other in before[:50]:
            share = (images[k] - before[k]) / (other - before[k])
            plain = ((share - share.flatten()[0]).abs() < 1e-3).all()
            cut = ((images[k] == before[k]) | (images[k] == other)).all()
            shares.append((bool(plain), bool(cut)))
        rectangles += any(cut for _, cut in shares)
        assert any(plain or cut for plain, cut in shares), k
    expected = {"cutmix": (51, 51), "mixup": (0, 0), "both": (26, 26)}[mixing]
    assert expected[0] <= rectangles <= expected[1]
    again = before.clone()
    mix_latter_half(again, mixing, 0)
    assert torch.equal(images, again)
    mix_latter_half(again, "none", 0)
    assert torch.equal(images, again)


def test_few_images_are_mixed_or_left():
    for count in range(4):
        images = torch.rand(count, 1, 4, 4)
        mix_latter_half(images, "both", 0)
        assert images.isfinite().all()


def test_the_source_answers_what_is_mixed_and_images_held_out_stay_as_they_are(monkeypatch):
    work = grafted(source(), wider)
    plain, _ = draw(work, 64, 64, 1, **ANY)
    mixed, _ = draw(work, 64, 64, 1, **ANY | {"mixing": "mixup"})
    assert torch.equal(mixed[:32], plain[:32])
    assert not (mixed[32:64] == plain[32:64]).flatten(1).all(1).any()
    assert torch.equal(mixed[64:], plain[64:])
    asked = []
    forward = work.source.module.forward
    monkeypatch.setattr(work.source.module, "forward", lambda x: asked.append(x.clone()) or forward(x))
    Distil(**FAST | {"images": 64}, mixing="mixup")(work)
    assert torch.equal(torch.cat(asked)[:64], (mixed[:64] - 0.5) / 0.5)


def test_candidates_are_drawn_and_the_best_taken():
    work = grafted(source(), wider)
    work.pictures = ImageSource("strokes")
    drawn, report = draw(work, 64, 20, 1, **ANY | {"choose": "statistics", "candidates": 4})
    every = work.images(4 * 64 + 20, seed=1)
    assert torch.equal(drawn[64:], every[-20:])
    assert torch.equal(drawn[:64], every[nearest_to_statistics(work, every[:256], 64, 32).places])
    assert report["chosen"]["of"] == 256
    assert report["chosen"]["departure"] < report["chosen"]["departure_of_all"]


@pytest.mark.parametrize("options", [{"mixing": "both"}, {"choose": "statistics"}], ids=str)
def test_the_pass_ends_in_the_same_bytes_and_in_others_than_without(options):
    work = grafted(source(), wider)
    report, start, _ = check_pass(Distil(**FAST, **options), work)
    with_it = {key: tensor.clone() for key, tensor in work.target.module.state_dict().items()}
    work.target.module.load_state_dict(start)
    torch.manual_seed(work.seed)
    Distil(**FAST)(work)
    assert not torch.equal(with_it["convs.0.weight"], work.target.module.convs[0].weight)
    lines = list(Distil.lines(report))
    assert any("chosen from 192" in line for line in lines) == ("choose" in options)


def test_options():
    assert plugins.create("passes", "distil", {"mixing": "both", "candidates": "4"}) == Distil(
        mixing="both", candidates=4
    )
    for bad in ({"mixing": "cut"}, {"choose": "best"}, {"candidates": 1}):
        with pytest.raises(UsageError):
            plugins.create("passes", "distil", bad)
    recipe = plugins.create("recipes", "distil", {"mixing": "cutmix", "choose": "statistics", "start": "scratch"})
    work = grafted(source(), wider)
    wanted = dict(recipe.passes(work.source.graph, work.target.graph))["distil"]
    assert (wanted["mixing"], wanted["choose"]) == ("cutmix", "statistics")
