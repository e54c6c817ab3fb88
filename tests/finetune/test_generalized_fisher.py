"""Fisher information of two tasks, what of it counts, the bound, and turns: each against the formula in NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from netgraft.finetune.toolbox.generalized_fisher import (
    FLOOR,
    PairedFisher,
    WeightAllocation,
    generalized,
    random_direction,
    scaled_fisher,
)
from netgraft.finetune.toolbox.transfer_bound import bound_sides
from netgraft.finetune.toolbox.turns import Stages, stage_length


def gradients(samples, size, seed=0):
    """Of two tasks, related ever more closely from weight to weight."""
    rng = np.random.default_rng(seed)
    first = rng.lognormal(-3, 1.5, (samples, size)) * rng.choice([-1, 1], (samples, size))
    share = np.linspace(0, 1, size)
    own = rng.lognormal(-3, 1.5, (samples, size))
    return first, np.abs(first) ** share * own ** (1 - share)


def measured(first, second, dtype=torch.float64):
    found = PairedFisher(first.shape[1]).to(dtype)
    for one, other in zip(first, second, strict=True):
        found.add(torch.tensor(one, dtype=dtype), torch.tensor(other, dtype=dtype))
    return found


def test_relative_fisher_is_the_normalised_mutual_information_of_lognormals():
    first, second = gradients(40, 9)
    found = measured(first, second)
    logs = np.log(first**2), np.log(second**2)
    r = np.array([np.corrcoef(logs[0][:, i], logs[1][:, i])[0, 1] for i in range(9)])
    with np.errstate(divide="ignore"):
        information = -0.5 * np.log1p(-np.minimum(r**2, 1))
    np.testing.assert_allclose(found.relative().numpy(), np.sqrt(1 - np.exp(-2 * information)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.fisher.numpy(), [(first**2).mean(0), (second**2).mean(0)], rtol=1e-9)
    np.testing.assert_allclose(measured(first, second, torch.float32).relative(), found.relative(), atol=1e-4)
    assert found.relative()[0] < 0.5 < found.relative()[-1]


def test_a_weight_that_a_task_does_not_reach_shares_nothing():
    first, second = gradients(12, 3)
    second[:, 1] = 0
    found = measured(first, second)
    assert found.relative()[1] == 0
    assert found.mean[1, 1] == pytest.approx(np.log(FLOOR))


def test_a_window_begins_anew_and_one_task_will_do():
    first, second = gradients(12, 3)
    found = measured(first, second)
    found.add(torch.tensor(first[0]), anew=True)
    assert found.count == 1
    np.testing.assert_allclose(found.fisher.numpy(), [first[0] ** 2, np.zeros(3)])
    assert not found.spread.any()


def test_gfi_keeps_what_is_shared_with_p_and_the_rest_without():
    """Eq. 10: 90 of 100 where RF >= u, 10 of 100 elsewhere; what is kept is F itself."""
    size, generator = 40_000, torch.Generator().manual_seed(0)
    fisher = torch.rand(size) + 0.5
    relative = torch.cat([torch.full((size // 2,), 0.5), torch.full((size // 2,), 0.4999)])
    found = generalized(fisher, relative, threshold=0.5, probability=0.9, generator=generator)
    kept = found != 0
    assert torch.equal(found[kept], fisher[kept])
    assert kept[: size // 2].double().mean() == pytest.approx(0.9, abs=0.01)
    assert kept[size // 2 :].double().mean() == pytest.approx(0.1, abs=0.01)
    certain = generalized(fisher, relative, threshold=0.5, probability=1.0, generator=generator)
    assert torch.equal(certain != 0, relative >= 0.5)


def test_scaled_fisher_has_mean_one_and_a_bound():
    fisher = torch.tensor([0.1, 0.2, 0.3, 40.0], dtype=torch.float64)
    mean = (0.1 + 0.2 + 0.3 + 40) / 4
    torch.testing.assert_close(scaled_fisher(fisher, 0), fisher / mean)
    torch.testing.assert_close(
        scaled_fisher(fisher, 2.0), torch.tensor([0.1 / mean, 0.2 / mean, 0.3 / mean, 2.0]).double()
    )
    assert not scaled_fisher(torch.zeros(3), 2.0).any()


def test_dwa_and_its_gradient():
    torch.manual_seed(0)
    parameters = [torch.randn(3, 2).double().requires_grad_(), torch.randn(4).double().requires_grad_()]
    allocation, importance = WeightAllocation(10).double(), torch.rand(10).double()
    allocation.keep(importance, parameters)
    anchors = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter))
    found = allocation.penalty(parameters, 0.7)
    value = sum(
        0.7 / 2 * (f.view(p.shape) * (p - a) ** 2).sum()
        for f, p, a in zip(importance.split([6, 4]), parameters, anchors, strict=True)
    )
    assert float(found.value) == pytest.approx(float(value.detach()), rel=1e-9)
    for mine, theirs in zip(found.gradients, torch.autograd.grad(value, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_random_direction_is_a_row_of_signs_times_the_jacobian():
    torch.manual_seed(0)
    numbers, x = torch.rand(2, 4, 3), torch.randn(2, 4, 5).double()
    w = torch.randn(3, 5).double().requires_grad_()
    batches = [SimpleNamespace(number=i) for i in range(2)]
    run = SimpleNamespace(random=lambda batch, name, *shape: numbers[batch.number].view(4, *shape))  # noqa: ARG005
    found = random_direction(run, [(one @ w.T).tanh() for one in x], batches, "direction")
    signs = np.where(numbers.numpy() < 0.5, 1, -1)
    jacobian = torch.autograd.functional.jacobian(lambda w: (x @ w.T).tanh(), w.detach()).numpy()
    expected = np.einsum("nbo,nboij->ij", signs, jacobian) / 4 / 2  # mean over samples, then over batches
    np.testing.assert_allclose(torch.autograd.grad(found, w)[0], expected, rtol=1e-6, atol=1e-9)


def test_both_sides_of_the_bound():
    rng = np.random.default_rng(0)
    target, source = rng.normal(size=(2, 6, 4))
    labels = rng.integers(0, 4, 6)
    images, by_source, by_target = rng.normal(size=(3, 6, 1, 3, 5))
    given = [torch.tensor(a).float() for a in (target, source)], torch.tensor(labels)
    left, right = bound_sides(
        *given[0], given[1], *(torch.tensor(a).float() for a in (images, by_source, by_target)), torch.tensor(0.25)
    )

    def distance(a):
        return np.mean([np.linalg.norm(a[i] - images[i]) / np.sqrt(15) for i in range(6)])

    disagree = np.mean(target.argmax(1) != source.argmax(1))
    assert float(left) == pytest.approx(np.mean(target.argmax(1) != labels), rel=1e-6)
    assert float(right) == pytest.approx(
        0.25 + 2 * disagree + 3 * distance(by_source) + 2 * distance(by_target), rel=1e-6
    )


def test_a_stage_settles_when_its_mean_stays():
    stages = Stages(2)
    for losses, settled in (([4.0, 2.0], False), ([2.9, 3.05], True), ([1.0], False)):
        for loss in losses:
            stages.add(0, torch.tensor(loss))
        stages.end_turn(0, 0.01)  # means 3, 2.975, 1
        assert stages.done(0) == settled
    for _ in range(2):
        stages.add(0, torch.tensor(1.0))
        stages.end_turn(0, 0.01)
    assert stages.done(0)
    assert not stages.done(), "the other stage had no turn"


@pytest.mark.parametrize(
    ("unit", "count", "epochs", "steps", "length"),
    [
        ("epoch", 1, 9, 90, 10),
        ("epoch", 2, 9, 90, 20),
        ("step", 4, 9, 90, 4),
        ("epoch", 1, 2, 10, 3),
        ("step", 5, 1, 2, 1),
    ],
)
def test_length_of_a_stage(unit, count, epochs, steps, length):
    assert stage_length(SimpleNamespace(epochs=epochs, steps=steps), unit, count, 3) == length
