"""Images with several classes each, from a table beside them."""

import pytest
import torch
from support.textures import CLASSES, write_textures

from netgraft.data.opening import load_data, open_data
from netgraft.data.pictures import Pixels, few, hold_out
from netgraft.errors import UsageError
from netgraft.models.normalisation import Normalisation


def opened(folder, split="train"):
    return open_data(str(folder), split=split, multilabel=True)


@pytest.mark.parametrize("columns", [False, True])
def test_both_tables_say_the_same(tmp_path, columns):
    truth = torch.from_numpy(write_textures(tmp_path, columns=columns))
    both = [opened(tmp_path, split) for split in ("train", "test")]
    assert [pictures.classes for pictures in both] == [CLASSES, CLASSES]
    assert [len(pictures) for pictures in both] == [36, 12]
    items = [item for pictures in both for item in pictures.items]
    assert sorted(items) == sorted(f"images/{i}.png" for i in range(48))
    for pictures in both:
        numbers = [int(item.removeprefix("images/").removesuffix(".png")) for item in pictures.items]
        labels = Pixels(pictures, (1, 8, 8), Normalisation()).labels
        assert torch.equal(labels, truth[numbers].float())
        assert pictures.labels == (-1,) * len(pictures)
        _, several = pictures[0]
        assert several == tuple(truth[numbers[0]].nonzero().flatten().tolist())


def test_two_tables_are_a_split(tmp_path):
    write_textures(tmp_path / "train", 8)
    write_textures(tmp_path / "val", 5, seed=1, columns=True)
    train, test = opened(tmp_path), opened(tmp_path, "test")
    assert (len(train), len(test)) == (8, 5)
    assert train.classes == test.classes == CLASSES
    assert train.record()["sha256"] != test.record()["sha256"]


def test_the_record_depends_on_the_labels(tmp_path):
    write_textures(tmp_path)
    before = opened(tmp_path).record()
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text().replace(".png,a\n", ".png,b\n"))
    assert opened(tmp_path).record()["sha256"] != before["sha256"]


def test_a_class_of_the_tests_is_trained(tmp_path):
    write_textures(tmp_path / "train", 8)
    write_textures(tmp_path / "test", 5)
    table = tmp_path / "test/labels.csv"
    table.write_text(table.read_text() + "more.png,zebra\n")
    with pytest.raises(UsageError, match=r"(?s)not there.*labels\.csv:7"):
        opened(tmp_path, "test")
    (tmp_path / "test/more.png").write_bytes((tmp_path / "test/images/0.png").read_bytes())
    with pytest.raises(UsageError, match="'zebra' is in no table to train with"):
        opened(tmp_path, "test")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[1:], r"(?s)no first line.*labels\.csv:1"),
        (lambda lines: [*lines[:3], lines[3] + ",1"], r"(?s)6 cells.*labels\.csv:4"),
        (lambda lines: [*lines[:3], lines[3].replace(",1", ",yes").replace(",0", ",no")], r"(?s)neither 0 nor 1.*:4"),
        (lambda lines: [*lines, lines[1]], "twice"),
        (lambda lines: lines[:1], "empty"),
        (lambda lines: [*lines, "images/none.png,0,0,0,1"], "not there"),
    ],
)
def test_a_broken_table_is_named_by_line(tmp_path, change, said):
    write_textures(tmp_path, columns=True)
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(change(table.read_text().splitlines())))
    with pytest.raises(UsageError, match=said):
        opened(tmp_path)


def test_one_class_is_too_few(tmp_path):
    write_textures(tmp_path)
    lines = [line.split(",")[0] + ",a" for line in (tmp_path / "labels.csv").read_text().splitlines()]
    (tmp_path / "labels.csv").write_text("\n".join(["file,labels", *lines[1:]]))
    with pytest.raises(UsageError, match="too few classes"):
        opened(tmp_path)


def test_who_wants_one_class_refuses(tmp_path):
    write_textures(tmp_path)
    with pytest.raises(UsageError, match="several classes each cannot be used here"):
        load_data(str(tmp_path), size=(1, 8, 8), mean=(0,), std=(1,))
    with pytest.raises(UsageError, match="Leave out --samples-per-class"):
        few(opened(tmp_path), 3, 0)


def test_a_share_of_all_is_held_out(tmp_path):
    write_textures(tmp_path)
    whole = opened(tmp_path)
    rest, held = hold_out(whole, 0.25, 0)
    assert (len(rest), len(held)) == (27, 9)
    assert sorted(rest.items + held.items) == sorted(whole.items)
    pairs = dict(zip(whole.items, whole.several, strict=True))
    assert all(pairs[item] == labels for item, labels in zip(held.items, held.several, strict=True))
