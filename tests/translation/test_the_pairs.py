"""Every pair is one network written twice: its own copy, made by hand, computes the same. No translation runs here."""

import pytest
from support.one_network.measuring import LIMIT, build, enliven, loaded, outputs, relative_error, true_copy_error
from support.one_network.pairs import all_pairs

PAIRS = {pair.name: pair for pair in all_pairs()}
OURS = [name for name, pair in PAIRS.items() if "nets" in pair.source and not pair.needs]
LIBRARIES = [name for name in PAIRS if name not in OURS]


@pytest.mark.parametrize("name", OURS)
def test_is_one_network(name):
    error, alive = true_copy_error(PAIRS[name])
    assert error <= LIMIT
    assert alive > 0.005  # outputs that do not depend on the input would agree as well


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_is_one_network_in_public_libraries(name):
    pair = PAIRS[name]
    if pair.missing:
        pytest.skip(f"needs {', '.join(pair.missing)}")
    error, alive = true_copy_error(pair)
    assert error <= LIMIT
    assert alive > 0.005


@pytest.mark.parametrize("name", ["modules->function", "norms->deployed", "fused->three", "rank3->apart"])
def test_any_wrong_tensor_shows(name):
    """Lively weights leave no tensor without effect: swapping two channels of any one is seen in the outputs."""
    pair = PAIRS[name]
    source, inputs = build(pair, "source")
    target, _ = build(pair, "target", seed=5)
    right = pair.truth(enliven(source), target, inputs[0])
    wanted = outputs(source, inputs)
    for key, value in right.items():
        flat = value.clone().flatten()
        if not value.is_floating_point() or key.endswith("key.bias"):
            continue  # counters, and what a softmax takes no notice of
        wrong = {**right, key: flat.roll(1).reshape(value.shape)}
        assert relative_error(outputs(loaded(target, wrong), inputs), wanted) > LIMIT, key
