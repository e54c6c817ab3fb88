"""The laws that every method keeps, those of users' too: ``tested_methods`` is the list, and says how to add yours."""

import pytest
from support.runs import Killed, Killer, other_folder, same, state_of, steps, train, training, with_source, write_nets
from support.tested_methods import METHODS, each_method

from netgraft import plugins
from netgraft.finetune.needs import FOLDER, category_of, needs_of, rule_of
from netgraft.finetune.protocol import TARGET


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def plain_when(name):
    """Options with which, at lambda 0, it is plain fine-tuning; None where nothing makes it so."""
    return getattr(plugins.load(FOLDER, name), "plain_when", {})


@each_method([name for name in METHODS if plain_when(name) is not None])
def test_without_lambda_it_is_plain(name, folder):
    _, plain = train(with_source(folder, method="plain"))
    chosen = with_source(folder, method=name, set=plain_when(name), lam=0.0)
    _, weights = train(other_folder(chosen, "other"))
    assert same(plain, weights)


@each_method()
def test_source_is_untouched_and_every_part_moves(name, folder):
    running = training(with_source(folder, method=name))
    before = {part: state_of(p.module) for part, p in running.parts.items()}
    source, modes = state_of(running.run.source_module), running.run.source_module.training
    (folder / "run").mkdir()
    running.all()
    assert same(source, state_of(running.run.source_module))
    assert not modes
    assert not any(m.training for m in running.run.source_module.modules())
    for part, state in before.items():
        assert not same(state, state_of(running.parts[part].module)), part


@each_method()
def test_same_seed_same_bytes(name, folder):
    files = []
    for out in ("one", "other"):
        train(other_folder(with_source(folder, method=name), out))
        files.append([(folder / out / f"{which}.safetensors").read_bytes() for which in ("best", "last")])
    assert files[0] == files[1]


@each_method()
def test_resumed_is_uninterrupted(name, folder):
    """States every second step, killed after the seventh of ten: the state is that of the sixth, within an epoch."""
    chosen = with_source(folder, method=name, recovery_interval=2, model_ema=True)
    whole, _ = train(other_folder(chosen, "whole"))
    killed = other_folder(chosen, "killed")
    with pytest.raises(Killed):
        train(killed, watch=Killer(7))
    result, _ = train(killed, resume=True)
    assert result.resumed
    for which in ("best", "last"):
        files = [(folder / out / f"{which}.safetensors").read_bytes() for out in ("whole", "killed")]
        assert files[0] == files[1]
    assert [without_speed(r) for r in result.history] == [without_speed(r) for r in whole.history]


def without_speed(record):
    return {name: value for name, value in record.items() if name != "images_per_second"}


@each_method()
def test_description_is_that_of_the_class(name):
    """What ``ast`` reads against what Python says."""
    cls, described = plugins.load(FOLDER, name), plugins.describe(FOLDER, name)
    assert set(needs_of(described)) == cls.needs
    assert rule_of(described) == getattr(cls, "combine", "total")
    assert category_of(described) == getattr(cls, "category", None)
    assert described.doc == (cls.__doc__ and __import__("inspect").getdoc(cls))
    assert list(described.options) == plugins.options(cls)
    assert all(option.doc for option in described.options), "an option without help"
    assert len(described.doc.splitlines()[0]) <= 110


@each_method()
def test_target_is_a_part(name, folder):
    running = training(with_source(folder, method=name))
    assert running.parts[TARGET].module is running.run.target_module
    steps(running, 1)
