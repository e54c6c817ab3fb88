"""The batch-hard triplet loss, the batches that it needs, and that it is a part of the task's loss for every method."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from support.runs import Killed, Killer, same, settings, train, training, with_source, write_nets, written_net
from support.textures import write_textures

from netgraft.data.opening import open_data
from netgraft.data.pictures import few
from netgraft.errors import UsageError
from netgraft.finetune.engine.class_batches import ClassBatches
from netgraft.finetune.engine.loader import Loader, Views
from netgraft.finetune.toolbox.triplet import batch_hard
from netgraft.models.normalisation import Normalisation


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def brute_force(features, labels, margin, anchors):
    """Eq. 5, anchor by anchor in float64."""
    losses = []
    for a in anchors:
        d = [np.sqrt(((features[a] - f) ** 2).sum()) for f in features]
        near = [d[i] for i in range(len(d)) if labels[i] == labels[a]]
        far = [d[i] for i in range(len(d)) if labels[i] != labels[a]]
        excess = max(near) - min(far) if far else None
        if excess is None:
            losses.append(0.0)
        else:
            losses.append(np.log1p(np.exp(excess)) if margin is None else max(0.0, margin + excess))
    return np.mean(losses)


@pytest.mark.parametrize("margin", [None, 0.3, 2.0])
@pytest.mark.parametrize("anchors", [slice(None), slice(4, 8)])
def test_it_is_the_formula(margin, anchors):
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(12, 5)), np.repeat([0, 1, 2], 4)
    found = batch_hard(torch.from_numpy(features), torch.from_numpy(labels), margin, anchors)
    assert float(found) == pytest.approx(brute_force(features, labels, margin, range(12)[anchors]), abs=1e-12)


def test_one_class_alone_has_no_loss():
    x = torch.randn(4, 3, requires_grad=True)
    loss = batch_hard(x, torch.zeros(4, dtype=torch.int64), None)
    (gradient,) = torch.autograd.grad(loss, x)
    assert float(loss.detach()) == 0
    assert not gradient.any()


@pytest.mark.parametrize("margin", [None, 1.0])
def test_its_gradients_are_those_of_finite_differences(margin):
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(8, 3, dtype=torch.float64, generator=rng, requires_grad=True)
    labels = torch.arange(8) // 2
    assert torch.autograd.gradcheck(lambda x: batch_hard(x, labels, margin), x)
    assert torch.autograd.gradgradcheck(lambda x: batch_hard(x, labels, margin), x)


def test_equal_images_have_a_gradient():
    """The root of 0 has none of its own."""
    x = torch.ones(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(batch_hard(x, torch.tensor([0, 0, 1, 1]), 0.3), x)
    assert gradient.isfinite().all()


# --------------------------------------------------------------------------------------------------------- batches


def loader(count=5, batch_size=12, rank=0, world=1, seed=0, images=4):
    views = Views(few(open_data("netgraft:digits"), count, 0), (1, 8, 8), Normalisation())
    return Loader(views, batch_size, rank, world, seed, class_images=images)


def test_a_batch_has_classes_of_equally_many_images():
    mine = loader()
    drawn = [batch for epoch in range(20) for batch in mine.epoch(epoch)]
    assert len(mine) == 4
    for batch in drawn:
        classes, counts = batch.y.unique(return_counts=True)
        assert (len(classes), counts.tolist()) == (3, [4, 4, 4])
        assert len(batch.ids.unique()) == 12
        assert batch.y.tolist() == [mine.target.pictures.labels[i] for i in batch.ids]
    seen = torch.cat([batch.ids for batch in drawn]).bincount(minlength=50)
    assert seen.min() > 5  # of 19.2 on average
    assert seen.max() < 40


def test_batches_are_functions_of_seed_epoch_and_number():
    ids = [[batch.ids.tolist() for batch in loader().epoch(epoch)] for epoch in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert [batch.ids.tolist() for batch in loader().epoch(0, 2)] == ids[0][2:]
    assert [batch.ids.tolist() for batch in loader(seed=1).epoch(0)] != ids[0]


def test_processes_share_a_batch():
    one = [batch.ids.tolist() for batch in loader().epoch(0)]
    two = [[batch.ids.tolist() for batch in loader(batch_size=6, rank=rank, world=2).epoch(0)] for rank in range(2)]
    assert one == [a + b for a, b in zip(*two, strict=True)]


def test_small_classes_give_images_several_times():
    (batch,) = list(loader(count=2, batch_size=16).epoch(0))
    _, counts = batch.y.unique(return_counts=True)
    assert counts.tolist() == [4] * 4
    assert len(batch.ids.unique()) <= 8


@pytest.mark.parametrize(("size", "images", "said"), [(14, 4, "whole classes"), (4, 4, "whole classes"), (44, 4, "11")])
def test_what_does_not_divide_is_refused(size, images, said):
    with pytest.raises(UsageError, match=said):
        ClassBatches(few(open_data("netgraft:digits"), 5, 0), size, images, 0)


# ---------------------------------------------------------------------------------------------------- in a training


def one_step(folder, **more):
    return settings(folder, epochs=1, samples_per_class=2, triplet=0.5, target_arg={"drop": 0.0}, **more)


@pytest.mark.parametrize(("text", "margin"), [("0.3", 0.3), ("soft", None)])
def test_the_losses_are_of_what_the_classifier_reads(folder, text, margin):
    """Of the first step, from the initialisation, by a pass of its own."""
    chosen = one_step(folder, triplet_margin=text)
    result, _ = train(chosen)
    (batch,) = list(training(replace(chosen, out=str(folder / "other"))).prepared.loader.epoch(0))
    net = written_net(folder, safetensors.torch.load_file(folder / "init.safetensors"), drop=0.0).train()
    read = []
    net.head.register_forward_pre_hook(lambda _, args: read.append(args[0].detach().double().numpy()))
    ce = float(F.cross_entropy(net(batch.x), batch.y).detach())
    triplet = brute_force(read[0], batch.y.numpy(), margin, range(16))
    record = result.history[0]
    assert triplet > 0
    assert record["train_triplet"] == pytest.approx(triplet, abs=1e-6)
    assert record["train_task"] == pytest.approx(ce + 0.5 * triplet, abs=1e-6)


def test_the_step_follows_it(folder):
    """Another weight, another step; at lambda 0 the same, for it is the task's; without it the old batches."""
    _, half = train(one_step(folder))
    _, again = train(one_step(folder, lam=0.0), force=True)
    _, more = train(replace(one_step(folder), triplet=1.0), force=True)
    _, none = train(replace(one_step(folder), triplet=0.0, class_images=4), force=True)
    _, mixed = train(replace(one_step(folder), triplet=0.0), force=True)
    assert same(half, again)
    assert not same(half, more)
    assert not same(half, none)
    assert not same(none, mixed)


def test_it_brings_classes_together(folder):
    """More than the cross-entropy alone, from weights that tell the classes apart."""
    given = {"samples_per_class": 20, "batch_size": 40, "target_arg": {"drop": 0.0, "width": 24}}
    train(settings(folder, **given, init=None, epochs=20, class_images=4, out=str(folder / "first")))
    given |= {"init": str(folder / "first/last.safetensors"), "epochs": 8, "lr": 0.02}
    without, _ = train(settings(folder, **given, triplet=1e-9))
    result, _ = train(settings(folder, **given, triplet=1.0), force=True)
    assert result.history[-1]["train_triplet"] < without.history[-1]["train_triplet"] / 3
    assert result.history[-1]["eval_top1"] > without.history[-1]["eval_top1"] - 3


def test_a_resumed_training_ends_in_the_same_bytes(folder):
    given = {"triplet": 1.0, "samples_per_class": 8, "recovery_interval": 1}
    _, whole = train(settings(folder, **given, out=str(folder / "whole")))
    with pytest.raises(Killed):
        train(settings(folder, **given), watch=Killer(3))
    result, resumed = train(settings(folder, **given), resume=True)
    assert result.resumed
    assert same(whole, resumed)


@pytest.mark.parametrize(
    ("method", "options"),
    [("at", {}), ("dtnh", {}), ("l2t-gan", {}), ("cetl", {"config": "coupled"}), ("jacobian", {})],
)
def test_it_goes_with_methods(folder, method, options):
    chosen = with_source(folder, method=method, set=options, triplet=1.0, epochs=1, samples_per_class=4)
    result, _ = train(replace(chosen, source_data=None, unlabelled=None))
    assert result.history[0]["train_triplet"] > 0


def test_two_domains_are_refused(folder):
    with pytest.raises(UsageError, match="two domains"):
        train(with_source(folder, method="dann", triplet=1.0))


def test_several_classes_are_refused(folder):
    write_textures(folder / "data")
    given = {"data": str(folder / "data"), "init": None, "target_arg": {"num_classes": 4}, "samples_per_class": None}
    with pytest.raises(UsageError, match="--triplet needs one class"):
        train(settings(folder, **given, triplet=1.0))


OTHER = """
from dataclasses import dataclass
from typing import ClassVar
from netgraft.finetune.protocol import Outputs, Part, Update

@dataclass(frozen=True)
class Other:
    \"\"\"Loses the features on the way.\"\"\"

    needs: ClassVar[frozenset] = frozenset()

    def parts(self, run):
        return {"target": Part(run.target_module)}

    def epoch(self, run, batches, parts):
        for batch in batches:
            yield Update(("target",), {"task": run.task(Outputs(run.target(batch).logits, {}), batch)})
"""


def test_a_method_without_features_is_told(folder):
    (folder / "other.py").write_text(OTHER)
    with pytest.raises(UsageError, match="not of one pass of the target"):
        train(settings(folder, method=str(folder / "other.py"), triplet=1.0))


def test_a_margin_is_a_number(folder):
    with pytest.raises(UsageError, match="--triplet-margin wide"):
        settings(folder, triplet=1.0, triplet_margin="wide")
