"""What the user says about single layers, on networks drawn by hand."""

import json

import pytest
from support.drawn import Drawing, plain

from netgraft.cli.options import parse_maps, parse_skips
from netgraft.errors import UnknownName, UsageError
from netgraft.matchers._overrides import override
from netgraft.matchers.wired import Wired
from netgraft.plan import Pair, Pairing


def convnet(names, norms=True, kinds=("batch_norm",)):
    """conv, norm, relu in a row, then a linear head; convolutions and norms called NAME.conv and NAME.norm."""
    d = Drawing()
    x = d.input()
    for i, name in enumerate(names):
        x = d.conv(x, shape=(8, 8 if i else 3, 3, 3), name=f"{name}.conv")
        x = d.norm(x, name=f"{name}.norm", kind=kinds[i % len(kinds)]) if norms else x
        x = d.op("relu", x)
    d.output(d.linear(d.op("mean", x), shape=(10, 8), name="head"))
    return d.graph()


SOURCE, TARGET = convnet("abc"), convnet("xyz")
MATCHED = Wired()(SOURCE, TARGET)


def pairs(pairing):
    return {pair.target: pair.source for pair in pairing.pairs}


STRAIGHT = {f"{t}.{role}": f"{s}.{role}" for s, t in zip("abc", "xyz", strict=True) for role in ("conv", "norm")}
STRAIGHT["head"] = "head"


def test_the_matcher_alone():
    assert pairs(MATCHED) == STRAIGHT
    assert override(MATCHED, SOURCE, TARGET, (), ()) is MATCHED


def test_a_mapped_layer_takes_its_norm_along_and_nothing_else_changes():
    found = override(MATCHED, SOURCE, TARGET, [("a.conv", "z.conv")], ())
    assert pairs(found) == STRAIGHT | {"z.conv": "a.conv", "z.norm": "a.norm"}
    assert list(pairs(found)) == list(TARGET.layers)  # in target order
    why = {pair.target: pair.why for pair in found.pairs}
    assert why["z.conv"] == "mapped by --map a.conv=z.conv"
    assert why["z.norm"] == "batch_norm after z.conv, as mapped"
    assert why["x.conv"] == {pair.target: pair.why for pair in MATCHED.pairs}["x.conv"]


def test_a_norm_named_itself_goes_where_it_is_told():
    found = override(MATCHED, SOURCE, TARGET, [("a.conv", "z.conv"), ("b.norm", "z.norm")], ())
    assert pairs(found) == STRAIGHT | {"z.conv": "a.conv", "z.norm": "b.norm"}
    found = override(MATCHED, SOURCE, TARGET, [("a.conv", "z.conv")], ["z.norm"])
    assert pairs(found) == {t: s for t, s in (STRAIGHT | {"z.conv": "a.conv"}).items() if t != "z.norm"}
    assert found.unpaired["z.norm"] == "skipped by --skip z.norm"


@pytest.mark.parametrize("source", [convnet("abc", norms=False), convnet("abc", kinds=("batch_norm", "group_norm"))])
def test_a_norm_without_partner_loses_the_one_it_had(source):
    start = Pairing((Pair("a.conv", "x.conv", "same"), Pair("a.norm", "x.norm", "same")))
    found = override(start, source, TARGET, [("b.conv", "x.conv")], ())
    assert pairs(found) == {"x.conv": "b.conv"}
    assert found.unpaired == {"x.norm": "batch_norm after x.conv: b.conv of the source has no such norm"}


def test_skipped_layers_keep_their_own_initialisation_with_their_norms():
    found = override(MATCHED, SOURCE, TARGET, (), ["y.co*", "head"])
    assert pairs(found) == {t: s for t, s in STRAIGHT.items() if t[0] not in "yh"}
    assert found.unpaired == {
        "y.conv": "skipped by --skip y.co*",
        "y.norm": "skipped by --skip y.co*: batch_norm after y.conv",
        "head": "skipped by --skip head",
    }
    found = override(MATCHED, SOURCE, TARGET, (), ["*.norm"])
    assert pairs(found) == {t: s for t, s in STRAIGHT.items() if not t.endswith("norm")}


def test_a_mapped_layer_has_no_reason_to_be_unpaired():
    start = Pairing((), {"x.conv": "nothing fits", "y.conv": "nothing fits"})
    found = override(start, SOURCE, TARGET, [("c.conv", "x.conv")], ())
    assert pairs(found) == {"x.conv": "c.conv", "x.norm": "c.norm"}
    assert found.unpaired == {"y.conv": "nothing fits"}


def test_what_is_named_need_not_pass_its_input_through():
    start = Pairing((), {}, ("x.conv", "x.norm", "y.conv", "z.conv"), {"x.norm": "end", "z.norm": "end"}, ("y.conv",))
    found = override(start, SOURCE, TARGET, [("a.conv", "x.conv")], ["y.*"])
    assert (found.inserted, found.zeroed, found.diracs) == (("z.conv",), {"z.norm": "end"}, ())


def test_a_source_layer_may_go_to_several():
    found = override(MATCHED, SOURCE, TARGET, [("a.conv", "y.conv"), ("a.conv", "z.conv"), ("a.conv", "z.conv")], ())
    assert pairs(found) == STRAIGHT | {f"{t}.{role}": f"a.{role}" for t in "yz" for role in ("conv", "norm")}


# ------------------------------------------------------------------------------------------------------------- refusals


def refused(maps=(), skips=(), error=UsageError):
    with pytest.raises(error) as caught:
        override(MATCHED, SOURCE, TARGET, maps, skips)
    return caught.value


def test_unknown_layers_are_named_with_what_was_meant():
    error = refused([("a.convv", "x.conv")], error=UnknownName)
    assert "Unknown layer of the source 'a.convv'" in str(error)
    assert "--map a.convv=x.conv" in error.where
    assert "a.conv" in error.hint
    error = refused([("a.conv", "q.conv")], error=UnknownName)
    assert "Unknown layer of the target 'q.conv'" in str(error)
    assert "Did you mean" in error.hint
    error = refused([("a", "x.conv")], error=UnknownName)
    assert error.hint == "a holds layers: a.conv, a.norm. Map each of them."


def test_a_target_has_one_source():
    error = refused([("a.conv", "x.conv"), ("b.conv", "x.conv")])
    assert "x.conv of the target is mapped twice" in error.what
    assert error.where == "--map a.conv=x.conv and --map b.conv=x.conv"


def test_kinds_that_do_not_turn_into_one_another():
    error = refused([("head", "x.conv")])
    assert "head cannot be turned into those of x.conv: linear head does not fit conv2d" in error.what
    assert "linear [10, 8] and conv2d [8, 3, 3, 3]" in error.where
    assert "--skip x.conv" in error.hint


def test_globs_that_match_nothing():
    error = refused(skips=["x"])
    assert error.what == "--skip x matches no layer of the target."
    assert error.hint == "x holds layers: x.conv, x.norm. All of them: --skip 'x.*'"
    assert "head" in refused(skips=["haed"]).hint
    assert refused(skips=["t_*"]).hint.startswith("Known: head, x.conv")


def test_mapped_and_skipped():
    error = refused([("a.conv", "x.conv")], ["x.*"])
    assert "x.conv of the target is both mapped and skipped" in error.what
    assert error.where == "--map a.conv=x.conv and --skip x.*"


def test_names_do_not_matter_but_places_do():
    source, target = plain((8, 3, 3, 3), (8, 8, 3, 3), norms=True), plain((8, 3, 3, 3), (8, 8, 3, 3), norms=True)
    convs = [[layer.name for layer in graph.layers.values() if layer.kind == "conv2d"] for graph in (source, target)]
    norms = [[layer.name for layer in graph.layers.values() if layer.is_norm] for graph in (source, target)]
    found = override(Pairing(()), source, target, [(convs[0][1], convs[1][0])], ())
    assert pairs(found) == {convs[1][0]: convs[0][1], norms[1][0]: norms[0][1]}


# --------------------------------------------------------------------------------------------------------- command line


def test_maps_from_options_and_files(tmp_path):
    lines = tmp_path / "map.txt"
    lines.write_text("# stem\na.conv = x.conv\n\nb.conv=y.conv  # twice\na.conv=x.conv\n")
    assert parse_maps(["c = z", "b.conv=y.conv"], lines) == (("c", "z"), ("b.conv", "y.conv"), ("a.conv", "x.conv"))
    document = tmp_path / "map.json"
    document.write_text(json.dumps({"a": "x", "b": ["y", "z"]}))
    assert parse_maps(None, document) == (("a", "x"), ("b", "y"), ("b", "z"))
    document.write_text('{"a": "x", "a": "y"}')
    assert parse_maps(None, document) == (("a", "x"), ("a", "y"))
    assert parse_maps(None, None) == ()


@pytest.mark.parametrize("text", ["a", "=x", "a=", " = "])
def test_a_mapping_names_two_layers(text):
    with pytest.raises(UsageError, match="A mapping names two layers") as caught:
        parse_maps([text], None)
    assert caught.value.where == f"--map {text}"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("[]", "not a map of layers"),
        ('{"a": 1}', "not a map of layers"),
        ('{"a": {"b": "c"}}', "not a map of layers"),
        ('{"a": ["b", null]}', "not a map of layers"),
        ('{"a": ""}', "names two layers"),
        ('{"a": ', "no JSON"),
        ("a=b\nc", "names two layers"),
    ],
)
def test_bad_map_files(tmp_path, content, what):
    file = tmp_path / "map"
    file.write_text(content)
    with pytest.raises(UsageError, match=what) as caught:
        parse_maps(None, file)
    assert str(file) in caught.value.where


def test_a_missing_map_file(tmp_path):
    with pytest.raises(UsageError, match="cannot be read") as caught:
        parse_maps(None, tmp_path / "nowhere")
    assert "nowhere" in caught.value.where


def test_skips():
    assert parse_skips(["head", " fc* ", "head"]) == ("head", "fc*")
    assert parse_skips(None) == ()
    with pytest.raises(UsageError, match="glob is missing"):
        parse_skips([" "])
