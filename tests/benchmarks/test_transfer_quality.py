"""The benchmark of transfer quality, in small: its machinery, and what must hold of every recipe that is to help.

The whole: ``python tests/benchmarks/transfer_quality --help``.
"""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from transfer_quality import cells, finetune, report, scenes, statistics
from transfer_quality.command import main
from transfer_quality.domains import DOMAINS, FAMILIES, TARGETS
from transfer_quality.initialisations import BASELINES, SOURCELESS, Source, make, parse

from netgraft import plugins
from netgraft.errors import UsageError

RESNET20, VGG11 = "resnet20-embedded", "vgg11-embedded"
SEED, SAMPLES = 0, 10

HELPS = [
    # (initialisation, source, target, lead): its probe must beat the mean of three random ones by the lead at least,
    # about two thirds of what was measured. Options only make it cheap: few images, few steps.
    ("graft", VGG11, "wide5x5", 0.18),
    ("refit:refit_images=256", VGG11, "plainnet5", 0.2),  # graft alone is 0.12 ahead
    ("distil:steps=60,images=512,refit_images=256", RESNET20, "resnet8", 0.17),
    ("grow", RESNET20, "resnet26", 0.3),
    ("auto", RESNET20, "resnet26", 0.3),
]
NO_PROMISE = {"hmt", *BASELINES, "translate", "almost-equal", "fit-seam"}
"""The paper's recipe can be worse than training from scratch; these targets share no names, shapes and blocks; the
baselines are there to be measured against."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def initialisation(cache, init, source, target):
    return make(cache, "glyphs", Source.parse(source), target, parse(init), steps=0)


def probe(cache, target, tensors, seed=SEED):
    state = finetune.fresh("glyphs", target, tensors, seed).state_dict()
    return finetune.task(cache, "glyphs", target, SAMPLES, SEED).bench.probe(state).accuracy


def tuned(cache, target, tensors, epochs):
    task = finetune.task(cache, "glyphs", target, SAMPLES, SEED)
    net = finetune.fresh("glyphs", target, tensors, SEED)
    finetune.tune(net, *task.train, SEED, epochs)
    return net, finetune.accuracy(net, *task.test)


def test_every_recipe_that_promises_to_help_is_held_to_it():
    assert {parse(init).recipe for init, *_ in HELPS} == set(plugins.listing("recipes")) - NO_PROMISE


@pytest.mark.parametrize(("init", "source", "target", "lead"), HELPS)
def test_a_recipe_that_helps_is_ahead_of_scratch_without_training(cache, init, source, target, lead):
    scratch = sum(probe(cache, target, {}, seed) for seed in range(3)) / 3
    assert probe(cache, target, initialisation(cache, init, source, target).tensors) > scratch + lead


@pytest.mark.parametrize(("init", "source", "target", "lead"), HELPS)
def test_a_recipe_that_helps_is_ahead_of_its_control(cache, init, source, target, lead):
    """The same transfer from shuffled weights, by as much."""
    made, control = (initialisation(cache, text, source, target) for text in (init, f"{init}@shuffled"))
    assert made.sha256 != control.sha256
    assert probe(cache, target, made.tensors) > probe(cache, target, control.tensors) + lead


@pytest.mark.parametrize("init", sorted(set(BASELINES) - {"same-names"}))  # these have no names in common
def test_every_baseline_is_made_or_refused(cache, init):
    """What makes attention reads no source, and refuses a convolutional net."""
    source = None if init in SOURCELESS else Source.parse(VGG11)
    assert parse(init).needs_source == (init not in SOURCELESS)
    if init in SOURCELESS:
        made = make(cache, "glyphs", source, "vit", parse(init), steps=0)
        scratch = finetune.fresh("glyphs", "vit", {}, SEED).state_dict()
        state = finetune.fresh("glyphs", "vit", made.tensors, SEED).state_dict()
        assert not torch.equal(state["blocks.0.attn.qkv.weight"], scratch["blocks.0.attn.qkv.weight"])
        with pytest.raises(UsageError, match="sets how a network attends"):
            make(cache, "glyphs", source, "plainnet5", parse(init), steps=0)
    else:
        assert make(cache, "glyphs", source, "plainnet5", parse(init), steps=0).tensors


def test_training_is_reproducible(cache):
    (one, accuracy), (other, again) = (tuned(cache, "plainnet5", {}, epochs=2) for _ in range(2))
    assert accuracy == again
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def test_a_net_into_itself_is_far_ahead_of_scratch(cache, monkeypatch):
    """Everything but the head comes over: what every other pair would like to be."""
    monkeypatch.setitem(TARGETS, "itself", FAMILIES["vgg11"])
    made = initialisation(cache, "hmt", VGG11, "itself")
    _, scratch = tuned(cache, "itself", {}, epochs=10)
    _, transferred = tuned(cache, "itself", made.tensors, epochs=10)
    assert transferred > scratch + 0.15


@pytest.mark.parametrize("target", TARGETS)
def test_every_initialisation_gets_the_same_fresh_head(cache, target):
    scratch = finetune.fresh("glyphs", target, {}, SEED)
    other = finetune.fresh("glyphs", target, initialisation(cache, "hmt", RESNET20, target).tensors, SEED)
    keys = list(scratch.state_dict())
    differ = [k for k in keys if not torch.equal(scratch.state_dict()[k], other.state_dict()[k])]
    head = [name for name, module in scratch.named_modules() if isinstance(module, torch.nn.Linear)][-1]
    assert differ
    assert not any(key.startswith(f"{head}.") for key in differ)
    assert scratch.get_submodule(head).out_features == DOMAINS["glyphs"].target_classes


def test_what_is_known_is_not_run_again_and_the_report_tells_it(cache, capsys, monkeypatch):
    monkeypatch.setattr(finetune.tune, "__defaults__", (1,))
    run = ["run", "--cache", str(cache), "--sources", VGG11, "--targets", "resnet8", "--seeds", "2"]
    run += ["--inits", "scratch", "hmt", "hmt@untrained"]
    main(run)
    rows = cells.read(cache)
    assert [(row["init"], row["seed"]) for row in rows] == [
        (init, seed) for init in ("scratch", "hmt", "hmt@untrained") for seed in (0, 1)
    ]
    main(run)
    assert cells.read(cache) == rows
    assert "known" in capsys.readouterr().out
    main(["report", "--cache", str(cache), "--out", str(cache)])
    shown = capsys.readouterr().out
    assert "`hmt@untrained`" in shown
    assert f"{VGG11} → resnet8" in shown
    (written,) = json.loads((cache / "report.json").read_text())
    assert [line["init"] for line in written["initialisations"]] == ["scratch", "hmt", "hmt@untrained"]


def test_a_refusal_is_told(tmp_path):
    group = cells.Group("glyphs", RESNET20, "nonorm", "hmt:no_such_option=1")
    said = cells.run_group(cells.Plan(tmp_path, [SAMPLES], [SEED], steps=0), group)
    assert "refused" in said
    assert "no_such_option" in report.refused(statistics.refusals(cells.read(tmp_path)))


def test_differences_are_paired_by_draw():
    rows = [
        {"domain": "d", "source": source, "target": "t", "init": init, "samples": 10, "seed": seed}
        | {"accuracy": accuracy, "probe": accuracy, "transfer_seconds": 0.0}
        for init, source, accuracies in (
            ("scratch", "-", (0.2, 0.4)),
            ("graft", "a", (0.3, 0.5)),
            ("graft", "b", (0.4, 0.6)),
            ("upper", "-", (0.6, 0.8)),
        )
        for seed, accuracy in enumerate(accuracies)
    ]
    lines = {line.init: line for line in statistics.lines(rows)}
    graft = lines["graft"]
    assert graft.difference == pytest.approx((0.15, 0.0))
    assert graft.over_pairs == pytest.approx(0.05)
    assert graft.recovered == pytest.approx(0.15 / 0.4)
    assert graft.accuracy.error == pytest.approx(0.1)
    assert (graft.pairs, graft.better, graft.cells) == (2, 2, 4)
    assert statistics.probe_ranking(rows) == pytest.approx((1.0, 1.0))
    assert statistics.spearman([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1)
    assert math.isnan(statistics.spearman([(1, 1), (2, 1), (3, 1)]))


def test_scenes_are_images_of_their_classes():
    labels = torch.arange(scenes.CLASSES)
    images = scenes.render(labels, torch.Generator().manual_seed(0))
    assert images.shape == (scenes.CLASSES, *DOMAINS["scenes"].size)
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal(images, scenes.render(labels, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("text", ["hmt@other", "@shuffled", ""])
def test_an_initialisation_that_cannot_be_read_is_refused(text):
    with pytest.raises(SystemExit):
        parse(text)


def test_an_initialisation_has_options_and_a_control():
    spec = parse("distil:start=scratch,steps=100@untrained")
    assert (spec.recipe, dict(spec.options), spec.control) == (
        "distil",
        {"start": "scratch", "steps": "100"},
        "untrained",
    )
