"""The source's features on disk: the same numbers, fewer passes, and never those of something else."""

# ruff: noqa: ARG002 - a method takes what every method takes

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.runs import training, with_source, write_nets
from torch.nn import functional as F

from netgraft.finetune.engine.explain import explain
from netgraft.finetune.protocol import Part, Update


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


@dataclass(frozen=True)
class Distil:
    """Logits and features of the source."""

    needs: ClassVar[frozenset] = frozenset()

    def parts(self, run):
        return {"target": Part(run.target_module)}

    def epoch(self, run, batches, parts):
        for batch in batches:
            here, there = run.target(batch), run.source(batch)
            means = [there.at[pair.source].mean((2, 3)).mean() for pair in run.pairs]
            yield Update(
                ("target",),
                {"task": run.task(here, batch), "kd": F.mse_loss(here.logits, there.logits) + sum(means)},
            )


def count_passes(running):
    calls = []
    running.run.source_module.stem.register_forward_hook(lambda *_: calls.append(1))
    return calls


def trained(folder, out, **more):
    given = with_source(folder, pairs="stem:stem,last:last", out=str(folder / out), **more)
    running = training(given, Distil())
    calls = count_passes(running)
    (folder / out).mkdir()
    running.all()
    return running.run.target_module.state_dict(), len(calls)


@pytest.mark.parametrize("more", [{}, {"aug": True, "views": 2, "train_crop_mode": "rc"}], ids=["plain", "two views"])
def test_same_numbers_and_fewer_passes(folder, more):
    epochs = 4
    without, passes = trained(folder, "without", epochs=epochs, **more)
    cache = str(folder / "cache")
    first, fewer = trained(folder, "first", epochs=epochs, cache=cache, **more)
    again, none = trained(folder, "again", epochs=epochs, cache=cache, **more)
    assert passes == 5 * epochs
    assert fewer == 5 * (2 if more else 1)
    assert none == 0
    for key in without:
        torch.testing.assert_close(first[key], without[key], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again[key], without[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"samples_per_class": 6},
        {"mean": (0.4,), "std": (0.3,)},
        {"pairs": "stem:stem"},
        {"random_source": True, "source_weights": None},
        {"aug": True, "views": 2},
        {"train_crop_mode": "rc", "aug": True, "views": 2},
        {"amp": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_features_has_another_key(folder, change):
    cache = {"cache": str(folder / "cache"), "pairs": "stem:stem,last:last"}
    folders = {training(with_source(folder, **(cache | more)), Distil()).run.net.cache.folder for more in ({}, change)}
    assert len(folders) == 2


def test_explained(folder):
    """Costs against FLOPs counted by hand for this network."""
    cost = explain(with_source(folder, target_arg={"drop": 0.0}))
    macs = 16 * (64 * 6 * 9 + 16 * 12 * 6 * 9 + 16 * 12 * 12 * 9 + 12 * 10)
    assert cost.forward == 2 * macs
    first = 16 * 64 * 6 * 9  # no gradient with respect to the images
    assert cost.step == pytest.approx(3 - first / macs, rel=1e-6)
    assert (cost.updates, cost.gradients) == (1, 1)
    assert not (folder / "run").exists()
