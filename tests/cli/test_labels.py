"""Label maps from files."""

import json

import pytest

from netgraft.cli.labels import match_names, read_labels
from netgraft.errors import UsageError


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([2, None, 0], (2, -1, 0)),
        ([], ()),
        ({"source": ["cat", "Great_Dane"], "target": ["great dane", "fox", "cat"]}, (1, -1, 0)),
    ],
)
def test_a_label_map_is_read(tmp_path, content, expected):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    assert read_labels(path) == expected


def test_the_first_of_equal_names_counts():
    assert match_names(["crane", "crane"], ["crane"]) == (0,)


@pytest.mark.parametrize(
    "content", ["", "[1, ", "[-1]", "[true]", '["cat"]', '{"source": ["a"]}', '{"source": [1], "target": []}']
)
def test_anything_else_is_refused(tmp_path, content):
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_labels(path)
    assert str(path) in caught.value.where
    assert "source" in caught.value.hint


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_labels(tmp_path / "labels.json")
