"""The study in examples/imagenet: a tiny run of it, and its arithmetic against NumPy and scikit-learn."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parents[1] / "examples" / "imagenet"
NAMES = "agreement cells curves draws initial networks probe products quick results study table training"


@pytest.fixture(scope="module")
def scripts():
    """The modules beside the script, which import one another as siblings."""
    sys.path.insert(0, str(FOLDER))
    found = {name: importlib.import_module(name) for name in NAMES.split()}
    spec = importlib.util.spec_from_file_location("study_data", FOLDER / "data.py")
    found["data"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found["data"])
    yield SimpleNamespace(**found)
    sys.path.remove(str(FOLDER))
    for name in NAMES.split():
        del sys.modules[name]


# ------------------------------------------------------------------------------------------------------ a run in small

ROWS = ("scratch", "graft", "same-names")


@pytest.fixture(scope="module")
def folder(scripts, tmp_path_factory):
    """A study that has run: two draws from random weights and from a graft; the copy by name is made later."""
    found = tmp_path_factory.mktemp("study")
    scripts.study.main(["--quick", "--folder", str(found), "--rows", ",".join(ROWS[:2]), "--optimisers", "sgd"])
    return found


def runs_of(folder):
    return {file.name: json.loads(file.read_text()) for file in (folder / "runs").glob("*.json")}


def test_each_row_is_tuned_alike(folder):
    found = list(runs_of(folder).values())
    for row in ROWS[:2]:
        mine = [line for line in found if line["row"] == row]
        tried = {line["rate"]: line["accuracy"] for line in mine if line["judged"] == "validation"}
        results = [line for line in mine if line["judged"] == "test"]
        assert sorted(tried) == [0.03, 0.1]
        assert [line["seed"] for line in sorted(results, key=lambda line: line["seed"])] == [0, 1]
        assert {tried[line["rate"]] for line in results} == {max(tried.values())}
        assert all([step for step, *_ in line["curve"]] == [1, 2] for line in mine)  # 30 pictures, batches of 25


def test_the_table_has_the_runs(folder):
    text = (folder / "README.md").read_text()
    for row in ROWS[:2]:
        found = [x["accuracy"] for x in runs_of(folder).values() if (x["row"], x["judged"]) == (row, "test")]
        assert f"| `{row}` | {written(found)} |" in text
    assert "### 3 pictures of each kind" in text
    assert (folder / "curves-shapes-3.svg").stat().st_size > 1000
    assert not (FOLDER / "curves-shapes-3.svg").exists()


def test_it_goes_on_where_it_stopped(scripts, folder, capsys):
    before = {file: file.stat().st_mtime_ns for file in (folder / "runs").glob("*.json")}
    given = ["--quick", "--folder", str(folder), "--optimisers", "sgd", "--seeds", "1"]
    scripts.study.main([*given, "--rows", ",".join(ROWS)])
    after = {file: file.stat().st_mtime_ns for file in (folder / "runs").glob("*.json")}
    assert before.items() <= after.items()
    assert {runs_of(folder)[file.name]["row"] for file in after.keys() - before.keys()} == {"same-names"}
    assert "| `same-names` |" in (folder / "README.md").read_text()
    assert "graft" not in capsys.readouterr().err


def test_one_folder_has_one_schedule(scripts, folder):
    with pytest.raises(SystemExit, match="name another --folder"):
        scripts.study.main(["--folder", str(folder), "--pictures", str(folder / "pictures"), "--epochs", "3"])


def test_unknown_recipes_are_skipped(scripts, folder, capsys, monkeypatch):
    monkeypatch.setitem(scripts.cells.ROWS, "next-year", ("next-year", {}))
    scripts.study.main(["--quick", "--folder", str(folder), "--rows", "next-year"])
    assert "skipped next-year: this netgraft has no recipe of that name" in capsys.readouterr().err


def test_a_refusal_is_a_result(scripts, folder, monkeypatch):
    monkeypatch.setitem(scripts.cells.ROWS, "contained", ("translate", {}))
    scripts.study.main(["--quick", "--folder", str(folder), "--rows", "contained"])
    assert "| `contained` | refuses |" in (folder / "README.md").read_text()


def test_what_was_kept_is_drawn_with_the_seed(scripts, folder, tmp_path):
    cell, made = scripts.cells.QUICK["glyphs-resnet8"], folder / "transfers" / "glyphs-resnet8_graft.safetensors"
    one, other = (load_file(scripts.initial.with_seed(made, cell, s, tmp_path / f"{s}.safetensors")) for s in (1, 2))
    before = load_file(made)
    different = {key for key in before if not torch.equal(one[key], other[key])}
    assert {"fc.weight", "fc.bias"} <= different
    assert all(torch.equal(one[key], before[key]) for key in before.keys() - different)
    assert len(different) < len(before) / 2


def test_cells_are_networks_of_ten_classes(scripts):
    for name, cell in scripts.cells.CELLS.items():
        with torch.device("meta"):
            net = cell.side(10, cell.input_size).load().build().eval()
            assert net(torch.empty(2, *cell.input_size)).shape == (2, 10), name


# ------------------------------------------------------------------------------------------------------------ pictures


def test_parts_share_no_picture(scripts, tmp_path):
    scripts.quick.draw(tmp_path / "all")
    seen = {}
    for judged, count in (("validation", 2), ("test", 4), ("test", 2)):
        out = scripts.draws.drawn(tmp_path / "all", judged, count, 7, tmp_path / "drawn")
        learnt = {file.resolve() for file in (out / "train").rglob("*.png")}
        tested = {file.resolve() for file in (out / "test").rglob("*.png")}
        assert len(learnt) == 10 * count
        assert tested == {file.resolve() for file in (tmp_path / "all" / judged).rglob("*.png")}
        assert not {file for file in learnt if file.parent.parent.name not in scripts.draws.POOLS[judged]}
        seen[judged, count] = learnt
    assert seen["test", 2] < seen["test", 4]
    another = scripts.draws.drawn(tmp_path / "all", "test", 2, 8, tmp_path / "drawn")
    assert {file.resolve() for file in (another / "train").rglob("*.png")} != seen["test", 2]


def test_stamps_are_photographs(scripts, tmp_path):
    from PIL import Image

    stamp = Image.new("RGBA", (40, 20), (200, 0, 0, 255))
    stamp.putpixel((0, 0), (0, 0, 0, 0))
    for folder, _ in scripts.data.KINDS.values():
        for name in ("a", "b", "c", "d", "e", "a_mirror", "b_flip", "cartoon/f", "toys/g"):
            file = tmp_path / folder / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            stamp.save(file)
    found = scripts.data.stamps(tmp_path)
    assert {tuple(files) for files in found.values()} == {("a", "b", "c", "d", "e")}
    assert scripts.data.write(found, tmp_path / "out", Image.open) == 50
    names = {part: sorted(p.stem for p in (tmp_path / "out" / part / "bird").iterdir()) for part in scripts.data.PARTS}
    assert names == {"train": ["a", "e"], "test": ["b", "d"], "validation": ["c"]}
    picture = np.array(Image.open(tmp_path / "out" / "train" / "bird" / "a.png"))
    assert picture.shape == (256, 256, 3)
    assert (picture[[0, -1]] == 255).all()  # white above and below
    assert tuple(picture[128, 128]) == (200, 0, 0)
    with pytest.raises(SystemExit, match="lacks pictures of bird"):
        scripts.data.stamps(tmp_path / "out")


def test_kinds_of_emoji(scripts):
    assert scripts.data.kind_of("transport-ground", "fire engine") == "vehicle"
    assert scripts.data.kind_of("transport-ground", "vertical traffic light") is None
    assert scripts.data.kind_of("face-smiling", "grinning face") is None


# ---------------------------------------------------------------------------------------------------------- arithmetic


def test_products_counts_forward_and_backward(scripts):
    conv = torch.nn.Conv2d(3, 8, 3, padding=1)
    x = torch.randn(2, 3, 10, 12, requires_grad=True)
    once = 2 * 2 * 8 * 3 * 9 * 10 * 12  # two operations for each weight, place and image
    with scripts.products.Products() as counted:
        y = conv(x)
    assert counted.flops == once
    with scripts.products.Products() as counted:
        y.sum().backward()
    assert counted.flops == 2 * once
    with scripts.products.Products() as counted, torch.device("meta"):
        torch.nn.Conv2d(3, 8, 3)(torch.empty(1, 3, 8, 8))
    assert counted.flops == 0


def written(values, sign=""):
    return f"{np.mean(values):{sign}.1f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.1f}"


@pytest.fixture
def made_up(scripts):
    """Runs of two cells with random accuracies; of the ceiling's draws one is missing."""
    rng = np.random.default_rng(0)
    lines, truth = [], {}

    def add(cell, row, optimiser, rate, judged, seed, curve):
        values = {"data": "d", "cell": cell, "row": row, "samples": 5, "optimiser": optimiser, "rate": rate}
        values |= {"judged": judged, "seed": seed, "curve": curve, "accuracy": curve[-1][1], "loss": curve[-1][2]}
        lines.append(values | {"gflops_of_step": 3.0})

    for cell in ("one", "two"):
        for row, low in (("scratch", 20), ("graft", 40), ("ceiling", 70)):
            for optimiser, better in (("adamw", 0), ("sgd", 5)):
                for rate, accuracy in ((0.01, low), (0.03, low + better + 1), (0.1, low)):
                    add(cell, row, optimiser, rate, "validation", 1000, [[4, accuracy, 1.0]])
                for seed in range(3 if row == "ceiling" else 4):
                    final = low + rng.uniform(0, 8)
                    truth[cell, row, optimiser, seed] = final
                    add(cell, row, optimiser, 0.03, "test", seed, [[2, final - 15, 2.0], [4, final, 1.0]])
    transfers = [{"cell": "one", "row": "graft", "gflops": 100.0}, {"cell": "two", "row": "front", "refused": "no"}]
    cells = {name: scripts.cells.Cell("s", "t") for name in ("one", "two")}
    return scripts.results.Results(lines, transfers), truth, cells


def test_a_cell_in_numbers(scripts, made_up):
    results, truth, cells = made_up
    of = {(row, optimiser): np.array([v for (c, r, o, _), v in truth.items() if (c, r, o) == ("one", row, optimiser)])
          for row in ("scratch", "graft", "ceiling") for optimiser in ("adamw", "sgd")}  # fmt: skip
    rows = scripts.table.of_cell(results, "d", 5, "one", cells).splitlines()
    graft, scratch = of["graft", "sgd"], of["scratch", "sgd"]
    steps = 2 if graft.mean() - 15 >= scratch.mean() else 4
    recovered = (graft.mean() - scratch.mean()) / (of["ceiling", "sgd"].mean() - scratch.mean())
    wanted = ["`graft`", f"{written(of['graft', 'adamw'])} (0.03)", f"{written(graft)} (0.03)", written(graft)]
    wanted += [written(graft - scratch, "+"), str(steps), "100", f"{100 + 3 * steps}", f"{100 * recovered:.0f} %", "4"]
    assert f"| {' | '.join(wanted)} |" in rows
    assert len({row.count("|") for row in rows if row.startswith("|")}) == 1
    assert any("the task counts" in row for row in rows)
    assert scripts.curves.points(results, "d", "one", "graft", 5) == [
        (106.0, pytest.approx(graft.mean() - 15)),
        (112.0, pytest.approx(graft.mean())),
    ]


def test_the_summary_averages_over_cells(scripts, made_up):
    results, truth, cells = made_up
    leads = [np.mean([truth[c, "graft", "sgd", s] - truth[c, "scratch", "sgd", s] for c in cells]) for s in range(4)]
    rows = scripts.table.summary(results, "d", 5, cells).splitlines()
    (row,) = [each for each in rows if each.startswith("| `graft`")]
    assert row.endswith(f"| {written(leads, '+')} | 2 |")
    assert any(each.startswith("| `front` |  | refuses |") for each in rows)


def test_equal_rates_are_told_apart_by_their_loss(scripts):
    found = {
        0.1: [{"accuracy": 50, "loss": 2.0}],
        0.3: [{"accuracy": 50, "loss": 1.0}],
        1: [{"accuracy": 9, "loss": 0}],
    }
    assert scripts.training.best_rate(found) == 0.3


# ------------------------------------------------------------------------------------------- probe and first answers


def test_the_probe_is_that_of_scikit_learn(scripts):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    rng = np.random.default_rng(0)
    centres, labels = rng.standard_normal((3, 6)), np.repeat(np.arange(3), 14)
    train, test = (1 + 3 * (centres[labels] + 1.3 * rng.standard_normal((42, 6))) for _ in range(2))
    right, penalty = scripts.probe.probe(train, labels, test, labels)

    def accuracy(c, x, y, of, wanted):
        mean, std = x.mean(0), x.std(0)
        model = LogisticRegression(C=c, max_iter=5000).fit((x - mean) / std, y)
        return model.predict((of - mean) / std) == wanted

    folds = list(StratifiedKFold(scripts.probe.FOLDS, shuffle=True, random_state=0).split(train, labels))
    found = [
        np.mean([accuracy(c, train[a], labels[a], train[b], labels[b]).mean() for a, b in folds])
        for c in scripts.probe.PENALTIES
    ]
    assert penalty == scripts.probe.PENALTIES[int(np.argmax(found))]
    assert (right == accuracy(penalty, train, labels, test, labels)).all()


def test_the_bootstrap_agrees_with_the_binomial(scripts):
    right = np.random.default_rng(0).random(200) < 0.6
    share = right.mean()
    assert scripts.probe.bootstrap_error(right) == pytest.approx(100 * (share * (1 - share) / 200) ** 0.5, rel=0.06)


def test_measurements_of_a_checkpoint(scripts, folder, tmp_path):
    """Both look at the network as it is written; and what they write stands in the table."""
    pictures, out = str(folder / "pictures" / "shapes"), str(tmp_path)
    made = str(folder / "transfers" / "glyphs-resnet8_graft.safetensors")
    cell = scripts.cells.QUICK["glyphs-resnet8"]
    given = ["--target-arg", "in_chans=1", "--target-arg", "widths=(8,8,16)", "--target-arg", "num_classes=10"]
    given += ["--input-size", "1,16,16", "--folder", out]
    scripts.probe.main([cell.target, made, "random", "--pictures", pictures, *given])
    facts = [json.loads(file.read_text()) for file in sorted((tmp_path / "probes").glob("*.json"))]
    assert [each["weights"] for each in facts] == ["glyphs-resnet8_graft.safetensors", "random"]
    assert {(each["train"], each["test"], each["features"]) for each in facts} == {(50, 40, 16)}

    own = ["netgraft:resnet20-glyphs", "netgraft:resnet20-glyphs", "own", "random", "--pictures", pictures]
    scripts.agreement.main([*own, "--folder", out])
    found = {
        json.loads(f.read_text())["weights"]: json.loads(f.read_text()) for f in (tmp_path / "agreements").iterdir()
    }
    assert (found["own"]["agreement"], found["own"]["error"]) == (100, 0)
    assert found["random"]["agreement"] < 60
    text = scripts.table.document(tmp_path, {})
    assert f"| random | 1x16x16 | {facts[1]['C']:g} | {facts[1]['accuracy']:.1f} ± {facts[1]['error']:.1f} |" in text
    assert "| own | 90 | 100.0 ± 0.0 |" in text


def test_agreement_is_a_share_with_its_error(scripts):
    one, other = torch.eye(8)[:4], torch.eye(8)[[0, 1, 2, 7]]
    assert scripts.agreement.agreement(one, other) == (75, pytest.approx(100 * (0.75 * 0.25 / 4) ** 0.5))
    with pytest.raises(SystemExit, match="8 and 3 classes"):
        scripts.agreement.agreement(one, one[:, :3])
