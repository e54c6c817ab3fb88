"""``best`` is chosen on images that are held out for it, or it is said loudly that it was not."""

import json

import pytest
import safetensors.torch
import torch
from support.runs import settings, train, write_nets, written_net

from netgraft.data.opening import open_data
from netgraft.data.pictures import Pixels, few, hold_out
from netgraft.errors import UsageError
from netgraft.files.checkpoint import read_provenance
from netgraft.finetune.engine.judge import Judge
from netgraft.finetune.engine.sets import open_sets
from netgraft.finetune.engine.watch import Quiet
from netgraft.models.normalisation import Normalisation
from netgraft.report.training import result_document, result_lines


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


class Listener(Quiet):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_each_class_gives_its_share(folder):
    sets = open_sets(settings(folder, samples_per_class=10, val_split=0.3))
    whole = few(open_data("netgraft:digits"), 10, 0)
    assert set(sets.train.items) | set(sets.validation.items) == set(whole.items)
    assert not set(sets.train.items) & set(sets.validation.items)
    assert [sets.validation.labels.count(label) for label in range(10)] == [3] * 10
    assert list(sets.train.items) == [item for item in whole.items if item in set(sets.train.items)]
    assert not set(sets.validation.items) & set(sets.test.items)
    assert sets.record()["validation"]["held_out"] == 0.3


def test_the_seed_draws(folder):
    def held(seed):
        return set(open_sets(settings(folder, samples_per_class=None, val_split=0.2, draw_seed=seed)).validation.items)

    assert held(0) == held(0)
    assert held(0) != held(1)


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.99, 4)])
def test_neither_side_is_empty(share, count):
    rest, held = hold_out(few(open_data("netgraft:digits"), 5, 0), share, 0)
    assert [held.labels.count(label) for label in range(10)] == [count] * 10
    assert len(rest) == 50 - len(held)


def test_one_image_of_a_class_is_not_enough():
    with pytest.raises(UsageError, match="has one image; training and validation need one each"):
        hold_out(few(open_data("netgraft:digits"), 1, 0), 0.5, 0)


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5])
def test_a_share_is_between_0_and_1(folder, share):
    with pytest.raises(UsageError, match="--val-split"):
        settings(folder, val_split=share)


def test_the_first_of_the_most_accurate_is_the_best():
    """By validation where there is some, whatever the test images say; an epoch that was not measured is never it."""
    pictures = few(open_data("netgraft:digits"), 1, 0)
    pixels = Pixels(pictures, (1, 8, 8), Normalisation())
    records = [{"val_top1": v, "eval_top1": e} for v, e in ((50, 90), (70, 60), (70, 95), (60, 99))] + [{}]
    for judge, chosen in ((Judge(pixels, pixels), 1), (Judge(pixels), 3)):
        best = {}
        for record in records:
            best = record if judge.better(record, best) else best
        assert best == records[chosen]


def test_validation_accuracy_is_that_of_the_held_out_images(folder):
    """From the written file, computed here; the file that is best is the one that is most accurate on them."""
    chosen = settings(folder, samples_per_class=20, val_split=0.25, epochs=4)
    listener = Listener()
    result, last = train(chosen, watch=listener)
    held = open_sets(chosen).validation
    pixels = Pixels(held, (1, 8, 8), Normalisation())
    assert len(pixels) == 50

    def accuracy(tensors):
        with torch.no_grad():
            answers = written_net(folder, tensors).eval()(pixels.all()).argmax(1)
        return 100 * float((answers == pixels.labels).double().mean())

    assert result.history[-1]["val_top1"] == pytest.approx(accuracy(last), abs=1e-6)
    best = safetensors.torch.load_file(result.folder / "best.safetensors")
    assert accuracy(best) == pytest.approx(max(record["val_top1"] for record in result.history), abs=1e-6)
    assert result.best["val_top1"] == pytest.approx(accuracy(best), abs=1e-6)
    told = read_provenance(result.folder / "best.safetensors")["finetune"]
    assert told["best_chosen_on"] == "validation"
    assert told["data"]["validation"]["images"] == 50
    assert not any("chosen" in text for text in listener.said)
    assert any("validation images" in line for line in result_lines(result))


def test_without_one_it_is_said(folder):
    """Once, before the first epoch, in the weights' record, in the document and below the table; ``last`` beside it."""
    listener = Listener()
    result, _ = train(settings(folder), watch=listener)
    said = [text for text in listener.said if "chosen on the test images" in text]
    assert len(said) == 1
    assert "--val-split" in said[0]
    assert read_provenance(result.folder / "last.safetensors")["finetune"]["best_chosen_on"] == "test"
    document = result_document(result)
    assert document["best_chosen_on"] == "test"
    assert document["last"] == result.history[-1]
    assert any("too high" in line for line in result_lines(result))
    assert all("val_top1" not in record for record in result.history)


def test_a_resumed_training_chooses_by_the_same_images(folder):
    chosen = settings(folder, val_split=0.25, epochs=3, out=str(folder / "whole"))
    train(chosen)
    train(settings(folder, val_split=0.25, epochs=3), resume=True)
    with pytest.raises(UsageError, match="settings that it began with"):
        train(settings(folder, val_split=0.5, epochs=3), resume=True)
    assert (folder / "whole/best.safetensors").read_bytes() == (folder / "run/best.safetensors").read_bytes()


def test_a_folder_of_before_there_was_this_option_goes_on(folder):
    result, _ = train(settings(folder, epochs=1))
    config = result.folder / "config.json"
    document = json.loads(config.read_text())
    del document["val_split"], document["val_interval"]
    config.write_text(json.dumps(document))
    again, _ = train(settings(folder, epochs=1), resume=True)
    assert again.resumed
