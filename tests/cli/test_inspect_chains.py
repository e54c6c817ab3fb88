"""``inspect-chains`` through the command line: formats, options, the lock, and what exits with which code."""

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support.command_line import EXAMPLES, run

from netgraft.report.chains import dot, github, mermaid

NET = """
from torch import nn

class _Block(nn.Module):
    def __init__(self, width, kernel=3, stride=1):
        super().__init__()
        self.a = nn.Conv2d(width, width, kernel, stride, kernel // 2)
        self.b = nn.Conv2d(width, width, 3, 1, 1)
        self.down = nn.Conv2d(width, width, 1, stride)

    def forward(self, x):
        return self.b(self.a(x).relu()) + self.down(x)

class Net(nn.Module):
    input_size = (3, 16, 16)

    def __init__(self, width=8, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.norm = nn.BatchNorm2d(width)
        self.block = _Block(width)
        self.squeeze, self.excite = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        y = self.block(x)
        return self.head((y + x).mean((2, 3)))
"""
CHAIN = ["stem", "squeeze", "excite", "block.a", "block.b", "head"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def write(text, name="net.py"):
    Path(name).write_text(text)


def edit(*replacements, name="net.py"):
    text = NET
    for old, new in replacements:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    write(text, name)


def inspect(*args, code=0):
    result = run("inspect-chains", *args)
    assert result.exit_code == code, result.output
    return result


def document(*args, **options):
    return json.loads(inspect(*args, "--format", "json", **options).stdout)


# ------------------------------------------------------------------------------------------------------------ formats


def test_table():
    lines = inspect("./net.py:Net").stdout.splitlines()
    assert lines[0] == "./net.py:Net: the longest chain has 6 of 7 layers"
    assert [line.split()[1] for line in lines[3:9]] == CHAIN
    assert lines[3].split() == ["1", "stem", "conv2d", "8x3x3x3", "norm"]


def test_json_is_one_list_with_an_object_for_each_model():
    (first, second) = document("./net.py", "netgraft:vgg11-glyphs")
    assert {"model", "chain", "layers", "edges", "ties", "rung", "warnings"} <= first.keys()
    assert (first["model"], first["chain"], first["ties"], first["rung"]) == ("./net.py", CHAIN, 1, "meta")
    assert first["layers"]["block.down"]["shape"] == [8, 8, 1, 1]
    assert ["excite", "block.a"] in first["edges"]
    assert {end for edge in first["edges"] for end in edge} <= first["layers"].keys()
    assert second["model"] == "netgraft:vgg11-glyphs"


def test_a_model_twice_is_reported_twice():
    assert [found["model"] for found in document("./net.py", "net.py")] == ["./net.py", "net.py"]


EVIL = 'a"b]\\<i>;--x`#1&|%%{é'


def evil():
    """Give the stem a name that every format could take for its own syntax."""
    edit(
        ("self.stem = nn.Conv2d(3, width, 3, 1, 1)", f"self.add_module({EVIL!r}, nn.Conv2d(3, width, 3, 1, 1))"),
        ("self.stem(x)", f"getattr(self, {EVIL!r})(x)"),
    )


def test_dot_highlights_the_chain():
    lines = inspect("./net.py", "netgraft:vgg11-glyphs", "--format", "dot").stdout.splitlines()
    assert lines[0] == "digraph netgraft {"
    assert lines[-1] == "}"
    bold = [line.split('"')[1].split("\\n")[0] for line in lines if "fillcolor" in line and " m0_" in line]
    assert bold == CHAIN
    assert sum("color=red" in line for line in lines if " m0_" in line) == 6  # stem, norm, ..., head


def read_dot(text):
    """The labels of nodes, and the edges; every line must be one that DOT can read."""
    labels, edges = {}, []
    for line in text.splitlines():
        string = r'"(?:[^"\\]|\\.)*"'
        if match := re.fullmatch(rf"\s*(m\d+_\d+) \[label=({string})(?:, \w+=\w+)*\];", line):
            labels[match[1]] = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], match[2][1:-1])
        elif match := re.fullmatch(r"\s*(m\d+_\d+) -> (m\d+_\d+)(?: \[color=red, penwidth=3\])?;", line):
            edges.append((match[1], match[2]))
        else:
            assert re.fullmatch(
                rf"digraph netgraft {{|  node \[[^]\"]*\];|\s*subgraph cluster_\d+ {{|\s*label={string};|\s*}}", line
            ), line
    return labels, edges


def test_dot_escapes_any_name():
    evil()
    text = inspect("./net.py", "--format", "dot").stdout
    labels, edges = read_dot(text)
    assert f"{EVIL}\nconv2d 8x3x3x3" in labels.values()
    assert {end for edge in edges for end in edge} <= labels.keys()
    assert len(edges) == len(document("./net.py")[0]["edges"])
    if shutil.which("dot"):
        done = subprocess.run(["dot", "-Tplain"], input=text.encode(), capture_output=True, check=True)
        assert done.stdout.startswith(b"graph")


def read_mermaid(text):
    head, style, *lines = text.splitlines()
    assert head == "flowchart TD"
    assert style.strip().startswith("classDef chain ")
    labels, edges, chain, bold = {}, [], [], []
    for line in lines:
        if match := re.fullmatch(r'    (m\d+n\d+)\["([^"]*)"\](:::chain)?', line):
            labels[match[1]] = re.sub(r"#(\d+);", lambda m: chr(int(m[1])), match[2].replace("<br/>", "\n"))
            chain += [match[1]] if match[3] else []
        elif match := re.fullmatch(r"    (m\d+n\d+) --> (m\d+n\d+)", line):
            edges.append((match[1], match[2]))
        elif match := re.fullmatch(r"  linkStyle ([\d,]+) \S+", line):
            bold = [edges[int(i)] for i in match[1].split(",")]
        else:
            assert re.fullmatch(r'  subgraph m\d+\["[^"]*"\]|  end', line), line
    return labels, edges, chain, bold


def test_mermaid():
    evil()
    labels, edges, chain, bold = read_mermaid(inspect("./net.py", "./net.py", "--format", "mermaid").stdout)
    assert f"{EVIL}\nconv2d 8x3x3x3" in labels.values()
    assert [labels[id].split("\n")[0] for id in chain] == [EVIL, *CHAIN[1:]] * 2
    assert {end for edge in edges for end in edge} <= labels.keys()
    assert len(edges) == len(set(edges))
    assert all({labels[end].split("\n")[0] for end in edge} <= {EVIL, "norm", *CHAIN} for edge in bold)
    assert len(bold) == 2 * 6
    assert "<" not in "".join(mermaid.quoted(EVIL))


def test_quoting_has_no_way_out():
    assert dot.quoted("\\", '"') == '"\\\\\\n\\""'
    assert mermaid.quoted('a"b#c\nd') == '"a#34;b#35;c#65533;d"'
    assert (
        github.annotation("error", "a,b:c%.py", "x::y\n::z", ["100%", "a\r\n::stop"])
        == "::error file=a%2Cb%3Ac%25.py,title=x%3A%3Ay�%3A%3Az::100%25%0Aa��::stop"
    )


def test_github_says_nothing_but_workflow_commands():
    result = inspect("./net.py", "netgraft:vgg11-glyphs", "--format", "github")
    assert result.stdout.splitlines() == [
        "::notice file=net.py,title=./net.py::the longest chain has 6 of 7 layers",
        "::notice title=netgraft%3Avgg11-glyphs::the longest chain has 9 of 9 layers",
    ]


def test_github_points_at_the_file_that_changed():
    inspect("./net.py", "netgraft:vgg11-glyphs", "--lock", "l.json")
    edit(("nn.Linear(width, classes)", "nn.Linear(width, 7)"))
    lines = inspect("--check", "l.json", "--format", "github", code=1).stdout.splitlines()
    assert lines == [
        "::error file=net.py,title=net.py changed::layer reshaped: head: 5x8 -> 7x8",
        "::notice file=l.json,title=netgraft%3Avgg11-glyphs::unchanged, the longest chain has 9 of 9 layers",
    ]


def test_junit_has_a_case_for_each_model_and_a_failure_for_drift():
    write(NET, "other.py")
    inspect("./net.py", "./other.py", "--lock", "l.json")
    edit(("nn.Linear(width, classes)", "nn.Linear(width, 7)"))
    root = ET.fromstring(inspect("--check", "l.json", "--format", "junit", code=1).stdout)
    assert (root.tag, root[0].tag) == ("testsuites", "testsuite")
    assert (root[0].get("tests"), root[0].get("failures"), root[0].get("errors")) == ("2", "1", "0")
    cases = {case.get("name"): [child.tag for child in case] for case in root.iter("testcase")}
    assert cases == {"net.py": ["failure"], "other.py": ["system-out"]}
    assert "5x8 -> 7x8" in root.find(".//failure").text


@pytest.mark.parametrize("format", ["junit", "github"])
def test_a_model_that_cannot_be_inspected_stands_beside_the_others(format):
    write(NET, "other.py")
    inspect("./net.py", "./other.py", "--lock", "l.json")
    write("import torch\nraise ValueError('<broken> & \x07')")
    result = inspect("--check", "l.json", "--format", format, code=2)
    assert "broken" in result.stderr
    if format == "junit":
        root = ET.fromstring(result.stdout)
        assert {case.get("name"): case[0].tag for case in root.iter("testcase")} == {
            "net.py": "error",
            "other.py": "system-out",
        }
    else:
        assert result.stdout.startswith("::error file=net.py,title=net.py could not be inspected::net.py does not run")
        assert "::notice file=other.py" in result.stdout


# ------------------------------------------------------------------------------------------------------------ options


def test_no_gates():
    assert document("./net.py", "--no-gates")[0]["chain"] == ["stem", "block.a", "block.b", "head"]
    assert "without gates has 4 of 7" in inspect("./net.py", "--no-gates").stdout


def test_weight():
    edit(("self.down = nn.Conv2d(width, width, 1, stride)", "self.down = nn.Conv2d(width, width, 9, 1, 4)"))
    assert document("./net.py")[0]["chain"] == CHAIN
    assert document("./net.py", "--weight", "params")[0]["chain"] == ["stem", "squeeze", "excite", "block.down", "head"]
    assert "by parameters" in inspect("./net.py", "--weight", "params").stdout


PARALLEL = """
import torch
from torch import nn

class Net(nn.Module):
    input_size = (8,)
    def __init__(self, depth=2):
        super().__init__()
        self.l = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.r = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
    def forward(self, x):
        for l, r in zip(self.l, self.r):
            x = l(x) + r(x)
        return x
"""


def test_all_paths():
    write(PARALLEL)
    (found,) = document("./net.py", "--all-paths")
    assert found["chains"] == [["l.0", "l.1"], ["l.0", "r.1"], ["r.0", "l.1"], ["r.0", "r.1"]]
    assert found["ties"] == 4
    text = inspect("./net.py", "--all-paths").stdout
    assert "all" in text
    assert "  2: l.1 -> r.1" in text
    assert "No other chain is as long." in inspect("netgraft:vgg11-glyphs", "--all-paths").stdout


def test_all_paths_are_bounded_and_say_how_many_there_are():
    write(PARALLEL)
    (found,) = document("./net.py", "--all-paths", "--arg", "depth=40")
    assert len(found["chains"]) == 100
    assert found["ties"] == 2**40
    assert "the first 100 of 1,099,511,627,776" in inspect("./net.py", "--all-paths", "--arg", "depth=40").stdout


def test_fail_under():
    inspect("./net.py", "--fail-under", "6")
    result = inspect("./net.py", "--fail-under", "7", code=1)
    assert "fewer than 7" in result.stdout
    assert "./net.py: 6" in result.stderr
    assert document("./net.py", "--fail-under", "7", code=1)[0]["wanted"] == 7
    assert inspect("./net.py", "--fail-under", "7", "--format", "github", code=1).stdout.startswith("::error ")
    assert "<failure" in inspect("./net.py", "--fail-under", "7", "--format", "junit", code=1).stdout
    inspect("./net.py", "--fail-under", "7", "--lock", "l.json", code=1)
    assert not os.path.exists("l.json")


# --------------------------------------------------------------------------------------------------------------- lock


CHANGES = {
    "added": (
        [
            ("self.head = ", "self.extra = nn.Conv2d(8, 8, 3, padding=1)\n        self.head = "),
            ("block(x)\n", "extra(self.block(x))\n"),
        ],
        [
            "layer added: extra (conv2d 8x8x3x3), fed by block.b, block.down, feeds head",
            "chain changed: 6 -> 7",
            "+extra",
        ],
    ),
    "removed": (
        [("self.b = nn.Conv2d(width, width, 3, 1, 1)", "self.b = nn.Identity()")],
        ["layer removed: block.b (conv2d 8x8x3x3), fed by block.a, feeds head", "chain changed: 6 -> 5", "-block.b"],
    ),
    "kernel": ([("kernel=3", "kernel=5")], ["layer reshaped: block.a: 8x8x3x3 -> 8x8x5x5", "padding 1,1 -> 2,2"]),
    "width": ([("classes=5", "classes=6")], ["layer reshaped: head: 5x8 -> 6x8"]),
    "stride": (
        [("kernel=3, stride=1", "kernel=3, stride=2"), ("(y + x).mean((2, 3))", "y.mean((2, 3)) + x.mean((2, 3))")],
        ["layer changed: block.a: stride 1x1 -> 2x2", "block.down: stride 1x1 -> 2x2"],
    ),
    "groups": ([("kernel // 2)", "kernel // 2, groups=8)")], ["block.a: 8x8x3x3 -> 8x1x3x3", "block.a: groups 1 -> 8"]),
    "bias": (
        [("nn.Linear(width, classes)", "nn.Linear(width, classes, bias=False)")],
        ["head: tensors bias, weight -> weight"],
    ),
    "kind": (
        [("self.norm = nn.BatchNorm2d(width)", "self.norm = nn.GroupNorm(2, width)")],
        ["layer of another kind: norm: batch_norm -> group_norm"],
    ),
    "renamed": ([("self.b = ", "self.c = "), ("self.b(", "self.c(")], ["layer renamed: block.b -> block.c"]),
    "skip": ([("(y + x)", "y")], ["edge removed: excite -> head"]),
    "rewired": (
        [("self.down(x)", "self.down(self.a(x))")],
        ["edge added: block.a -> block.down", "edge removed: excite -> block.down"],
    ),
    "serial": (
        [("self.b(self.a(x).relu()) + self.down(x)", "self.b(self.down(self.a(x).relu()))")],
        ["chain changed: 6 -> 7", "+block.down"],
    ),
    "shared": ([("y = self.block(x)", "y = self.block(self.block(x))")], ["layer changed: block.a: calls 1 -> 2"]),
    "input": (
        [
            ("y = self.block(x)", "y = self.block(x) + z"),
            ("        x = self.norm", "        z = x[:, :1]\n        x = self.norm"),
        ],
        ["edge added: (input) -> head"],
    ),
    "unused": (
        [("self.head = ", "self.idle = nn.Linear(2, 2)\n        self.head = ")],
        ["parameter unused: idle.weight"],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_architecture_exits_1_and_names_the_change(name):
    replacements, expected = CHANGES[name]
    inspect("./net.py", "--lock", "l.json")
    before = Path("l.json").read_text()
    edit(*replacements)
    result = inspect("--check", "l.json", code=1)
    assert result.stdout.startswith("net.py: changed\n")
    for text in expected:
        assert text in result.stdout
    assert "netgraft inspect-chains --check l.json --update" in result.stderr
    assert Path("l.json").read_text() == before
    (found,) = document("./net.py", "--check", "l.json", code=1)
    assert found["locked"] is True
    assert found["changes"]

    updated = inspect("--check", "l.json", "--update")
    assert updated.stdout == result.stdout
    assert "updated l.json: net.py" in updated.stderr
    assert inspect("--check", "l.json").stdout.startswith("net.py: unchanged, the longest chain has ")


UNCHANGED = {
    "reformatted": lambda: write("# a comment\n" + NET.replace("    ", "  ").replace("'", '"')),
    "other words": lambda: edit(("y = self.block(x)", "features = self.block(x)"), ("(y + x)", "(features + x)")),
    "other class name": lambda: write(NET.replace("_Block", "_Piece").replace("class Net", "class Other")),
    "other order of registration": lambda: edit(
        ("        self.b = nn.Conv2d(width, width, 3, 1, 1)\n", ""),
        ("width, 1, stride)\n", "width, 1, stride)\n        self.b = nn.Conv2d(width, width, 3, 1, 1)\n"),
    ),
    "other order of operands": lambda: edit(
        ("self.b(self.a(x).relu()) + self.down(x)", "self.down(x) + self.b(self.a(x).relu())")
    ),
    "functional": lambda: edit(
        ("self.stem(x)", "nn.functional.conv2d(x, self.stem.weight, self.stem.bias, padding=1)")
    ),
    "no op more": lambda: edit(("y = self.block(x)", "y = self.block(x.contiguous() * 1.0).clone()")),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_an_unchanged_architecture_exits_0(name):
    inspect("./net.py", "--lock", "l.json")
    before = Path("l.json").read_text()
    UNCHANGED[name]()
    assert Path("net.py").read_text() != NET
    assert inspect("--check", "l.json").stdout == "net.py: unchanged, the longest chain has 6 of 7 layers\n"
    inspect("./net.py", "--lock", "l.json", "--force")
    assert Path("l.json").read_text() == before
    assert inspect("--check", "l.json", "--update").stderr == ""


def test_a_moved_folder_is_unchanged(tmp_path, monkeypatch):
    (tmp_path / "one" / "models").mkdir(parents=True)
    (tmp_path / "one" / "models" / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path / "one")
    inspect("models/net.py:Net", "--lock", "l.json")
    text = Path("l.json").read_text()
    assert str(tmp_path) not in text
    shutil.move(tmp_path / "one", tmp_path / "two")
    monkeypatch.chdir(tmp_path / "two")
    inspect("--check", "l.json")
    for same in ("./models/net.py:Net", tmp_path / "two" / "models" / "net.py:Net", "models/../models/net.py:Net"):
        assert "unchanged" in inspect(same, "--check", "l.json").stdout
    inspect(tmp_path / "two" / "models" / "net.py:Net", "--lock", "again.json")
    assert Path("again.json").read_text() == text


def test_the_lock_records_how_to_inspect_again():
    inspect(
        "./net.py",
        "--arg",
        "width=4",
        "--arg",
        "classes = 3",
        "--input-size",
        "3,8,8",
        "--no-gates",
        "--lock",
        "l.json",
    )
    (recorded,) = json.loads(Path("l.json").read_text())["models"].values()
    assert recorded["args"] == ["classes=3", "width=4"]
    assert (recorded["input_size"], recorded["gates"], recorded["weight"]) == ([3, 8, 8], False, "layers")
    assert "without gates has 4 of 7" in inspect("--check", "l.json").stdout
    assert "unchanged" in inspect("./net.py", "--check", "l.json").stdout
    changed = inspect("./net.py", "--check", "l.json", "--arg", "width=6", "--weight", "params", code=1).stdout
    assert "inspected differently: args classes=3, width=4 -> width=6" in changed
    assert "inspected differently: weight layers -> params" in changed
    assert "layer reshaped: stem: 4x3x3x3 -> 6x3x3x3" in changed


def test_several_models_added_and_left_out():
    write(NET, "other.py")
    inspect("./net.py", "--lock", "l.json")
    result = inspect("./net.py", "./other.py", "--check", "l.json", code=1)
    assert result.stdout.splitlines() == [
        "./net.py: unchanged, the longest chain has 6 of 7 layers",
        "./other.py: not in the lock",
        "  not in the lock; add it with --update",
    ]
    assert [found["locked"] for found in document("./net.py", "./other.py", "--check", "l.json", code=1)] == [
        True,
        False,
    ]
    inspect("./other.py", "--check", "l.json", "--update")
    assert list(json.loads(Path("l.json").read_text())["models"]) == ["net.py", "other.py"]
    left = inspect("./other.py", "--check", "l.json")
    assert "l.json records more architectures, which were not inspected: net.py" in left.stderr
    inspect("--check", "l.json")
    os.remove("other.py")
    assert "no such Python file" in inspect("--check", "l.json", code=2).stderr


def test_an_existing_lock_is_not_overwritten_without_a_word():
    write("mine", "l.json")
    result = inspect("./net.py", "--lock", "l.json", code=2)
    assert "exists already" in result.stderr
    assert "--force" in result.stderr
    assert Path("l.json").read_text() == "mine"
    inspect("./net.py", "--lock", "l.json", "--force")
    inspect("--check", "l.json")


def test_nothing_is_written_when_a_model_fails():
    write("import nothing_of_the_kind", "bad.py")
    inspect("./net.py", "./bad.py", "--lock", "l.json", code=2)
    inspect("./net.py", "./bad.py", "--lock", "l.json", "--format", "github", code=2)
    assert not os.path.exists("l.json")


RAISING = {
    "import": "raise RuntimeError('no')",
    "exit 0 at import": "import sys; sys.exit(0)",
    "exit 1 at import": "import sys; sys.exit(1)",
    "init": NET.replace("self.head = ", "raise KeyError('no')\n        self.head = "),
    "forward": NET.replace("y = self.block(x)", "raise ValueError('no')"),
    "exit in forward": NET.replace("y = self.block(x)", "raise SystemExit(0)"),
    "exit in init": NET.replace("self.head = ", "raise SystemExit(1)\n        self.head = "),
    "syntax": NET + "def (",
    "no model": "x = 1",
    "shapes": NET.replace("nn.Linear(width, classes)", "nn.Linear(width + 1, classes)"),
    "base exception at import": "class Stop(BaseException): pass\nraise Stop",
    "base exception": NET.replace("y = self.block(x)", "raise BaseException('no')"),
    "memory": NET.replace("y = self.block(x)", "raise MemoryError"),
    "recursion": NET.replace("y = self.block(x)", "return self(x)"),
}


@pytest.mark.parametrize("name", RAISING)
def test_an_error_looks_like_neither_answer(name):
    inspect("./net.py", "--lock", "l.json")
    write(RAISING[name])
    for args in (["--check", "l.json"], ["./net.py", "--check", "l.json", "--update"]):
        result = inspect(*args, code=2)
        assert result.stdout == ""
        assert result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "model is missing"),
        (["./missing.py"], "missing.py"),
        (["no_such_model_at_all"], "no_such_model_at_all"),
        (["--check", "missing.json"], "There is no such lock file"),
        (["--check", "corrupt.json"], "corrupt.json"),
        (["./net.py", "--check", "corrupt.json", "--update"], "corrupt.json"),
        (["--check", "empty.json"], "records no model"),
        (["./net.py", "--lock", "a.json", "--check", "b.json"], "--check"),
        (["./net.py", "--lock", "a.json", "--update"], "--check"),
        (["./net.py", "--update"], "--update belongs to --check"),
        (["--check", "net.json", "--arg", "width=4"], "belong to a MODEL"),
        (["./net.py", "--lock", "missing/l.json"], "cannot be written there"),
        (["./net.py", "--lock", "."], "cannot be written there"),
        (["./net.py", "--check", "net.json", "--format", "dot"], "no place"),
        (["./net.py", "--all-paths", "--format", "junit"], "no place"),
        (["./net.py", "--format", "text"], "text"),
        (["./net.py", "--fail-under", "-1"], "fail-under"),
        (["./net.py", "--weight", "flops"], "flops"),
    ],
)
def test_wrong_usage_exits_2(args, message):
    write("{", "corrupt.json")
    write('{"format": "netgraft lock", "version": 1, "models": {}}', "empty.json")
    inspect("./net.py", "--lock", "net.json")
    result = inspect(*args, code=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_the_lock_is_the_same_in_every_process():
    texts = set()
    for seed in ("0", "42"):
        command = [sys.executable, "-m", "netgraft", "inspect-chains", "net.py", EXAMPLES / "my_arch.py", "--lock"]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, f"{seed}.json"], env=environment, check=True, capture_output=True)
        texts.add(Path(f"{seed}.json").read_bytes())
    assert len(texts) == 1
    inspect("net.py", EXAMPLES / "my_arch.py", "--lock", "here.json")
    assert Path("here.json").read_bytes() in texts
