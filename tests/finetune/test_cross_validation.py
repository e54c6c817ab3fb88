"""lambda by cross-validation: folds, what is chosen, that the last training is the plain one, and going on."""

import csv
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from support.away import AWAY
from support.runs import Killed, same, settings, train, write_nets, written_net

from netgraft.data.folds import HeldOutFold, without_fold
from netgraft.data.opening import open_data
from netgraft.data.pictures import Pixels, few
from netgraft.errors import CorruptFile, OutputError, UsageError
from netgraft.files.checkpoint import read_provenance
from netgraft.finetune.engine import sets
from netgraft.finetune.engine.diverged import Diverged
from netgraft.finetune.engine.explain import explain
from netgraft.finetune.engine.result import LambdaChoice, Row
from netgraft.finetune.engine.watch import Quiet
from netgraft.models.normalisation import Normalisation
from netgraft.report.training import result_document, result_lines

LAMBDAS, FOLDS = (1.0, 0.01), 3


@pytest.fixture
def folder(tmp_path):
    write_nets(tmp_path)
    (tmp_path / "away.py").write_text(AWAY)
    return tmp_path


def crossed(folder, **more):
    """Short trainings with a regulariser against the task: six, and one on all images."""
    given = {"method": f"{folder}/away.py", "combine": "total", "lambdas": LAMBDAS, "folds": FOLDS}
    return settings(folder, **(given | {"samples_per_class": 9, "lr": 0.2} | more))


class Listener(Quiet):
    """Keeps what is said; with ``most`` ends the training when so many folds are done."""

    def __init__(self, most=None):
        self.said, self.most = [], most

    def say(self, text):
        self.said.append(text)
        if self.most is not None and sum(" fold " in each for each in self.said) == self.most:
            raise Killed


# --------------------------------------------------------------------------------------------------------------- folds


@pytest.mark.parametrize(("count", "folds"), [(9, 3), (10, 4), (5, 5)])
def test_every_image_is_in_one_fold(count, folds):
    """Counted here: sides are apart and whole, classes are dealt evenly, orders are kept."""
    pictures = few(open_data("netgraft:digits"), count, 0)
    seen = []
    for number in range(folds):
        rest, held = without_fold(pictures, HeldOutFold(number, folds), 0)
        assert not set(rest.items) & set(held.items)
        assert sorted(rest.items + held.items) == sorted(pictures.items)
        for side in (rest, held):
            assert list(side.items) == [item for item in pictures.items if item in set(side.items)]
            labels = dict(zip(pictures.items, pictures.labels, strict=True))
            assert side.labels == tuple(labels[item] for item in side.items)
        for label in range(10):
            assert count // folds <= held.labels.count(label) <= -(-count // folds)
        seen += held.items
    assert sorted(seen) == sorted(pictures.items)


def test_the_seed_deals():
    pictures = few(open_data("netgraft:digits"), 9, 0)
    held = [set(without_fold(pictures, HeldOutFold(0, 3), seed)[1].items) for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


def test_a_class_has_an_image_for_each_fold():
    with pytest.raises(UsageError, match="has 3 images, too few for 4 folds"):
        without_fold(few(open_data("netgraft:digits"), 3, 0), HeldOutFold(0, 4), 0)


# ------------------------------------------------------------------------------------------------------------ choosing


def test_the_best_mean_is_chosen():
    def choice(*accuracies):
        rows = [Row(lam, i, top1) for lam, line in zip((1.0, 0.1, 10.0), accuracies, strict=True)
                for i, top1 in enumerate(line)]  # fmt: skip
        return LambdaChoice((1.0, 0.1, 10.0), 2, tuple(rows))

    assert choice((50, 60), (40, 70.5), (90, 0)).best == 0.1
    assert choice((50, 60), (40, 70), (54, 56)).best == 0.1  # equal: the smallest
    found = choice((50, 60), (99, None), (54, 57))
    assert found.best == 10.0
    assert (found.mean(1.0), found.mean(0.1)) == (55, None)
    with pytest.raises(Diverged, match="Every lambda"):
        _ = choice((50, None), (None, None), (None, 1)).best


def test_each_row_is_a_training_of_its_own(folder):
    """A row is the accuracy of a plain training on what is left of the fold, computed here from its written file."""
    chosen = crossed(folder, epochs=5, val_interval=5, samples_per_class=18, lr=0.05)
    whole = few(open_data("netgraft:digits"), 18, 0)
    listener = Listener()
    result, last = train(chosen, watch=listener)
    assert not (folder / "run/cross_validation").exists()
    with (folder / "run/cross_validation.csv").open() as file:
        rows = [(float(row["lambda"]), int(row["fold"]), float(row["val_top1"])) for row in csv.DictReader(file)]
    assert [row[:2] for row in rows] == [(lam, fold) for lam in LAMBDAS for fold in (1, 2, 3)]
    for lam, number, top1 in (rows[0], rows[5]):
        rest, held = without_fold(whole, HeldOutFold(number - 1, FOLDS), 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sets, "few", lambda *_, rest=rest: rest)
            alone = replace(chosen, lambdas=None, folds=None, lam=lam, out=f"{folder}/alone")
            _, weights = train(alone, force=True)
        pixels = Pixels(held, (1, 8, 8), Normalisation())
        with torch.no_grad():
            answers = written_net(folder, weights).eval()(pixels.all()).argmax(1)
        assert top1 == pytest.approx(100 * float((answers == pixels.labels).double().mean()), abs=1e-6)

    means = {lam: sum(row[2] for row in rows if row[0] == lam) / FOLDS for lam in LAMBDAS}
    assert len(set(means.values())) > 1
    best = max(means, key=means.get)
    assert result.choice.best == best
    plain, theirs = train(replace(chosen, lambdas=None, folds=None, lam=best, out=f"{folder}/plain"))
    assert same(last, theirs)
    assert result.history[-1]["eval_top1"] == plain.history[-1]["eval_top1"]

    told = read_provenance(folder / "run/last.safetensors")["finetune"]
    assert (told["lam"], told["lambdas"], told["folds"]) == (best, list(LAMBDAS), FOLDS)
    assert next(text for text in listener.said if "lambda 0.01, fold 2 of 3" in text).endswith(f"{rows[4][2]:.2f} %")
    lines = "\n".join(result_lines(result))
    assert all(f"{mean:.2f} %" in lines for mean in means.values())
    assert result_document(result)["lambda"]["chosen"] == best


def test_test_images_are_not_looked_at_while_choosing(folder, monkeypatch):
    """They are opened when all rows are there, and no fold's training measures anything on them."""
    opened, seen = sets.open_data, []

    def watched(name, split, **more):
        table = folder / "run/cross_validation.csv"
        seen.append((split, len(table.read_text().splitlines()) - 1 if table.exists() else 0))
        return opened(name, split=split, **more)

    monkeypatch.setattr(sets, "open_data", watched)
    train(crossed(folder, lambdas=(0.1, 0.0), folds=2, epochs=1, val_interval=1))
    assert [split for split, done in seen if done < 4] == ["train"] * 4
    assert seen[4:] == [("train", 4), ("test", 4)]


# ------------------------------------------------------------------------------------------------------------- going on


def test_an_interrupted_choice_goes_on(folder, monkeypatch):
    """Killed after the second fold, within the fourth and within the last training: the same bytes, nothing again."""
    given = {"lambdas": (0.0, 0.1), "folds": 2, "recovery_interval": 1}
    train(crossed(folder, **given, out=f"{folder}/whole"))
    chosen = crossed(folder, **given)
    with pytest.raises(Killed):
        train(chosen, watch=Listener(2))
    from netgraft.finetune.engine.loop import Training

    begun, end = [], Training._end_batch

    def ending(self, done, images):
        end(self, done, images)
        begun.append(self.settings.out)
        if (begun.count(self.settings.out), stops.get(self.settings.out)) == (3, True):
            del stops[self.settings.out]
            raise Killed

    monkeypatch.setattr(Training, "_end_batch", ending)
    stops = {f"{folder}/run/cross_validation/lambda 0.1 fold 2": True, f"{folder}/run": True}
    for _ in range(2):
        with pytest.raises(Killed):
            train(chosen, resume=True)
    assert stops == {}
    result, _ = train(chosen, resume=True)
    assert result.resumed
    steps = {name: begun.count(name) for name in begun}
    assert steps[f"{folder}/run/cross_validation/lambda 0.1 fold 2"] == 2 * 2  # each of the steps once
    assert len(steps) == 3
    for name in ("last.safetensors", "best.safetensors", "cross_validation.csv"):
        assert (folder / "run" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_other_settings_are_another_choice(folder):
    chosen = crossed(folder, lambdas=(0.0, 0.1), folds=2, epochs=1)
    with pytest.raises(Killed):
        train(chosen, watch=Listener(1))
    with pytest.raises(OutputError, match="There is a training"):
        train(chosen)
    with pytest.raises(UsageError, match="--lambda: "):
        train(replace(chosen, lambdas=(0.0, 0.2)), resume=True)
    table = folder / "run/cross_validation.csv"
    table.write_text("lambda,fold\n0.1,1\n")
    with pytest.raises(CorruptFile, match="table of folds"):
        train(chosen, resume=True)
    train(chosen, force=True)
    assert len(table.read_text().splitlines()) == 5
    train(replace(chosen, lambdas=None, folds=None), force=True)
    assert not table.exists()


def test_a_wrong_training_leaves_nothing_behind(folder):
    with pytest.raises(UsageError, match="too few for 20 folds"):
        train(crossed(folder, folds=20))
    assert not (folder / "run").exists()


def test_a_lambda_that_diverges_is_not_chosen(folder):
    result, _ = train(crossed(folder, lambdas=(0.0, 1e30), folds=2))
    assert result.choice.of(1e30) == [None, None]
    assert result.choice.best == 0.0
    assert "diverged" in "\n".join(result_lines(result))
    again, _ = train(crossed(folder, lambdas=(0.0, 1e30), folds=2), resume=True)
    assert again.choice == result.choice


def test_explained(folder):
    remarks = explain(crossed(folder, folds=2)).remarks
    assert any("4 times, on 1/2 of the images" in text for text in remarks), remarks


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lambdas": (0.1, 1.0)}, "--folds 5"),
        ({"folds": 3}, "several lambdas"),
        ({"lambdas": (0.1, 0.1), "folds": 3}, "different numbers"),
        ({"lambdas": (0.1, -1.0), "folds": 3}, "0 or more"),
        ({"lambdas": (0.1, float("nan")), "folds": 3}, "0 or more"),
        ({"lambdas": (0.1, 1.0), "folds": 1}, "at least 2"),
        ({"lambdas": (0.1, 1.0), "folds": 3, "val_split": 0.2}, "do not go together"),
    ],
    ids=str,
)
def test_what_cannot_be_chosen_is_refused(folder, given, words):
    with pytest.raises(UsageError) as caught:
        settings(folder, **given)
    assert words in str(caught.value)


def test_best_is_what_is_written(folder):
    """``best`` of the last training is of that training: no weights of a fold are left."""
    result, _ = train(crossed(folder, lambdas=(0.0, 0.1), folds=2, epochs=1))
    best = safetensors.torch.load_file(folder / "run/best.safetensors")
    assert len(result.history) == 1
    assert same(best, safetensors.torch.load_file(folder / "run/last.safetensors"))
