"""Few labels: does a source's knowledge help a VGG-like network that sees 5, 10 or 50 images of each class?

    python examples/few_labels.py --table regularisers --seeds 5 --samples 10
    python examples/few_labels.py --table l2t --seeds 5 --samples 5,10,50

The source, ``netgraft:resnet20-glyphs``, reads letters; the target, ``VGG9`` below, learns distorted handwritten digits
(``netgraft:digits-hard``) from a few labelled images. ``regularisers`` compares methods alone and with ``--combine
dtnh``, ``l2t`` the methods that match features. Each runs from the target's own random weights (``scratch``) and from
``netgraft transfer`` (``auto``), all with one schedule (``PROTOCOL``) and their default options.

A seed draws the labelled images, the classifier and the order of the images, the same ones for all methods: so
differences are taken seed by seed. Reported is the accuracy on the test part after the last epoch; the test images
choose nothing. Every run is one line of JSON, written when it is done, so that the script goes on where it stopped; at
the end stand tables with means and standard errors over seeds.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SOURCE, DATA = "netgraft:resnet20-glyphs", "netgraft:digits-hard"
TEACHER = "source"  # a run of its own: the source itself, fine-tuned on the same few images
INITS = ("scratch", "auto")
TABLES: dict[str, dict[str, tuple[str, ...]]] = {  # method: the rules that combine its losses
    "regularisers": {
        "plain": ("total",),
        "l2": ("total", "dtnh"),
        "l2-sp": ("total", "dtnh"),
        "kd": ("total", "dtnh"),
        "fm": ("total", "dtnh"),
        "at": ("total", "dtnh"),
        "at-code": ("total", "dtnh"),
        "knowdist": ("total", "dtnh"),
    },
    "l2t": dict.fromkeys(("plain", "plain-twice", "fm", "at", "at-code", "l2t-ww", "l2t-gan"), ("total",)),
}
EXTRA: dict[str, dict[str, Any]] = {  # rows of their own beside the defaults: few_labels.md says why
    "plain-twice": {"method": "plain", "epochs": 2},  # times: l2t-gan steps twice on the task's loss with each batch
    "at-code": {"method": "at", "set": {"form": "code"}},  # whose weight grows where maps are small
}
# That of tests/benchmarks/transfer_quality, but that norms and biases do not decay, and an epoch's images that do not
# fill a batch are left out.
PROTOCOL: dict[str, Any] = {"opt": "sgd", "lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 20}
FIXED: dict[str, Any] = {"mean": (0.5,), "std": (0.35,), "device": "cpu", "tensorboard": False}
KEY = ("method", "rule", "init", "samples", "seed", "epochs")
"""What tells runs apart."""


class VGG9(nn.Module):
    """Eight 3x3 convolutions in four stages and a linear layer: logits ``[n, num_classes]`` of ``[n, 1, 16, 16]``."""

    input_size = (1, 16, 16)

    def __init__(self, num_classes: int = 10, widths: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for stage, width in enumerate(widths):
            layers += [nn.MaxPool2d(2)] if stage else []
            for width_in in (before, width):
                layers += [nn.Conv2d(width_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean(dim=(2, 3)))


NETS: dict[str, tuple[str, dict[str, object]]] = {  # what is fine-tuned, with the arguments of its constructor
    "vgg9": (f"{Path(__file__).resolve()}:VGG9", {}),
    TEACHER: (SOURCE, {"num_classes": 10}),
}


def transferred(net: str, seed: int, folder: Path) -> Path:
    """The net's initialisation by ``netgraft transfer``, made once, with what the transfer kept drawn anew with seed.

    The transfer keeps the classifier, whose classes are others than the source's.
    """
    from safetensors.torch import load_file

    from netgraft.files.checkpoint import read_provenance, write_checkpoint
    from netgraft.models.model import load_model
    from netgraft.models.side import Side, own_weights
    from netgraft.plan import KEPT, Plan
    from netgraft.planning import TransferRequest
    from netgraft.transfer import transfer

    once, drawn = folder / f"{net}.safetensors", folder / f"{net}-{seed}.safetensors"
    reference, arguments = NETS[net]
    if not once.exists():
        sides = Side(SOURCE, "source"), Side(reference, "target", args=arguments)
        transfer(TransferRequest(*sides, once, seed=0, device="cpu"))
    if not drawn.exists():
        provenance = read_provenance(once)
        fates = Plan.from_json(provenance["plan"]).fates
        own, _ = own_weights(load_model(reference, role="target", args=arguments), seed, allow_nonfinite=False)
        kept = {key: own[key] for key, fate in fates.items() if fate == KEPT}
        write_checkpoint(drawn, load_file(once) | kept, provenance)
    return drawn


def refused(method: str, init: str) -> bool:
    """Whether netgraft refuses the method without ``--init``: L2-SP has nothing to stay near."""
    from netgraft.finetune.protocol import Need

    return init == "scratch" and Need.START in needs(EXTRA.get(method, {"method": method})["method"])


@functools.cache
def described(method: str) -> Any:
    """The method's options and class variables, as its file has them."""
    from netgraft import plugins
    from netgraft.finetune.needs import FOLDER

    return plugins.describe(FOLDER, method)


def needs(method: str) -> tuple[Any, ...]:
    """What a method cannot do without."""
    from netgraft.finetune.needs import needs_of

    return needs_of(described(method))


def train(method: str, rule: str, init: str, samples: int, seed: int, epochs: int, folder: Path) -> dict[str, Any]:
    """Trains, leaving ``last.safetensors`` in a folder of the run's name; returns the line about it."""
    from netgraft.finetune.engine.loop import finetune
    from netgraft.finetune.protocol import Need
    from netgraft.finetune.settings import TrainingSettings

    net = TEACHER if method == TEACHER else "vgg9"
    reference, arguments = NETS[net]
    preset = {"method": "plain" if method == TEACHER else method} | EXTRA.get(method, {})
    wanted = needs(preset["method"])
    line: dict[str, Any] = dict(zip(KEY, (method, rule, init, samples, seed, epochs), strict=True))
    out = run_folder(folder, line)
    given: dict[str, Any] = {}
    if Need.SOURCE_MODEL in wanted:
        given["source"] = SOURCE
    if Need.SAME_CLASSES in wanted:  # the source knows letters: it learns the digits first, from the same images
        teacher = run_folder(folder, line | {"method": TEACHER, "rule": "total", "init": "auto"})
        if not (teacher / "done").exists():
            train(TEACHER, "total", "auto", samples, seed, epochs, folder)
        given |= {"source_arg": NETS[TEACHER][1], "source_weights": str(teacher / "last.safetensors")}
    if init == "auto":
        given["init"] = str(transferred(net, seed, folder))
    drawn = {"samples_per_class": samples, "seed": seed, "draw_seed": seed}
    epochs *= preset.pop("epochs", 1)
    options = PROTOCOL | FIXED | drawn | given | preset | {"val_interval": epochs}
    settings = TrainingSettings(reference, DATA, str(out), combine=rule, target_arg=arguments, epochs=epochs, **options)
    clock = Clock()
    history = finetune(settings, force=True, watch=clock).history
    line["accuracy"] = round(history[-1]["eval_top1"], 3)
    if rule == "dtnh":  # the share of steps at which the rule did anything
        line["conflicts"] = round(statistics.mean(record["train_obtuse"] for record in history), 4)
    line["seconds"] = round(clock.seconds, 2)
    (out / "state.pt").unlink()  # large, and not for going on: the run has ended
    (out / "done").touch()
    return line


class Clock:
    """CPU seconds of the steps alone: without preparation, and without the evaluation after each epoch."""

    def __init__(self) -> None:
        self.seconds, self.since = 0.0, 0.0

    def begin(self, prepared: object, step: int, batches: int) -> None:  # noqa: ARG002
        self.since = time.process_time()

    def batch(self, epoch: int, step: int, images: int, meters: object) -> None:  # noqa: ARG002
        now = time.process_time()
        self.seconds, self.since = self.seconds + now - self.since, now

    def epoch(self, record: Mapping[str, Any]) -> None:  # noqa: ARG002
        self.since = time.process_time()

    def say(self, text: str) -> None: ...


def run_folder(folder: Path, line: Mapping[str, Any]) -> Path:
    return folder / "-".join(str(line[key]) for key in KEY)


# --------------------------------------------------------------------------------------------------------------- tables


def mean_and_error(values: Sequence[float], digits: int = 1, sign: str = "") -> str:
    """The mean, and the standard error of it where there are two values or more."""
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{digits}f}{error}"


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> str:
    """Of the seeds that both have: the mean of one less other, seed by seed."""
    both = sorted(one.keys() & other.keys())
    return mean_and_error([one[seed] - other[seed] for seed in both], sign="+") if both else ""


def table(kind: str, lines: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> str:
    """Of lines with one number of images per class and of epochs: a row for each initialisation and method."""
    rule = kind == "regularisers"
    middle = "with dtnh | dtnh less alone | conflicts" if rule else "less plain"
    rows = [f"| init | method | {'alone' if rule else 'accuracy'} | {middle} | seeds | seconds |"]
    rows.append("|" + "---|" * rows[0].count(" | ") + "---|")
    for init in INITS:
        plain = _by_seed(lines, init, "plain", "total")
        for method in methods:
            alone, with_rule = (_by_seed(lines, init, method, name) for name in ("total", "dtnh"))
            if not alone:
                if lines and refused(method, init):
                    rows.append(f"| {init} | {method} | refused | " + " | " * (3 if rule else 1) + " | |")
                continue
            cells = [init, method, mean_and_error(list(alone.values()))]
            if rule:
                shares = _by_seed(lines, init, method, "dtnh", "conflicts").values()
                cells += [mean_and_error(list(with_rule.values())) if with_rule else "", difference(with_rule, alone)]
                cells.append(f"{100 * statistics.mean(shares):.0f} %" if shares else "")
            else:
                cells.append(difference(alone, plain) if method != "plain" else "")
            seconds = statistics.median(_by_seed(lines, init, method, "total", "seconds").values())
            rows.append("| " + " | ".join([*cells, str(len(alone)), f"{seconds:.1f}"]) + " |")
    return "\n".join(rows)


def _by_seed(
    lines: Sequence[Mapping[str, Any]], init: str, method: str, rule: str, what: str = "accuracy"
) -> dict[int, float]:
    wanted = {"init": init, "method": method, "rule": rule}
    return {line["seed"]: line[what] for line in lines if wanted.items() <= line.items()}


def teachers(lines: Sequence[Mapping[str, Any]]) -> str:
    """A sentence about the source itself, where it was fine-tuned for ``kd``."""
    values = list(_by_seed(lines, "auto", TEACHER, "total").values())
    return f"\nThe source itself, fine-tuned on the same images: {mean_and_error(values)}" if values else ""


# ------------------------------------------------------------------------------------------------------------- the face


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Methods of fine-tuning on a few labelled digits.")
    parser.add_argument("--table", choices=TABLES, default="l2t", help="which methods are compared")
    parser.add_argument("--methods", help="some of them, with commas between; by default all of the table")
    parser.add_argument("--inits", default=",".join(INITS), help=f"of {', '.join(INITS)}")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--samples", default="10", help="labelled images per class; several with commas between")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("few_labels.jsonl"), help="lines of finished runs")
    parser.add_argument("--folder", type=Path, help="where trainings are kept; a temporary folder by default")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    of_table = TABLES[options.table]
    methods = chosen_names(parser, "--methods", options.methods or ",".join(of_table), tuple(of_table))
    inits = chosen_names(parser, "--inits", options.inits, INITS)
    try:
        counts = [int(word) for word in options.samples.split(",")]
    except ValueError:
        parser.error(f"--samples takes numbers with commas between, not {options.samples}")
    if min(*counts, options.seeds, options.epochs) < 1:
        parser.error("--samples, --seeds and --epochs are at least 1")

    torch.set_num_threads(options.threads)
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {tuple(line[key] for key in KEY) for line in lines}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for samples in counts:
            for seed in range(options.seeds):
                runs = [(m, rule, init) for init in inits for m in methods for rule in of_table[m]]
                if "kd" in methods:
                    runs.insert(0, (TEACHER, "total", "auto"))
                for method, rule, init in runs:
                    if (method, rule, init, samples, seed, options.epochs) in done:
                        continue
                    if method != TEACHER and refused(method, init):
                        continue
                    line = train(method, rule, init, samples, seed, options.epochs, folder)
                    lines.append(line)
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    print(json.dumps(line), file=sys.stderr, flush=True)
    for samples in counts:
        wanted = {"samples": samples, "epochs": options.epochs}
        mine = [x for x in lines if wanted.items() <= x.items() and x["seed"] < options.seeds and x["init"] in inits]
        print(f"N = {samples}\n\n{table(options.table, mine, methods)}")
        print((teachers(mine) if "kd" in methods else "") + "\n")


def chosen_names(parser: argparse.ArgumentParser, option: str, text: str, known: Sequence[str]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"{option}: unknown {', '.join(unknown)}; there are {', '.join(known)}")
    return names


if __name__ == "__main__":
    main()
