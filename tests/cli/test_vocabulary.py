"""Vocabulary maps from the files that people have."""

import json

import pytest

from netgraft.cli.vocabulary import read_vocabulary_map
from netgraft.errors import UsageError

SOURCE = ["[PAD]", "the", "cat", "Cat"]
TARGET = ["cat", "dog", " cat", "Cat", "[PAD]"]
EXPECTED = (2, -1, -1, 3, 0)


def written(folder, name, tokens):
    path = folder / name
    numbers = {token: number for number, token in enumerate(tokens)}
    if name.endswith(".txt"):
        path.write_text("".join(f"{token}\n" for token in tokens))
    elif name.startswith("tokenizer"):
        model = {token: number for token, number in numbers.items() if not token.startswith("[")}
        added = [{"content": token, "id": number} for token, number in numbers.items() if token not in model]
        path.write_text(json.dumps({"model": {"vocab": model}, "added_tokens": added}))
    else:
        path.write_text(json.dumps(dict(reversed(numbers.items()))))
    return path


@pytest.mark.parametrize("target", ["target.txt", "target.json", "tokenizer_target.json"])
@pytest.mark.parametrize("source", ["source.txt", "so:urce.json", "tokenizer_source.json"])
def test_two_vocabularies_are_matched_by_the_strings_of_their_tokens(tmp_path, source, target):
    paths = written(tmp_path, source, SOURCE), written(tmp_path, target, TARGET)
    assert read_vocabulary_map(f"{paths[0]}:{paths[1]}") == EXPECTED


def test_a_list_says_which_is_which(tmp_path):
    (tmp_path / "map.json").write_text("[2, null, 0]")
    assert read_vocabulary_map(str(tmp_path / "map.json")) == (2, -1, 0)


def test_numbers_without_a_token_are_new(tmp_path):
    (tmp_path / "a.json").write_text('{"x": 0, "y": 3}')
    (tmp_path / "b.json").write_text('{"y": 0, "x": 2}')
    assert read_vocabulary_map(f"{tmp_path}/a.json:{tmp_path}/b.json") == (3, -1, 0)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "not JSON"),
        ("[1, ", "not JSON"),
        ("{}", "empty"),
        ('{"a": -1}', "not a vocabulary"),
        ('{"a": true}', "not a vocabulary"),
        ('{"a": 1, "b": 1}', "same number"),
        ('{"a": 999999999}', "numbers up to 999999999"),
        ('["a", "a"]', "a token twice"),
        ("[1, 2]", "not a vocabulary"),
        ('{"x": 0}', "no token in common"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, what):
    good = written(tmp_path, "source.txt", SOURCE)
    bad = tmp_path / "bad.json"
    bad.write_text(content)
    with pytest.raises(UsageError, match=what) as caught:
        read_vocabulary_map(f"{good}:{bad}")
    assert str(bad) in caught.value.where
    assert "vocab.txt" in caught.value.hint


@pytest.mark.parametrize("content", ["[-1]", "[true]", "[]", '["a"]', '{"a": 0}'])
def test_a_list_of_anything_but_numbers_is_refused(tmp_path, content):
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(UsageError, match="not a vocabulary map"):
        read_vocabulary_map(str(tmp_path / "map.json"))


def test_missing_files_are_refused(tmp_path):
    good = written(tmp_path, "source.txt", SOURCE)
    for given in ("nowhere.json", f"{good}:nowhere.txt"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_vocabulary_map(given)
