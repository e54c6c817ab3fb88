"""The commands finetune and methods, as people type them."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from support.command_line import contents, link_examples, run
from support.imports import HEAVY, imported

from netgraft import plugins
from netgraft.finetune.engine import loop as engine
from netgraft.finetune.needs import FOLDER
from netgraft.finetune.settings import TrainingSettings

SMALL = ("examples/my_arch.py", "--input-size", "1,16,16", "--data", "netgraft:digits", "--samples-per-class", "5")
ONE = (*SMALL, "--epochs", "1", "--device", "cpu", "--out", "run")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    link_examples(tmp_path)
    return tmp_path


def succeed(*args):
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_training_and_its_summary(checkout):
    out = succeed("finetune", *ONE)
    assert out.splitlines()[0].split() == ["weights", "epoch", "accuracy", "test", "loss", "training", "loss"]
    assert "wrote run/best.safetensors, run/last.safetensors" in out
    assert (checkout / "run" / "config.json").exists()


def test_document(checkout):  # noqa: ARG001
    document = json.loads(succeed("finetune", *ONE, "--format", "json"))
    assert document["out"] == "run"
    assert document["epochs"][0]["eval_top1"] == document["best"]["eval_top1"]


def test_config_runs_again_to_the_same_bytes(checkout):
    succeed("finetune", *ONE, "--lr", "0.02", "--no-tensorboard", "--mean", "0.4", "--std", "0.3")
    succeed("finetune", "-c", "run/config.json", "--out", "again")
    assert (checkout / "run/last.safetensors").read_bytes() == (checkout / "again/last.safetensors").read_bytes()
    configs = [json.loads((checkout / out / "config.json").read_text()) for out in ("run", "again")]
    assert configs[0].pop("out") == "run"
    assert configs[1].pop("out") == "again"
    assert configs[0] == configs[1]
    assert configs[0]["lr"] == 0.02
    succeed("finetune", "-c", "run/config.json", "--out", "third", "--lr", "0.03")
    assert json.loads((checkout / "third/config.json").read_text())["lr"] == 0.03
    assert "weights" in succeed("finetune", "-c", "run/config.json", "--resume", "auto")


TYPED = {
    "warmup_epochs": 2,
    "min_lr": 0.001,
    "sched": "step",
    "decay_epochs": 3.0,
    "decay_rate": 0.3,
    "smoothing": 0.1,
    "clip_grad": 2.5,
    "hflip": 0.25,
    "vflip": 0.75,
    "color_jitter": 0.1,
    "reprob": 0.2,
    "model_ema_decay": 0.9,
    "momentum": 0.8,
    "weight_decay": 0.01,
    "val_split": 0.2,
    "accumulate": 4,
    "freeze": "2",
    "unfreeze_every": 3,
    "lr_exact": 0.1,
    "lr_refitted": 0.5,
    "lr_fresh": 2.0,
    "val_interval": 2,
    "views": 3,
    "train_crop_mode": "rc",
    "crop_pct": 0.8,
    "amp_dtype": "float16",
    "triplet": 0.5,
    "triplet_margin": "soft",
    "class_images": 5,
    "retrieval": "cosine",
    "pictures": 4,
    "picture_interval": 2,
}
"""Options of numbers and names, none of them at its default."""


def test_what_is_typed_reaches_the_training(checkout, monkeypatch):  # noqa: ARG001
    seen = []
    monkeypatch.setattr(engine, "finetune", lambda chosen, **_: seen.append(chosen) or SimpleNamespace(first=False))
    options = [word for name, value in TYPED.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    succeed("finetune", *ONE, "--amp", *options)
    succeed("finetune", *ONE)
    given, default = (asdict(chosen) for chosen in seen)
    assert {name: value for name, value in given.items() if value != default[name]} == TYPED | {"amp": True}
    plain = TrainingSettings(target=ONE[0], data="netgraft:digits", out="run", input_size=(1, 16, 16))
    assert seen[1] == replace(plain, samples_per_class=5, epochs=1, device="cpu")


def test_milestones_choose_their_schedule(checkout, monkeypatch):
    """They come from the command line and from a config.json alike."""
    seen = []
    monkeypatch.setattr(engine, "finetune", lambda chosen, **_: seen.append(chosen) or SimpleNamespace(first=False))
    succeed("finetune", *SMALL, "--out", "run", "--milestones", "3,6", "--gamma", "0.2")
    (checkout / "c.json").write_text(json.dumps(seen[0].document()))
    succeed("finetune", "-c", "c.json")
    assert seen[0] == seen[1]
    assert (seen[0].sched, seen[0].milestones, seen[0].decay_rate) == ("multistep", (3, 6), 0.2)


def test_lambdas_to_choose_from(checkout, monkeypatch):
    """From the command line and from a config.json alike; one of them is a lambda."""
    seen = []
    monkeypatch.setattr(engine, "finetune", lambda chosen, **_: seen.append(chosen) or SimpleNamespace(first=False))
    succeed("finetune", *SMALL, "--out", "run", "--lambda", "0.01,0.1,1", "--folds", "4")
    (checkout / "c.json").write_text(json.dumps(seen[0].document()))
    succeed("finetune", "-c", "c.json")
    succeed("finetune", *SMALL, "--out", "run", "--lambda", "0.3")
    assert seen[0] == seen[1]
    assert (seen[0].lam, seen[0].lambdas, seen[0].folds) == (1.0, (0.01, 0.1, 1.0), 4)
    assert (seen[2].lam, seen[2].lambdas, seen[2].folds) == (0.3, None, None)


def test_explain_trains_nothing(checkout):
    before = contents(checkout)
    out = succeed("finetune", *ONE, "--explain")
    assert "one step" in out
    assert contents(checkout) == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "TARGET is missing"),
        (("examples/my_arch.py",), "--data NAME is missing"),
        (("examples/my_arch.py", "--data", "netgraft:digits"), "--out DIR is missing"),
        ((*ONE, "--method", "plian"), "Did you mean plain"),
        ((*ONE, "--method", "frozen"), "Add --init FILE"),
        ((*ONE, "--set", "beta=1"), "beta"),
        ((*ONE, "--lr", "fast"), "--lr"),
        ((*ONE, "--mean", "0.5"), "--std"),
        ((*ONE, "--resume", "yes"), "--resume"),
        ((*ONE, "--milestones", "3;6"), "--milestones 30,60"),
        ((*ONE, "--lambda", "0.1;1"), "--lambda 0.01,0.1,1"),
        ((*ONE, "--lambda", "0.1,1"), "--folds 5"),
        ((*ONE, "--lambda", "-1"), "--lambda is at least 0"),
        ((*ONE, "--amp-dtype", "float16"), "Add --amp"),
        ((*ONE, "--milestones", "3", "--sched", "cosine"), "--sched multistep"),
        (("-c", "nowhere.json"), "nowhere.json"),
        ((*ONE, "--init", "nowhere.safetensors"), "nowhere.safetensors"),
    ],
)
def test_bad_input_exits_2_and_writes_nothing(checkout, args, words):
    before = contents(checkout)
    result = run("finetune", *args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert contents(checkout) == before


def test_unknown_setting_in_a_config(checkout):
    (checkout / "c.json").write_text('{"epoch": 3}')
    result = run("finetune", "-c", "c.json")
    assert result.exit_code == 2
    assert "epochs" in result.stderr


# -------------------------------------------------------------------------------------------------------------- methods


def test_methods_are_listed():
    out = succeed("methods")
    for name, plugin in plugins.listing(FOLDER).items():
        assert any(line.split() == [name, *plugin.summary.replace("``", "").split()] for line in out.splitlines())
    assert {m["name"] for m in json.loads(succeed("methods", "--format", "json"))} == set(plugins.listing(FOLDER))


def test_one_method():
    out = succeed("methods", "frozen")
    assert "It needs --init FILE." in out
    assert "d = grad J" in out


def test_own_method_is_described_without_running_it(checkout):
    (checkout / "own.py").write_text(
        '''
raise SystemExit("this file ran")
class Own:
    """An own method.

    d = 0
    """

    beta: float = field(default=0.5, metadata={"help": "a weight"})
    form: Literal["paper", "code"] = "code"
    needs: ClassVar[frozenset] = frozenset({Need.PAIRS, Need.SOURCE_DATA})
    combine: ClassVar[str] = "dtnh"
'''
    )
    document = json.loads(succeed("methods", "./own.py", "--format", "json"))
    assert document["needs"] == ["SOURCE_DATA", "PAIRS"]
    assert document["combine"] == "dtnh"
    assert document["options"] == [
        {"name": "beta", "type": "float", "doc": "a weight", "default": 0.5},
        {"name": "form", "type": "one of paper, code", "doc": "", "default": "code"},
    ]
    result = run("finetune", *ONE, "--method", "./own.py")
    assert result.exit_code == 2
    assert "Add --source-data NAME --source REF" in result.stderr


def test_own_method_trains(checkout):
    (checkout / "own.py").write_text(
        '''
from dataclasses import dataclass, field
from typing import ClassVar
from netgraft.finetune.protocol import Part, Update
from netgraft.finetune.toolbox.terms import l2_penalty

@dataclass(frozen=True)
class Decay:
    """Weight decay as a loss."""

    weight: float = field(default=0.1, metadata={"help": "its weight"})
    needs: ClassVar[frozenset] = frozenset()

    def parts(self, run):
        return {"target": Part(run.target_module)}

    def epoch(self, run, batches, parts):
        for batch in batches:
            decay = l2_penalty(list(run.target_module.parameters()), self.weight)
            yield Update(("target",), {"task": run.task(run.target(batch), batch)}, {"decay": decay})
'''
    )
    succeed("finetune", *ONE, "--method", "./own.py", "--set", "weight=0.2", "--combine", "dtnh", "--lambda", "0.5")
    assert json.loads((checkout / "run/config.json").read_text())["dtnh_scope"] == "all"
    (record,) = [json.loads(line) for line in (checkout / "run/metrics.jsonl").read_text().splitlines()]
    assert {"train_decay", "train_cosine", "train_obtuse", "train_angle1", "train_angle4"} <= set(record)
    assert record["train_decay"] > 0


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("methods",), 0),
        (("methods", "plain"), 0),
        (("methods", "--by", "category"), 0),
        (("methods", "plian"), 2),
        (("finetune", "--help"), 0),
        (("finetune", "a", "--data", "netgraft:digits", "--out", "x", "--method", "frozen"), 2),
    ],
)
def test_light(args, code):
    assert imported(*args, code=code) & set(HEAVY) == set()
