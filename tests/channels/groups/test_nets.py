"""The law of channel groups on networks as users write them, each with one thing that is easily got wrong."""

from functools import cache

import pytest
import torch
from support.coupled_nets import CASES
from support.permuting import Model, Subject

from netgraft.channels.groups.find import find_groups
from netgraft.trace import trace


@cache
def subject_of(name):
    case = CASES[name]
    return Subject(Model(case.build, case.size, case.inputs))


@pytest.fixture(params=CASES)
def subject(request):
    return subject_of(request.param)


def test_permuting_all_groups_changes_nothing(subject):
    for _ in range(3):
        assert subject.error(subject.permuted(subject.groups.groups)) < 1e-12


def test_permuting_one_group_changes_nothing(subject):
    for group in subject.groups.groups:
        assert subject.error(subject.permuted([group])) < 1e-12, group.name


def test_a_group_with_a_member_left_out_is_noticed(subject):
    noticed = 0
    for group in subject.groups.groups:
        for member in group.members:
            if len(group.members) > 1 and not is_shift_of_scores(member):
                assert subject.error(subject.permuted([group], without=[member])) > 1e-6, (group.name, member)
                noticed += 1
    assert noticed or not subject.groups.groups


def is_shift_of_scores(member):
    """What only adds the same number to all scores of a softmax may be left out unnoticed: the keys' bias."""
    return member[0] in ("k.bias", "kv.bias", "router.bias")


@pytest.mark.parametrize("name", CASES)
def test_what_stands_in_a_group_and_what_does_not(name):
    case, subject = CASES[name], subject_of(name)
    assert set(subject.fixed()) == case.fixed & set(subject.slots)
    assert sorted(group.size for group in subject.groups.groups) == sorted(case.sizes)


def test_the_same_groups_in_any_precision_and_every_time():
    case = CASES["Attention"]
    model = Model(case.build, case.size, case.inputs)
    first, again = find_groups(trace(model)), find_groups(trace(model))
    assert first.groups == again.groups
    half = Subject(model, dtype=torch.float32)
    assert half.error(half.permuted(half.groups.groups)) < 1e-5


def test_every_run_that_is_fixed_says_why():
    groups = subject_of("ChannelsWithPlaces").groups
    assert groups.reasons("head.bias") == ("output",)
    assert groups.reasons("stem.bias") == ("mul (mul_tensor)",)
    assert groups.reasons("stem.weight") == ("mul (mul_tensor)", "input", "stem")
    assert subject_of("Residual").groups.reasons("stem.weight") == ()
    assert subject_of("Sorted").groups.reasons("stem.bias") == ("sort (sort_default)",)
    for name in CASES:
        subject = subject_of(name)
        assert all(all(subject.groups.reasons(key)) and subject.groups.reasons(key) for key in subject.fixed())
