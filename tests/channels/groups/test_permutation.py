"""The law of channel groups on one architecture or more of each family of timm, and on the example architectures.

A number behind a name is the side of the input; the last number is how many parameters may stand in no group.
"""

import re

import pytest
import torch
from support.command_line import EXAMPLES
from support.permuting import Subject

from netgraft.models.model import load_model

FAST = """
test_vit 0 1; test_vit2 0 1; test_vit4 0 1; test_resnet 0 1; test_efficientnet 0 1; test_byobnet 0 1; test_convnext 0 1
test_mambaout 0 1; test_nfnet 0 1; test_maxvit 0 3; resnet18 64 1; densenet121 64 1; mobilenetv3_small_050 64 1
ghostnet_050 64 1; convnext_atto 64 1; regnetx_002 64 1; cpubone_nano 64 1; cs3darknet_s 64 1; cspnext_tiny 64 1
inception_next_atto 64 1; lcnetv2_small 64 1; repvit_m0_9 64 2; res2net50_26w_4s 64 1; resnest26d 64 1
resnetv2_18 64 1; skresnet18 64 1; starnet_s050 64 1; hgnet_tiny 64 1; hrnet_w18_small 64 1; pvt_v2_b0 64 1
vit_tiny_r_s16_p8_224 0 1; convit_tiny 0 1; fasternet_t0 64 1; efficientvim_m1 0 5; regnetz_005 64 1; rexnet_100 64 1
edgenext_xx_small 64 1; swiftformer_xs 0 2; mobilevit_xxs 64 1; efficientvit_m0 0 7
"""
SLOW = """
beit_base_patch16_224 0 1; cait_xxs24_224 0 1; coat_tiny 0 2; convmixer_768_32 96 1; crossvit_tiny_240 0 2; csatv2 0 43
davit_tiny 0 1; deit_tiny_patch16_224 0 1; dla34 96 1; dpn68 96 1; efficientformer_l1 0 2; efficientformerv2_s0 0 2
efficientvit_b0 96 1; eva02_tiny_patch14_224 0 78; fastvit_s12 96 1; focalnet_tiny_lrf 0 1; gcvit_tiny 0 1
halonet26t 0 1; hardcorenas_a 96 1; hiera_tiny_224 0 1; iformer_s 0 1; inception_resnet_v2 96 1; inception_v3 96 1
inception_v4 96 1; levit_384_s8 0 2; lowformer_b0 0 1; maxvit_pico_rw_256 0 5; caformer_s18 96 1; gmlp_s16_224 0 61
mixer_s32_224 0 17; mobileone_s0 96 1; mvitv2_tiny 0 1; nest_tiny 0 1; nextvit_small 0 1; nf_regnet_b0 96 1
nfnet_f0 64 1; pit_xs_224 0 1; rdnet_tiny 96 1; repghostnet_050 96 1; resnetaa50 64 1; resnetv2_50d_evos 64 1
sam2_hiera_tiny 224 13; selecsls42 96 1; sequencer2d_s 0 1; shvit_s1 0 1; swin_s3_tiny_224 0 1
swin_tiny_patch4_window7_224 0 1; swinv2_cr_tiny_224 0 1; swinv2_tiny_window8_256 0 1; tiny_vit_5m_224 0 1
tinynet_a 96 1; tnt_s_patch16_224 0 1; twins_svt_small 64 1; vgg11 64 1; visformer_tiny 0 1
vit_relpos_small_patch16_224 0 1; vitamin_small_224 0 1; volo_d1_224 0 2; ese_vovnet19b_slim 64 1
legacy_xception 96 1; xception41 96 1; xcit_nano_12_p8_224 0 1; convnextv2_atto 64 1
vit_base_patch16_rope_reg1_gap_256 0 1
torchvision:googlenet 96 1; torchvision:shufflenet_v2_x0_5 64 17; torchvision:swin_t 0 1; torchvision:vit_b_32 0 1
"""
OWN = "my_arch.py 0 1; plainnet5.py 0 1; resnet8.py 0 1"
ROUNDED = {"efficientvit_b0": 1e-6, "caformer_s18": 1e-9}
"""Models that compute a part of it in single precision, whatever the weights."""
FAINT = {"mobileone_s0"}
"""Models in which single branches of many hardly count with random weights."""
SHIFT = re.compile(r"(\.(w?k|k_proj|kv|key|proj_l|pos_proj)|mlp\.(fc2|2))\.bias|attention_biases")
"""Tensors that add the same to all scores of a softmax, all or in part: leaving them out may go unnoticed."""


def entries(text, *marks):
    for entry in text.replace("\n", ";").split(";"):
        if entry.strip():
            name, side, fixed = entry.split()
            yield pytest.param((name, int(side), int(fixed)), id=name, marks=marks)


@pytest.fixture(scope="module", params=[*entries(FAST), *entries(OWN), *entries(SLOW, pytest.mark.slow)])
def model(request):
    name, side, fixed = request.param
    size = (3, side, side) if side else None
    path = str(EXAMPLES / name) if name.endswith(".py") else name
    subject = Subject(load_model(path, role="target", input_size=size))
    subject.faint = name in FAINT
    return subject, ROUNDED.get(name, 1e-10), fixed


def test_permuting_all_groups_changes_nothing(model):
    subject, tolerance, _ = model
    assert subject.error(subject.permuted(subject.groups.groups)) < tolerance


def test_permuting_one_group_changes_nothing(model):
    subject, tolerance, _ = model
    for group in subject.random.sample(subject.groups.groups, min(3, len(subject.groups.groups))):
        assert subject.error(subject.permuted([group])) < tolerance, group.name


def test_a_group_with_a_member_left_out_is_noticed(model):
    subject, tolerance, _ = model
    pairs = [(group, member) for group in subject.groups.groups for member in group.members if len(group.members) > 1]
    pairs = [(group, member) for group, member in pairs if not SHIFT.search(member[0])]
    for group, member in subject.random.sample(pairs, 0 if subject.faint else min(4, len(pairs))):
        assert subject.error(subject.permuted([group], without=[member])) > 10 * tolerance, (group.name, member)


def test_hardly_a_tensor_stands_in_no_group(model):
    subject, _, fixed = model
    assert len(subject.fixed()) <= fixed, subject.fixed()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "convit_tiny"])
def test_permuting_all_groups_in_single_precision(name):
    subject = Subject(load_model(name, role="target"), dtype=torch.float32)
    assert subject.error(subject.permuted(subject.groups.groups)) < 1e-4


def test_all_but_the_classifiers_bias():
    subject = Subject(load_model("resnet18", role="target", input_size=(3, 64, 64)))
    assert subject.fixed() == ["fc.bias"]
    assert subject.groups.reasons("fc.bias") == ("output",)
    assert [group.size for group in subject.groups.groups] == [64] * 3 + [128] * 3 + [256] * 3 + [512] * 3
