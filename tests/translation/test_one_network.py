"""Two implementations of one network: the default transfers the one into the other exactly, with no map given."""

import pytest
from support.one_network.measuring import LIMIT, measure
from support.one_network.pairs import all_pairs

PAIRS = {pair.name: pair for pair in all_pairs()}
SLICE = (
    *("modules->function", "modules->f_pad", "relu6->relu6_clamp", "gelu->gelu_erf", "norm_act->norm_then_relu"),
    *("weight_norm_new->plain_weights", "layer_scale->no_layer_scale"),
    *("summed->summed_list", "joined->joined_backwards", "conv_gates->linear_gates"),
    *("fused->three", "fused->multihead", "fused->transposed", "gated->gate_last", "rank3->rank1"),
    *("timm_convnext->own_convnext", "timm_resnet10->own_resnet10"),
    *("torchvision:resnet18->resnet18", "torchvision:mobilenet_v2->mobilenetv2_100", "tv_vit->timm_vit"),
)
SECONDS = 30.0
"""Of CPU time beyond building both networks, on one thread."""


def check(name, folder, lively=True):
    found = measure(PAIRS[name], folder, lively=lively)
    assert found["why"] == ""
    assert found["error"] <= LIMIT, found
    assert found["seconds"] <= SECONDS, found


@pytest.mark.parametrize("name", SLICE)
def test_is_translated(name, tmp_path):
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("lively", [True, False], ids=["lively", "plain"])
@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_is_translated(name, lively, tmp_path):
    if PAIRS[name].missing:
        pytest.skip(f"needs {', '.join(PAIRS[name].missing)}")
    check(name, tmp_path, lively)
