"""The lock of architectures, without torch: what it records, what counts as a change, what it refuses to read."""

import json
import os
import random
import stat
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from support.drawn import ZOO, Drawing, graphs, residual, shared

from netgraft.architecture.chain import longest_chain
from netgraft.architecture.graph import LayerGraph, Slot
from netgraft.errors import CorruptFile, OutputError, UsageError
from netgraft.lock import file as lock
from netgraft.lock.file import Change, LockEntry, LockSettings, compare, entry, read_lock, to_text, write_lock

thorough = settings(deadline=None, derandomize=True, database=None, max_examples=100)


def record(graph, **options):
    return entry(graph, longest_chain(graph), LockSettings(**options))


def changes(was, now):
    return [(change.what, change.name) for change in compare(record(was), record(now))]


def block(shape=(8, 8, 3, 3), names=("stem", "body", "head"), skip=True, norm=False, **facts):
    d = Drawing()
    x = d.conv(d.input(), name=names[0])
    y = d.conv(x, shape=shape, name=names[1], **facts)
    y = d.norm(y, name="norm") if norm else y
    d.output(d.linear(d.add(y, x) if skip else y, name=names[2]))
    return d.graph()


# ----------------------------------------------------------------------------------------------------- what is recorded


def test_an_entry_holds_layers_wiring_and_chain():
    found = record(block(stride=(2, 2), padding=(1, 1), dilation=(1, 1)), args=("a=1",), input_size=(3, 8, 8))
    assert found.settings == LockSettings(("a=1",), (3, 8, 8), True, "layers")
    assert list(found.layers) == ["body", "head", "stem"]
    assert found.layers["body"] == {
        "kind": "conv2d",
        "shape": [8, 8, 3, 3],
        "stride": [2, 2],
        "padding": [1, 1],
        "dilation": [1, 1],
        "groups": 1,
        "tensors": ["bias", "weight"],
    }
    assert found.layers["head"] == {"kind": "linear", "shape": [8, 8], "tensors": ["bias", "weight"]}
    assert found.edges == {
        ("(input)", "stem"),
        ("stem", "body"),
        ("body", "head"),
        ("stem", "head"),
        ("head", "(output)"),
    }
    assert found.chain == ("stem", "body", "head")


def test_inputs_are_told_apart_and_calls_are_counted():
    d = Drawing()
    d.output(d.add(d.conv(d.input(), name="one"), d.conv(d.input(), name="two")))
    assert {("(input)", "one"), ("(input 2)", "two")} < record(d.graph()).edges
    assert record(shared()).layers["core"]["calls"] == 3


def renumbered(graph):
    """The same architecture as another tracer might see it: other node ids, one more operation behind every node."""
    ids, nodes = {}, []
    for i, node in enumerate(graph.nodes):
        ids[node.id] = f"view_{i}" if node.op != "output" else f"call_{i}"
        inputs = tuple(ids[id] for id in node.inputs)
        nodes.append(replace(node, id=f"call_{i}", inputs=inputs))
        if node.op != "output":
            nodes.append(replace(node, id=f"view_{i}", op="view", layer=None, inputs=(f"call_{i}",), shape=(7,)))
    return LayerGraph(tuple(nodes), dict(graph.layers), graph.loose, "another rung", ("a warning",))


@thorough
@given(graphs())
def test_nothing_of_the_tracer_is_recorded(graph):
    other = renumbered(graph)
    assert to_text({"m": record(graph)}) == to_text({"m": record(other)})


@thorough
@given(graphs())
def test_an_entry_survives_its_file(tmp_path_factory, graph):
    path = tmp_path_factory.mktemp("lock") / "lock.json"
    entries = {"./größe.py:Net": record(graph, args=("a='ü, \"b\"'",), input_size=(3, 4)), "resnet18": record(graph)}
    write_lock(path, entries)
    assert read_lock(path) == entries
    assert all(compare(entries[name], found) == () for name, found in read_lock(path).items())
    assert path.read_text(encoding="utf-8") == to_text(read_lock(path))


def test_the_text_does_not_depend_on_order():
    entries = [(name, record(graph)) for name, graph in ZOO.items()]
    texts = set()
    for seed in range(5):
        random.Random(seed).shuffle(entries)
        shuffled = {
            name: replace(found, layers=dict(random.Random(seed).sample(list(found.layers.items()), len(found.layers))))
            for name, found in entries
        }
        texts.add(to_text(shuffled))
    assert len(texts) == 1


def test_the_text_does_not_depend_on_the_hash_seed():
    code = (
        "from support.drawn import residual; from netgraft.architecture.chain import longest_chain;"
        "from netgraft.lock.file import *;"
        "g = residual(blocks=3); print(to_text({'b': entry(g, longest_chain(g), LockSettings()), 'a': entry(g, "
        "longest_chain(g), LockSettings())}), end='')"
    )
    folder = os.path.dirname(os.path.dirname(__file__))
    texts = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": folder},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    ]
    assert len(set(texts)) == 1
    assert texts[0].endswith(b"\n}\n")
    assert list(json.loads(texts[0])["models"]) == ["a", "b"]


def test_one_line_for_each_layer_and_edge_in_natural_order():
    d = Drawing()
    x = d.input()
    for i in range(12):
        x = d.conv(x, name=f"blocks.{i}")
    d.output(x)
    text = to_text({"m": record(d.graph())})
    lines = [line.strip() for line in text.splitlines()]
    layers = [line.partition(":")[0].strip('"') for line in lines if '"kind"' in line]
    assert layers == [f"blocks.{i}" for i in range(12)]
    assert '["blocks.9", "blocks.10"],' in lines
    assert text.endswith("}\n")


@pytest.mark.parametrize("names", [["a", "a1", "a1.b", "a01", "a2", "a10", "b", "²", ""], ["1", "a", "10", "2"]])
def test_any_names_can_be_sorted(names):
    backwards = names[::-1]
    assert sorted(names, key=lock.natural) == sorted(backwards, key=lock.natural)


# --------------------------------------------------------------------------------------------------- what is a change

WIDER = (16, 8, 3, 3)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (block(), []),
        (block(shape=WIDER), [("layer changed", "body")]),
        (block(stride=(2, 2)), [("layer changed", "body")]),
        (block(groups=8), [("layer changed", "body")]),
        (block(bias=False), [("layer changed", "body")]),
        (block(names=("stem", "trunk", "head")), [("layer renamed", "trunk")]),
        (block(skip=False), [("edge removed", "stem -> head")]),
        (
            block(norm=True),
            [
                ("layer added", "norm"),
                ("edge removed", "body -> head"),
                ("edge added", "body -> norm"),
                ("edge added", "norm -> head"),
            ],
        ),
    ],
)
def test_every_kind_of_change_is_named(now, expected):
    found = changes(block(), now)
    assert [change for change in found if change[0] != "chain changed"] == expected
    if expected and expected[0][0] == "layer added":
        assert changes(now, block())[0][0] == "layer removed"


def test_a_reshaped_layer_shows_both_shapes():
    assert compare(record(block()), record(block(shape=WIDER))) == (
        Change("layer changed", "body", "shape", [8, 8, 3, 3], [16, 8, 3, 3]),
    )


def test_a_layer_of_another_kind():
    d = Drawing()
    x = d.conv(d.input(), name="stem")
    d.output(d.linear(d.add(d.linear(x, name="body"), x), name="head"))
    found = compare(record(block()), record(d.graph()))
    assert Change("layer changed", "body", "kind", "conv2d", "linear") in found


def test_a_renamed_block_is_renamed_and_nothing_else():
    before, after = residual(blocks=2), residual(blocks=2)
    names = {f"L{i}": f"trunk.{i}" for i in range(1, 20)}
    nodes = tuple(replace(node, layer=names.get(node.layer or "")) for node in after.nodes)
    layers = {names[name]: replace(layer, name=names[name]) for name, layer in after.layers.items()}
    found = changes(before, LayerGraph(nodes, layers))
    assert {what for what, _ in found} == {"layer renamed"}


def test_a_changed_chain_shows_both():
    longer = residual(blocks=3)
    (change,) = [c for c in compare(record(residual(blocks=2)), record(longer)) if c.what == "chain changed"]
    assert change.now == list(longest_chain(longer).layers)
    assert len(change.now) == len(change.was) + 2


def test_unused_parameters_and_settings_count():
    graph = block()
    idle = replace(graph, loose={"old.weight": Slot("old.weight", (3,), "float32")})
    buffer = replace(graph, loose={"step": Slot("step", (), "int64", buffer=True)})
    assert changes(graph, idle) == [("parameter unused", "old.weight")]
    assert changes(idle, graph) == [("parameter no longer unused", "old.weight")]
    assert changes(graph, buffer) == []
    assert compare(record(graph), record(graph, args=("width=2",))) == (
        Change("inspected differently", fact="args", was=[], now=["width=2"]),
    )


@thorough
@given(graphs(), graphs())
def test_no_change_means_the_same_entry(one, other):
    a, b = record(one), record(other)
    assert (compare(a, b) == ()) == (a == b)
    assert compare(a, a) == ()


# ---------------------------------------------------------------------------------------------------- reading, writing


def good():
    return json.loads(to_text({"m": record(block())}))


def broken(change):
    document = good()
    change(document["models"]["m"])
    return json.dumps(document)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "[" * 100_000,
        "<<<<<<< HEAD\n{}",
        '{"format": "netgraft lock"}',
        '{"format": "other", "version": 1, "models": {}}',
        '{"format": "netgraft lock", "version": 2, "models": {}}',
        '{"format": "netgraft lock", "version": 1, "models": []}',
        '{"format": "netgraft lock", "version": 1, "models": {"m": 3}}',
        broken(lambda m: m.pop("chain")),
        broken(lambda m: m.update(chain="stem")),
        broken(lambda m: m.update(chain=["nowhere"])),
        broken(lambda m: m.update(edges=[["stem"]])),
        broken(lambda m: m.update(edges=[["stem", "nowhere"]])),
        broken(lambda m: m.update(edges=[[["stem"], "head"]])),
        broken(lambda m: m.update(layers=[])),
        broken(lambda m: m["layers"].update(stem=3)),
        broken(lambda m: m["layers"]["stem"].pop("shape")),
        broken(lambda m: m["layers"]["stem"].update(shape="8x8")),
        broken(lambda m: m["layers"]["stem"].update(kind=["conv2d"])),
        broken(lambda m: m.update(args=[1])),
        broken(lambda m: m.update(input_size="3,8,8")),
        broken(lambda m: m.update(input_size=[3, -8])),
        broken(lambda m: m.update(input_size=[True])),
        broken(lambda m: m.update(gates="yes")),
        broken(lambda m: m.update(weight="flops")),
        broken(lambda m: m.update(weight=["layers"])),
        broken(lambda m: m.update(unused=None)),
    ],
)
def test_what_is_no_lock_is_refused(tmp_path, text):
    path = tmp_path / "lock.json"
    path.write_text(text)
    with pytest.raises(CorruptFile) as caught:
        read_lock(path)
    assert str(path) in caught.value.where
    assert caught.value.hint


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "lock.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(CorruptFile):
        read_lock(tmp_path / "lock.json")


def test_a_missing_lock_says_how_to_write_one(tmp_path):
    with pytest.raises(UsageError) as caught:
        read_lock(tmp_path / "lock.json")
    assert "--lock" in caught.value.hint
    with pytest.raises(UsageError):
        read_lock(tmp_path)


def test_writing_replaces_the_file_at_once(tmp_path, monkeypatch):
    path = tmp_path / "lock.json"
    path.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="could not be written"):
        write_lock(path, {"m": record(block())})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["lock.json"]
    monkeypatch.undo()
    write_lock(path, {"m": record(block())})
    assert os.listdir(tmp_path) == ["lock.json"]
    assert list(read_lock(path)) == ["m"]


@pytest.mark.skipif(os.name != "posix", reason="modes and links of POSIX")
def test_the_file_has_the_mode_of_the_umask_and_links_stay(tmp_path):
    before = os.umask(0o027)
    try:
        (tmp_path / "link.json").symlink_to(tmp_path / "lock.json")
        write_lock(tmp_path / "link.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "link.json").is_symlink()
    assert stat.S_IMODE((tmp_path / "lock.json").stat().st_mode) == 0o640
    assert read_lock(tmp_path / "lock.json") == {}


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError):
        write_lock(tmp_path / "nowhere" / "lock.json", {})


def test_entries_are_plain_data():
    found = record(block())
    assert isinstance(found, LockEntry)
    assert json.loads(json.dumps(found.layers)) == found.layers
