"""The instruments that judge transfers: what they say of networks where the answer is known."""

import pytest
import torch
from support.held_out import as_channels, share
from support.mutable import BASES
from support.mutations import CHANGES, feature_reader, mutated, origins

SMALL = ("resnet20", "vgg11")


def draws(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def test_a_network_carries_itself_and_any_linear_image_of_itself():
    seen = draws(320, 24, 0) @ torch.diag(torch.logspace(0, -1, 24, dtype=torch.float64))
    assert share(seen, seen, 240).value > 0.999
    assert share(3 * seen @ draws(24, 40, 1) + 5, seen, 240).value > 0.999


def test_noise_carries_nothing_and_half_of_the_directions_half():
    seen = draws(320, 24, 0)
    assert share(draws(320, 24, 1), seen, 240).value < 0.05
    half = share(torch.cat([seen[:, :12], draws(320, 12, 2)], 1), seen, 240).value
    assert 0.35 < half < 0.65


def test_a_difference_counts_only_beyond_noise():
    seen = draws(320, 24, 0)
    whole, noisy = share(seen, seen, 240), share(seen + 0.01 * draws(320, 24, 3), seen, 240)
    assert not noisy.below(whole)
    assert share(draws(320, 24, 1), seen, 240).below(whole)


def test_pictures_with_other_channels():
    images = torch.arange(3.0).view(1, 3, 1, 1)
    assert as_channels(images, 5).flatten().tolist() == [0, 1, 2, 0, 1]
    assert as_channels(images, 1).flatten().tolist() == [0]


@pytest.mark.parametrize("base", SMALL)
@pytest.mark.parametrize("kind", CHANGES)
def test_a_mutation_runs_and_is_the_same_for_one_seed(base, kind):
    first, second = mutated(base, (kind,), 3), mutated(base, (kind,), 3)
    shapes = [{key: tuple(value.shape) for key, value in net.state_dict().items()} for net in (first, second)]
    original = BASES[base].build()
    assert shapes[0] == shapes[1]
    assert kind == "activation" or shapes[0] != {k: tuple(v.shape) for k, v in original.state_dict().items()}
    with torch.no_grad():
        stem = first.get_submodule(BASES[base].stem)
        assert torch.isfinite(first.eval()(torch.randn(2, stem.in_channels, 16, 16))).all()
    assert feature_reader(base, first) is not None


@pytest.mark.parametrize("base", SMALL)
@pytest.mark.parametrize("kind", ["insert", "delete", "depth", "gate", "decoder"])
def test_the_truth_of_a_mutation(base, kind):
    """Layers that came from the source kept their shapes, each once, and what is new is none of them."""
    net, original = mutated(base, (kind,), 3), BASES[base].build()
    truth = dict(origins(net))
    old = original.state_dict()
    assert len(set(truth.values())) == len(truth)
    for path, origin in truth.items():
        for name, value in net.get_submodule(path)._parameters.items():
            assert value is None or value.shape == old[f"{origin}.{name}"].shape
    with_weights = {path for path, part in net.named_modules() if part._parameters}
    if kind in ("insert", "gate", "decoder"):
        assert with_weights > set(truth)
    if kind == "delete":
        assert with_weights == set(truth)
        assert len(truth) < sum(bool(part._parameters) for part in original.modules())
