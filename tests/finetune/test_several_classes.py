"""Images of several classes each: binary cross-entropy, mAP, and what refuses them; top-10 beside top-1 and top-5."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from support.runs import settings, train, with_source, write_nets, written_net
from support.textures import write_textures

from netgraft.data.opening import open_data
from netgraft.data.pictures import LabelledPictures, Pixels
from netgraft.errors import UsageError
from netgraft.finetune.engine.evaluate import evaluate
from netgraft.finetune.engine.processes import Processes
from netgraft.finetune.engine.ranking import average_precisions
from netgraft.finetune.toolbox.terms import binary_cross_entropy
from netgraft.models.normalisation import Normalisation
from netgraft.report.training import epoch_text, result_lines


@pytest.fixture
def folder(tmp_path):
    write_nets(tmp_path)
    write_textures(tmp_path / "data")
    return tmp_path


def several(folder, **more):
    """A training on the textures, from random weights: the initialisation has another head."""
    given = {"data": str(folder / "data"), "init": None, "target_arg": {"num_classes": 4}, "samples_per_class": None}
    return settings(folder, **given, aug=False, **more)


def bce(logits, labels):
    """The formula, in NumPy and float64."""
    p = 1 / (1 + np.exp(-logits))
    return -(labels * np.log(p) + (1 - labels) * np.log(1 - p))


# ------------------------------------------------------------------------------------------------------------- formulas


def test_average_precision_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 5)) < 0.3).astype(float)
    for scores in (rng.normal(size=(60, 5)), rng.integers(0, 4, (60, 5)).astype(float)):  # the second with many ties
        found = average_precisions(torch.from_numpy(scores), torch.from_numpy(labels))
        truth = average_precision_score(labels, scores, average=None)
        np.testing.assert_allclose(found, truth, atol=1e-12)


def test_a_class_without_a_positive_has_none():
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    found = average_precisions(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), labels)
    assert found[0] == 1
    assert found[1].isnan()


def test_binary_cross_entropy_is_the_formula():
    rng = np.random.default_rng(1)
    logits, labels, weights = rng.normal(size=(7, 3)), rng.integers(0, 2, (7, 3)).astype(float), rng.random(7)
    given = [torch.from_numpy(each) for each in (logits, labels, weights)]
    assert float(binary_cross_entropy(*given[:2])) == pytest.approx(bce(logits, labels).mean(), abs=1e-12)
    weighted = (weights * bce(logits, labels).mean(1)).mean()
    assert float(binary_cross_entropy(*given)) == pytest.approx(weighted, abs=1e-12)


# ------------------------------------------------------------------------------------------------------------- training


def test_measures_are_those_of_the_written_weights(folder):
    result, last = train(several(folder, epochs=3))
    test = Pixels(open_data(str(folder / "data"), split="test", multilabel=True), (1, 8, 8), Normalisation())
    net = written_net(folder, last, num_classes=4).eval()
    with torch.no_grad():
        logits = net(test.all()).double().numpy()
    labels = test.labels.numpy()
    record = result.history[-1]
    truth = 100 * average_precision_score(labels, logits, average="macro")
    assert record["eval_map"] == pytest.approx(truth, abs=1e-4)
    assert record["eval_loss"] == pytest.approx(bce(logits, labels).mean(), abs=1e-5)
    assert "eval_top1" not in record
    assert f"mAP {record['eval_map']:.2f} %" in epoch_text(record)
    lines = result_lines(result)
    assert lines[0].split()[:3] == ["weights", "epoch", "mAP"]
    assert any("its mAP is too high" in line for line in lines)


def test_two_processes_measure_what_one_does(folder):
    """Shares of unequal sizes, put together."""
    pixels = Pixels(open_data(str(folder / "data"), multilabel=True), (1, 8, 8), Normalisation())
    net = written_net(folder, None, num_classes=4)

    def measured(rank, world, shares):
        processes = SimpleNamespace(rank=rank, world=world, device=torch.device("cpu"))
        processes.all_objects = lambda mine: [*shares, mine]
        sent = []
        if shares is None:
            processes.all_objects = lambda mine: [sent.append(mine) or mine]
        return evaluate(net, pixels, processes, torch.inference_mode, 5), sent

    alone, _ = measured(0, 1, [])
    _, share = measured(1, 2, None)
    assert measured(0, 2, share)[0] == pytest.approx(alone, abs=1e-5)


def test_it_learns(folder):
    result, _ = train(several(folder, epochs=25, lr=0.1))
    assert result.history[-1]["train_task"] < 0.8 * result.history[0]["train_task"]
    assert result.history[-1]["eval_map"] > 75


def test_best_is_chosen_by_map(folder):
    result, _ = train(several(folder, epochs=4, val_split=0.3))
    by_map = max(result.history, key=lambda record: record["val_map"])
    assert result.best["epoch"] == by_map["epoch"]
    assert any(f"mAP {by_map['val_map']:.2f} %" in line for line in result_lines(result))


def test_a_resumed_training_ends_in_the_same_bytes(folder):
    train(several(folder, out=str(folder / "whole")))
    train(several(folder, epochs=2))
    train(several(folder, epochs=2), resume=True)
    assert (folder / "whole/last.safetensors").read_bytes() == (folder / "run/last.safetensors").read_bytes()


def with_net(folder, method, **options):
    chosen = with_source(folder, method=method, set=options)
    given = {"data": str(folder / "data"), "init": f"{folder}/four.safetensors", "target_arg": {"num_classes": 4}}
    given |= {"source_arg": {"width": 8, "num_classes": 4}, "source_weights": None, "random_source": True}
    given |= {"source_data": None, "unlabelled": None, "samples_per_class": None, "aug": False}
    return replace(chosen, **given)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("kd", {}),
        ("fitnet", {}),
        ("fm", {"hint_epochs": 1}),
        ("delta", {}),
        ("ewc", {}),
        ("l2-sp-fisher", {}),
        ("cetl", {"soft_targets": 1.0, "config": "coupled"}),
    ],
)
def test_what_needs_one_class_refuses(folder, method, options):
    train(several(folder, epochs=1, out=str(folder / "first")))
    (folder / "first/last.safetensors").rename(folder / "four.safetensors")
    with pytest.raises(UsageError, match="images have several classes each"):
        train(with_net(folder, method, **options))
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("method", "options"), [("at", {}), ("fm", {}), ("l2-sp", {}), ("delta", {"attention": "uniform"})]
)
def test_what_does_not_trains(folder, method, options):
    train(several(folder, epochs=1, out=str(folder / "first")))
    (folder / "first/last.safetensors").rename(folder / "four.safetensors")
    result, _ = train(with_net(folder, method, **options))
    assert result.history[-1]["eval_map"] > 0


@pytest.mark.parametrize(
    ("more", "option"), [({"smoothing": 0.1}, "--smoothing"), ({"source_data": "netgraft:digits"}, "--source-data")]
)
def test_options_that_need_one_class_refuse(folder, more, option):
    with pytest.raises(UsageError, match=f"{option} needs one class for each image"):
        train(several(folder, **more))


# --------------------------------------------------------------------------------------------------------------- top-10


class Fixed(torch.nn.Module):
    """Answers that do not depend on the images, only on their order."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.at = logits, 0

    def forward(self, x):
        self.at += len(x)
        return self.logits[self.at - len(x) : self.at]


@pytest.mark.parametrize("classes", [10, 12])
def test_top_10_stands_beside_top_1_and_top_5(classes):
    """By the place of the right class in a full sort; where ten classes are all it would be 100 % and is left out."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(40, classes, generator=rng)
    labels = torch.randint(classes, (40,), generator=rng).tolist()
    names = tuple(map(str, range(classes)))
    image = Image.new("L", (8, 8))
    pictures = LabelledPictures("made", "test", names, tuple(labels), tuple(map(str, range(40))), lambda *_: image)
    pixels, processes = Pixels(pictures, (1, 8, 8), Normalisation()), Processes("cpu")
    found = evaluate(Fixed(logits), pixels, processes, torch.inference_mode, 16)
    order = np.argsort(-logits.numpy(), axis=1)
    place = np.array([list(row).index(label) for row, label in zip(order, labels, strict=True)])
    for most in (1, 5, 10):
        share = 100 * float((place < most).mean())
        if most == 10 and classes == 10:
            assert "top10" not in found
        else:
            assert found[f"top{most}"] == pytest.approx(share)


def test_the_table_shows_them():
    record = {"epoch": 0, "eval_top1": 10.0, "eval_top5": 50.0, "eval_top10": 90.0, "eval_loss": 1.0}
    result = SimpleNamespace(
        best=record, history=[record], chosen_on="test", folder=Path("run"), choice=None, pictures=()
    )
    head, _, *rows = result_lines(result)
    assert head.split()[2:5] == ["accuracy", "top-5", "top-10"]
    assert "90.00 %" in rows[0]
