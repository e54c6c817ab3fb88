"""Every generator keeps the laws, and looks like what it claims by statistics that know nothing of how it draws."""

import itertools
import math

import pytest
import torch

from netgraft import plugins
from netgraft.data.generators import _draw
from netgraft.data.generators._programs import fold, standard
from netgraft.data.synthetic import GENERATORS, make_images
from netgraft.errors import UnknownName, UsageError

NAMES = ["blobs", "leaves", "mix", "mosaic", "noise", "pink", "shaders", "strokes"]
SIZES = [(1, 8, 8), (3, 8, 8), (1, 17, 30), (3, 32, 32), (5, 16, 16), (2, 64, 9), (3, 130, 200), (1, 384, 384)]


@pytest.fixture
def _threads_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def clean(name, count, size, seed=1):
    """Images without shading and noise."""
    return make_images(name, count, size, seed, {"shading": 0} | ({} if name == "noise" else {"noise": 0}))


# ---------------------------------------------------------------------------------------------------------------- laws


def test_every_generator_of_the_folder_is_tested_here():
    assert list(plugins.listing(GENERATORS)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_generator_explains_itself(name):
    assert plugins.listing(GENERATORS)[name].summary.endswith(".")
    assert all(option.doc for option in plugins.options(plugins.load(GENERATORS, name)))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_shape_type_and_range(name, size):
    images = make_images(name, 3, size, 0)
    assert images.shape == (3, *size)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.flatten(1).std(1).min() > 1e-3  # none is blank


@pytest.mark.parametrize("name", NAMES)
def test_no_images_are_no_images(name):
    assert make_images(name, 0, (3, 16, 16), 0).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name):
    size = (3, 16, 16)
    images = make_images(name, 6, size, 7)
    assert torch.equal(images, make_images(name, 6, size, 7))
    assert not torch.isclose(images, make_images(name, 6, size, 8)).all((1, 2, 3)).any()
    assert len({image.numpy().tobytes() for image in images}) == 6


@pytest.mark.parametrize("name", NAMES)
def test_global_random_state_is_neither_used_nor_changed(name):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    images = make_images(name, 2, (1, 16, 16), 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(make_images(name, 2, (1, 16, 16), 0), images)


@pytest.mark.usefixtures("_threads_restored")
@pytest.mark.parametrize("size", [(1, 16, 16), (3, 200, 210)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_threads_change_no_bit_and_their_number_is_left_alone(name, size):
    images = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        images.append(make_images(name, 12, size, 0))
        assert torch.get_num_threads() == threads
    assert torch.equal(*images)


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 384, 384)], ids=str)
def test_images_are_drawn_in_chunks_of_bounded_memory(size):
    calls = []

    def draw(count, size, generator):
        calls.append(count * math.prod(size))
        return torch.rand(count, *size, generator=generator)

    count = 2 * 2**20 // math.prod(size) + 1
    images = _draw.draw_in_chunks(draw, count, size, torch.Generator().manual_seed(0))
    assert max(calls) <= 2**20
    assert sum(calls) == images.numel()
    assert images.flatten(1).amax(1).min() > 0.5  # all were drawn


# ------------------------------------------------------------------------------------------------------------ the looks


def amplitude_slope(images):
    """The slope of log amplitude against log frequency, averaged over directions, images and channels."""
    side = images.shape[-1]
    window = torch.hann_window(side, periodic=False)
    images = (images - images.mean((2, 3), keepdim=True)) * window[:, None] * window
    power = torch.fft.fft2(images).abs().square().mean((0, 1))
    frequency = torch.fft.fftfreq(side).square()
    radius = (frequency[:, None] + frequency).sqrt()
    edges = torch.logspace(math.log10(3.5 / side), math.log10(0.4), 12)
    bands = list(itertools.pairwise(edges))
    y = torch.stack([power[(radius >= low) & (radius < high)].mean().sqrt() for low, high in bands]).log()
    x = torch.stack([(low * high).sqrt() for low, high in bands]).log()
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def flat_share(images):
    """The share of neighbours in a row that are the same."""
    return float(((images[..., 1:] - images[..., :-1]).abs() < 1e-5).float().mean())


def extreme_share(images):
    """The share of values within 5 % of their image's and channel's least or greatest."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    relative = (images - low) / (high - low)
    return float(((relative < 0.05) | (relative > 0.95)).float().mean())


def ink_share(images):
    """The share of values far from their image's and channel's median, by a quarter of the range."""
    span = images.amax((2, 3), keepdim=True) - images.amin((2, 3), keepdim=True)
    median = images.flatten(2).median(2).values[..., None, None]
    return float(((images - median).abs() > span / 4).float().mean())


def neighbour_correlation(images):
    images = images - images.mean((2, 3), keepdim=True)
    return float((images[..., 1:] * images[..., :-1]).mean() / images.square().mean())


def evenness(images):
    """Mean over root mean square of the steps between neighbours: small where few edges part plain surfaces."""
    step = images[..., 1:] - images[..., :-1]
    return float(step.abs().mean() / step.square().mean().sqrt())


@pytest.mark.parametrize("size", [(1, 64, 64), (3, 96, 96)], ids=str)
def test_pink_falls_as_one_over_frequency(size):
    assert amplitude_slope(make_images("pink", 48, size, 1)) == pytest.approx(-1, abs=0.12)
    assert amplitude_slope(make_images("pink", 48, size, 1, {"exponent": 1.5})) < -1.3
    assert flat_share(clean("pink", 16, size)) < 0.05


@pytest.mark.parametrize("size", [(1, 64, 64), (3, 96, 96)], ids=str)
def test_noise_is_white(size):
    images = clean("noise", 48, size)
    assert amplitude_slope(images) == pytest.approx(0, abs=0.08)
    assert neighbour_correlation(images) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("size", [(1, 64, 64), (3, 128, 128)], ids=str)
def test_leaves_are_piecewise_constant_in_many_colours(size):
    images = clean("leaves", 24, size)
    assert flat_share(images) > 0.6
    assert extreme_share(images) < 0.4
    assert min(len(image[0].mul(1000).round().unique()) for image in images) > 15
    assert -1.9 < amplitude_slope(images) < -1.2


@pytest.mark.parametrize("size", [(1, 64, 64), (3, 128, 128)], ids=str)
def test_mosaic_cells_are_shaded_and_striped(size):
    images = clean("mosaic", 48, size)
    leaves = clean("leaves", 48, size)
    assert flat_share(images) < flat_share(leaves) - 0.1  # few cells are of one colour
    assert neighbour_correlation(images) > 0.8
    plain = make_images("mosaic", 48, size, 1, {"shading": 0, "noise": 0, "waves": 0.3})
    assert evenness(plain) < evenness(images)  # stripes make many edges


@pytest.mark.parametrize("size", [(1, 16, 16), (1, 64, 64), (3, 128, 128)], ids=str)
def test_blobs_have_two_levels_and_both_are_large(size):
    images = clean("blobs", 48, size)
    assert extreme_share(images) > 0.55
    assert 0.25 < ink_share(images) < 0.6
    assert neighbour_correlation(images) > 0.8


@pytest.mark.parametrize("size", [(1, 16, 16), (1, 64, 64), (3, 128, 128)], ids=str)
def test_strokes_are_thin_on_a_plain_ground(size):
    images = clean("strokes", 48, size)
    assert 0.03 < ink_share(images) < 0.25
    assert flat_share(images) > 0.6


def test_strokes_are_longer_than_wide_and_half_of_them_straight():
    """One stroke each: the ink's second moments tell its elongation, and whether it bends."""
    images = make_images("strokes", 400, (1, 64, 64), 3, {"shading": 0, "noise": 0, "most": 1, "thickest": 0.05})
    median = images.flatten(1).median(1).values[:, None, None]
    ink = (images[:, 0] - median).abs()
    ink = ink / ink.sum((1, 2), keepdim=True)
    place = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij"))
    centre = torch.einsum("nhw,dhw->nd", ink, place)
    offset = place - centre[:, :, None, None]
    spread = torch.linalg.eigvalsh(torch.einsum("nhw,nahw,nbhw->nab", ink, offset, offset)).sqrt()  # pixels
    assert (spread[:, 1] > 4).float().mean() > 0.9
    assert 0.45 < (spread[:, 0] < 1.6).float().mean() < 0.8  # straight, or nearly


def looks_of_each(images):
    """Of each image how rough it is, and how much of it is plain, far from the median, or at the ends of its range."""
    measures = (neighbour_correlation, flat_share, ink_share, extreme_share, evenness)
    return torch.tensor([[measure(image[None]) for measure in measures] for image in images])


def test_programs_differ_from_one_another_more_than_the_images_of_any_other_generator():
    """By the volume that images take up in the space of their looks, with nothing added to them."""
    volume = {}
    for name in [name for name in NAMES if name != "mix"]:
        looks = looks_of_each(clean(name, 150, (1, 48, 48)))
        volume[name] = float(torch.logdet(torch.cov(looks.T) + 1e-4 * torch.eye(looks.shape[1])))
    assert max(volume, key=volume.get) == "shaders", volume
    assert len({tuple(row) for row in looks_of_each(clean("shaders", 40, (1, 48, 48))).round(decimals=3).tolist()}) > 35


def test_an_expression_that_comes_out_constant_is_replaced():
    plain = torch.arange(12.0).reshape(3, 4)
    assert standard(torch.full((3, 4), 7.0), plain) is plain
    found = standard(plain * 5 + 2, plain)
    assert (float(found.mean()), float(found.std(correction=0))) == pytest.approx((0, 1), abs=1e-6)
    assert float(standard(torch.eye(100), plain).max()) == 4  # nothing is further off


def test_a_triangle_wave_is_folded():
    values = torch.linspace(-9, 9, 361)
    expected = torch.asin(torch.sin(values.double() * math.pi / 2)) * 2 / math.pi
    assert torch.allclose(fold(values).double(), expected, atol=1e-5)


def test_programs_may_be_simpler():
    size = (1, 64, 64)
    plain = make_images("shaders", 24, size, 1, {"shading": 0, "noise": 0, "warps": 0, "depth": 0})
    assert not torch.isclose(plain, clean("shaders", 24, size)).all((1, 2, 3)).any()
    assert neighbour_correlation(plain) > neighbour_correlation(clean("shaders", 24, size))


def test_generators_differ_from_one_another():
    looks = {}
    for name in NAMES:
        images = make_images(name, 96, (1, 64, 64), 5)
        smooth = torch.nn.functional.avg_pool2d(images, 4)
        looks[name] = torch.tensor(
            [
                amplitude_slope(images),
                neighbour_correlation(images),
                4 * ink_share(images),
                4 * extreme_share(smooth),
                4 * evenness(smooth),
            ]
        )
    for k, one in enumerate(NAMES):
        for other in NAMES[k + 1 :]:
            assert (looks[one] - looks[other]).abs().max() > 0.15, (one, other, looks)


@pytest.mark.parametrize("name", NAMES)
def test_polarity_and_contrast_vary(name):
    images = make_images(name, 200, (1, 32, 32), 2)
    level, contrast = images.flatten(1).mean(1), images.flatten(1).std(1)
    assert 0.4 < level.mean() < 0.6
    assert level.std() > 0.05
    assert contrast.std() > 0.15 * contrast.mean()
    if name == "strokes":
        lighter = images.flatten(1).mean(1) > images.flatten(1).median(1).values
        assert 0.35 < lighter.float().mean() < 0.65


@pytest.mark.parametrize("name", NAMES)
def test_rgb_has_colour_and_its_channels_go_together(name):
    images = make_images(name, 32, (3, 48, 48), 4)
    assert (images.amax(1) - images.amin(1)).mean() > 0.05
    red, green, blue = images.permute(1, 0, 2, 3).flatten(1)
    correlation = torch.corrcoef(torch.stack([red, green, blue]))
    assert correlation.min() > (0 if name == "noise" else 0.5)


def test_pink_has_the_colours_of_photographs():
    images = make_images("pink", 100, (3, 48, 48), 4, {"shading": 0, "noise": 0})
    values = images - images.mean((2, 3), keepdim=True)
    covariance = torch.cov(values.permute(1, 0, 2, 3).flatten(1))
    variances, axes = torch.linalg.eigh(covariance)
    variances = variances.flip(0) / variances.sum()
    expected = torch.tensor([0.2175, 0.0188, 0.0045]) / 0.2408
    assert torch.allclose(variances, expected, atol=0.03)
    assert axes[:, 2].abs().min() > 0.5  # light and dark, alike in all channels


@pytest.mark.parametrize("name", NAMES)
def test_other_channels_differ(name):
    images = make_images(name, 8, (4, 24, 24), 4)
    assert (images[:, 1:] - images[:, :-1]).abs().mean() > 0.02


# ------------------------------------------------------------------------------------------------------ mix and options


def test_mix_has_equal_shares_shuffled():
    """Noise and blobs are told apart by how neighbours correlate."""
    images = make_images("mix", 203, (1, 64, 64), 0, {"of": "noise,blobs"})
    rough = torch.tensor([neighbour_correlation(image[None]) < 0.5 for image in images])
    assert int(rough.sum()) in (101, 102)
    assert 60 < int((rough[1:] != rough[:-1]).sum()) < 140


def test_mix_takes_a_users_generator(tmp_path):
    file = tmp_path / "own_generator.py"
    file.write_text(
        "import torch\nfrom dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass Plain:\n    'One value everywhere.'\n    value: float = 0.25\n"
        "    def __call__(self, count, size, generator):\n        return torch.full((count, *size), self.value)\n"
    )
    images = make_images("mix", 10, (1, 8, 8), 0, {"of": f"noise,{file}"})
    assert int((images == 0.25).all((1, 2, 3)).sum()) == 5
    assert (make_images(str(file), 3, (2, 8, 8), 0, {"value": "0.5"}) == 0.5).all()
    with pytest.raises(UsageError, match="values from 2 to 2"):
        make_images(str(file), 3, (2, 8, 8), 0, {"value": 2})
    with pytest.raises(UsageError, match="values from nan"):
        make_images(str(file), 3, (2, 8, 8), 0, {"value": float("nan")})


@pytest.mark.parametrize("result", ["None", "torch.zeros(count, *size, dtype=torch.float64)", "torch.zeros(size)"])
def test_a_users_generator_that_returns_something_else_is_refused(tmp_path, result):
    file = tmp_path / "own_generator.py"
    file.write_text(
        "import torch\nfrom dataclasses import dataclass\n@dataclass(frozen=True)\nclass Bad:\n"
        f"    def __call__(self, count, size, generator):\n        return {result}\n"
    )
    with pytest.raises(UsageError, match="returned"):
        make_images(str(file), 2, (1, 8, 8), 0)
    with pytest.raises(UsageError, match="returned"):
        make_images("mix", 2, (1, 8, 8), 0, {"of": str(file)})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("blobs", {"smallest": 0}),
        ("blobs", {"smallest": 0.5, "largest": 0.2}),
        ("strokes", {"most": 0}),
        ("strokes", {"thinnest": 0.2, "thickest": 0.1}),
        ("leaves", {"leaves": 256}),
        ("leaves", {"smallest": 0.3}),
        ("mix", {"of": ()}),
        ("mix", {"of": "mix"}),
        ("mix", {"of": "nose"}),
        ("mosaic", {"most": 1}),
        ("mosaic", {"waves": 0.1}),
        ("mosaic", {"bend": -0.1}),
        ("pink", {"contrast": 1.5}),
        ("shaders", {"depth": 7}),
        ("shaders", {"warps": -1}),
        ("noise", {"shading": -1}),
        ("pink", {"colour": 1}),
    ],
)
def test_bad_options_are_refused(name, options):
    with pytest.raises(UsageError):
        make_images(name, 2, (1, 8, 8), 0, options)


def test_unknown_generator_gets_a_suggestion():
    with pytest.raises(UnknownName, match="strokes") as caught:
        make_images("stroke", 2, (1, 8, 8), 0)
    assert "generator" in str(caught.value)


@pytest.mark.parametrize("size", [(16, 16), (3, 8, 16, 16), (3, 0, 16)], ids=str)
def test_input_that_is_no_image_is_refused(size):
    with pytest.raises(UsageError, match="channels, a height and a width"):
        make_images("mix", 2, size, 0)
