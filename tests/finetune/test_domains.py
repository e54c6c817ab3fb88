"""Two domains in one pass: statistics, features, and whose labels are learnt."""

import pytest
import torch
from support.runs import steps, train, training, with_source, write_nets
from support.two_domains import fresh, sides
from support.two_processes import distance

from netgraft.errors import UnknownName, UsageError
from netgraft.finetune.toolbox import domains
from netgraft.finetune.toolbox.domains import DomainAdaptation


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def test_each_domain_has_its_own_statistics(folder):
    """One pass is what two are, and the target's alone updates what BatchNorm keeps."""
    found, batch, run = sides(folder)
    kept = {name: buffer.clone() for name, buffer in run.target_module.named_buffers()}
    other = fresh(folder)[0].run
    ours = other.target(batch.unlabelled, stats=True).logits
    theirs = other.target(batch.source, stats=False).logits
    torch.testing.assert_close(found.target[domains.LOGITS], ours, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.source[domains.LOGITS], theirs, atol=1e-6, rtol=1e-5)
    for name, buffer in other.target_module.named_buffers():
        torch.testing.assert_close(kept[name], buffer)
    assert "forward" not in vars(run.target_module.stem_norm)
    assert run.target_module.stem_norm.track_running_stats


def test_joint_statistics(folder):
    found, batch, _ = sides(folder, {"norm": "joint"})
    other = fresh(folder)[0].run
    logits = other.target(torch.cat([batch.unlabelled.x, batch.source.x]), stats=True).logits
    torch.testing.assert_close(torch.cat([found.target[domains.LOGITS], found.source[domains.LOGITS]]), logits)


def test_statistics_over_processes(folder):
    """--bn sync replaces BatchNorm's forward, which must be there again afterwards."""
    apart, _, _ = sides(folder)
    found, _, run = sides(folder, bn="sync")
    torch.testing.assert_close(found.source[domains.LOGITS], apart.source[domains.LOGITS], atol=1e-5, rtol=1e-4)
    assert run.target_module.stem_norm.forward.func.__name__ == "_forward"
    assert int(run.target_module.stem_norm.num_batches_tracked) == 2


def test_features_are_what_the_classifier_reads(folder):
    found, _, run = sides(folder, layers=("features", "logits", "body"))
    assert found.source["body"].shape == (16, 12)
    for side in (found.source, found.target):
        torch.testing.assert_close(run.target_module.head(side["features"]), side["logits"])


@pytest.mark.parametrize("labels", ["source", "target", "both"])
@pytest.mark.parametrize("unlabelled", ["netgraft:digits", None])
def test_whose_labels(labels, unlabelled, folder):
    """In eval mode an image's logits do not depend on those beside it."""
    running, batch = fresh(folder, unlabelled=unlabelled)
    net = running.run.target_module.eval()
    found = DomainAdaptation(labels=labels).sides(running.run, batch, ("logits",))
    chosen = {"source": [batch.source], "target": [batch], "both": [batch.source, batch]}[labels]
    logits, classes = (torch.cat([f(b) for b in chosen]) for f in (lambda b: net(b.x), lambda b: b.y))
    torch.testing.assert_close(found.task, torch.nn.functional.cross_entropy(logits, classes))
    torch.testing.assert_close(found.target["logits"], net((batch.unlabelled or batch).x))
    torch.testing.assert_close(found.source["logits"], net(batch.source.x))


def test_without_lambda_the_target_trains_as_ever(folder):
    """Up to rounding: the source's images are in the same pass."""
    common = {"target_arg": {"drop": 0.0}, "unlabelled": None}
    _, plain = train(with_source(folder, method="plain", **common))
    given = {"method": "dan", "set": {"labels": "target"}, "lam": 0.0}
    _, found = train(with_source(folder, out=f"{folder}/other", **given, **common))
    assert distance(plain, found) < 1e-5


def test_other_classes_are_refused(folder):
    running = training(with_source(folder, method="ddc", source_data="netgraft:glyphs"))
    with pytest.raises(UsageError, match="more classes than the target's 10"):
        steps(running)


def test_layers_are_checked(folder):
    with pytest.raises(UnknownName, match="hed"):
        training(with_source(folder, method="dan", set={"layers": "features,hed"}))
    with pytest.raises(UsageError, match="No layer"):
        training(with_source(folder, method="dan", set={"layers": ","}))
