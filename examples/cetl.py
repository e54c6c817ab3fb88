"""CETL's Table 2 in small: what each part of it is worth, from letters to digits with 20 % of the labels.

    python examples/cetl.py --folder cetl_runs --choose --seeds 2
    python examples/cetl.py --folder cetl_runs --seeds 5
    python examples/cetl.py --folder cetl_runs --seeds 5 --init auto

The paper goes from ImageNet to a fifth of CIFAR-10. Here the source, ``netgraft:resnet20-glyphs``, reads letters; the
target, VGG9 of ``few_labels.py``, learns ``netgraft:digits-hard`` from 18 images of each class, a fifth of those to
train with. All rows take the same number of batches from the same start: the target's own random weights
(``scratch``), as in the paper, or what ``netgraft transfer`` makes of the source (``auto``). A seed draws the labelled
images, the weights that are random and the order of the images, the same ones for all rows.

``--choose`` fixes three options of CETL beforehand: it trains on other draws of as many images, is judged by the rest
of the images to train with, and leaves the best values in ``chosen.json``, where the table finds them. All else is the
method's default, and the schedule is that of ``few_labels.py``. The test images choose nothing: reported is the
accuracy after the last epoch.

A run leaves ``result.json`` in a folder of its name, and is not run again; ``--table`` prints what there is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import few_labels
import torch

SAMPLES, EPOCHS, TEACHER_EPOCHS = 18, 90, 50
DEFAULTS: dict[str, Any] = {"beta": 1.0, "stage_count": 1, "strength": 1.0}  # of cetl
CANDIDATES: dict[str, tuple[str, tuple[Any, ...]]] = {  # option: the row that chooses it, and what it chooses from
    "beta": ("u", (0.1, 1.0, 10.0)),
    "stage_count": ("e", (1, 5)),
    "strength": ("cetl", (1.0, 100.0)),  # with the stage_count that was chosen before
}
FIRST_DRAW = 100  # seed of the first draw that chooses; the table's seeds are 0, 1, ...
CETL: dict[str, dict[str, Any]] = {  # the rows of this method, with the options that they take of those chosen
    "f": {"config": "f", "take": ("beta",)},
    "u": {"config": "u", "take": ("beta",)},
    "e": {"config": "e", "take": ("stage_count",)},
    "fi": {"config": "fi", "take": ("stage_count", "strength")},
    "cetl": {"config": "cetl", "take": ("stage_count", "strength")},
    "cetl-kd": {"config": "cetl", "take": ("stage_count", "strength"), "soft_targets": 1.0},  # the weight of kd
}
TAUGHT = ("cetl-kd", "kd")  # their source has learnt the same few digits before: they compare its predictions
ROWS = ("baseline", "baseline-third", *CETL, "kd")  # a third of the epochs: as many with labels as e, fi, cetl have
PAPER = {"baseline": 61.29, "f": 62.41, "u": 62.63, "e": 63.97, "fi": 64.19, "cetl": 65.33}
"""Table 2: the accuracy on CIFAR-10 with a fifth of its images."""


def settings_of(
    row: str, init: str, seed: int, epochs: int, samples: int, folder: Path, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything of a run but its folder."""
    given: dict[str, Any] = {"method": "kd" if row == "kd" else "plain", "epochs": epochs}
    given |= {"seed": seed, "draw_seed": seed, "samples_per_class": samples}
    if row == "baseline-third":
        given["epochs"] = max(1, epochs // 3)
    if row in CETL:
        options = dict(CETL[row])
        options |= {name: chosen[name] for name in options.pop("take")}
        given |= {"method": "cetl", "set": options, "source": few_labels.SOURCE}
    if row in TAUGHT:
        weights = teacher(seed, epochs, samples, folder)
        given |= {"source": few_labels.SOURCE, "source_weights": str(weights)}
        given["source_arg"] = few_labels.NETS[few_labels.TEACHER][1]
    if init == "auto":
        given["init"] = str(few_labels.transferred("vgg9", seed, folder))
    return given


def teacher(seed: int, epochs: int, samples: int, folder: Path) -> Path:
    """The source after it has learnt the digits from these images; trained once for each seed."""
    epochs = min(epochs, TEACHER_EPOCHS)
    line = dict(zip(few_labels.KEY, (few_labels.TEACHER, "total", "auto", samples, seed, epochs), strict=True))
    out = few_labels.run_folder(folder, line)
    if not (out / "done").exists():
        line = few_labels.train(few_labels.TEACHER, "total", "auto", samples, seed, epochs, folder)
        (out / "result.json").write_text(json.dumps(line) + "\n", encoding="utf-8")
    return out / "last.safetensors"


def train(out: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The run's result, which is read where it is there already."""
    from netgraft.finetune.engine.loop import finetune
    from netgraft.finetune.settings import TrainingSettings

    file = out / "result.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    reference, arguments = few_labels.NETS["vgg9"]
    options = few_labels.PROTOCOL | few_labels.FIXED | given | {"val_interval": given["epochs"]}
    clock = few_labels.Clock()
    cache = {"cache": str(out / "cache")} if "source" in given else {}  # the source reads an image once
    settings = TrainingSettings(reference, few_labels.DATA, str(out), target_arg=arguments, **options, **cache)
    history = finetune(settings, force=True, watch=clock).history
    found = {"accuracy": history[-1]["eval_top1"], "seconds": clock.seconds, "epochs": given["epochs"]}
    found |= {"validation": history[-1]["val_top1"]} if "val_top1" in history[-1] else {}
    for name in ("recons1", "recons2"):  # of the last epoch that has it
        if seen := [record[f"train_{name}"] for record in history if f"train_{name}" in record]:
            found[name] = seen[-1]
    found["on_labels"] = sum("train_task" in record for record in history)
    (out / "state.pt").unlink()  # large, and not for going on: the run has ended
    shutil.rmtree(out / "cache", ignore_errors=True)
    found = {name: round(value, 5) for name, value in found.items()}
    file.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return found


# --------------------------------------------------------------------------------------------------------------- tables


def table(found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    """Of results by row and seed."""
    title = "| row | accuracy | less baseline | recons1 | recons2 | epochs on labels | seconds | seeds | paper |"
    lines = [title, "|" + "---|" * 9]
    by_seed = {row: {seed: one["accuracy"] for seed, one in seeds.items()} for row, seeds in found.items()}
    for row, seeds in found.items():
        if not seeds:
            continue
        less = few_labels.difference(by_seed[row], by_seed.get("baseline", {})) if row != "baseline" else ""
        cells = [row, few_labels.mean_and_error(list(by_seed[row].values()), 2), less]
        for name in ("recons1", "recons2"):
            values = [one[name] for one in seeds.values() if name in one]
            cells.append(f"{statistics.mean(values):.3f}" if values else "")
        middle = [statistics.median(one[name] for one in seeds.values()) for name in ("on_labels", "seconds")]
        cells += [f"{middle[0]:.0f}", f"{middle[1]:.0f}", str(len(seeds)), f"{PAPER[row]:.2f}" if row in PAPER else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def choose(seeds: int, epochs: int, folder: Path) -> str:
    """Accuracy on held-out images for every candidate; the best ones are written to ``chosen.json``."""
    lines, chosen = ["| option | row | value | on held-out images | draws |", "|---|---|---|---|---|"], dict(DEFAULTS)
    for option, (row, values) in CANDIDATES.items():
        means = {}
        for value in values:
            chosen[option], seen = value, []
            for seed in range(FIRST_DRAW, FIRST_DRAW + seeds):
                given = settings_of(row, "scratch", seed, epochs, SAMPLES, folder, chosen)
                given |= {"samples_per_class": None, "val_split": 0.8}  # leaves 17 or 18 images of each class
                name = "-".join(f"{key}={each}" for key, each in sorted(given["set"].items()))
                seen.append(train(folder / f"choose-{name}-{seed}-{epochs}", given)["validation"])
                print(name, seed, seen[-1], file=sys.stderr, flush=True)
            means[value] = statistics.mean(seen)
            lines.append(f"| {option} | {row} | {value} | {few_labels.mean_and_error(seen)} | {len(seen)} |")
        chosen[option] = max(values, key=means.__getitem__)
    (folder / "chosen.json").write_text(json.dumps(chosen) + "\n", encoding="utf-8")
    return "\n".join([*lines, "", f"chosen: {chosen}"])


# ------------------------------------------------------------------------------------------------------------- the face


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The configurations of CETL with a fifth of the labels.")
    parser.add_argument("--rows", default=",".join(ROWS), help="some of them, with commas between")
    parser.add_argument("--init", choices=few_labels.INITS, default="scratch", help="where all rows start")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="labelled images per class")
    parser.add_argument("--folder", type=Path, required=True, help="where trainings and their results are kept")
    parser.add_argument("--table", action="store_true", help="print what there is, and train nothing")
    parser.add_argument("--choose", action="store_true", help="fix options on images that are held out")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    rows = few_labels.chosen_names(parser, "--rows", options.rows, ROWS)
    if min(options.seeds, options.epochs, options.samples) < 1:
        parser.error("--seeds, --epochs and --samples are at least 1")

    torch.set_num_threads(options.threads)
    folder, init = options.folder, options.init
    folder.mkdir(parents=True, exist_ok=True)
    if options.choose:
        print(choose(options.seeds, options.epochs, folder))
        return
    file = folder / "chosen.json"
    chosen = json.loads(file.read_text(encoding="utf-8")) if file.exists() else DEFAULTS
    found: dict[str, dict[int, dict[str, float]]] = {row: {} for row in rows}
    for seed in range(options.seeds):
        for row in rows:
            out = folder / f"{row}-{init}-{options.samples}-{seed}-{options.epochs}"
            done = (out / "result.json").exists()
            if options.table and not done:
                continue
            given = {} if done else settings_of(row, init, seed, options.epochs, options.samples, folder, chosen)
            found[row][seed] = train(out, given)
            if not done:
                print(out.name, json.dumps(found[row][seed]), file=sys.stderr, flush=True)
    print(f"{init}, {chosen}\n\n{table(found)}")


if __name__ == "__main__":
    main()
