"""Domain adaptation on a shift that needs no download: digits with labels, digits in front of photographs without.

    python examples/domain_shift.py --seeds 3
    python examples/domain_shift.py --methods source,dann --epochs 20

A small network learns ``netgraft:digits`` with its labels and sees ``netgraft:digits-m`` without (MNIST -> MNIST-M in
small). Reported is its accuracy on the test part of digits-m after the last epoch: no label of digits-m chooses
anything, except for ``target``, which learns them, as the other end of the scale. ``statistics`` is source training
with BatchNorm's statistics taken from the target, without any regulariser; all methods have that too.

L2T-GAN's task loss takes the target's labels (its Eq. 6). Its ablations A to D of Figure 3b get ten labels of each
class, and start where source training ended; ``few`` and its like have the same labels, start and number of batches.

Every run is one line of JSON, written when it is done, so that the script goes on where it stopped; at the end stands
a table with means and standard errors over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SOURCE, TARGET = "netgraft:digits", "netgraft:digits-m"
MEAN, STD = (0.5,), (0.5,)

ADAPTING: dict[str, Any] = {"data": TARGET, "source_data": SOURCE}
FEW: dict[str, Any] = {"data": TARGET, "samples_per_class": 10, "init": "source", "batch_size": 20}
TAUGHT = FEW | {"source": "source"}
L2T_GAN = TAUGHT | {"method": "l2t-gan", "source_data": SOURCE}
GAMMA = 0.03
"""The weight of L2T-GAN's MMD; with 0.1 its training loss stays at chance, with DDC's 0.25 it is soon infinite."""
PRESETS: dict[str, dict[str, Any]] = {
    "source": {"data": SOURCE, "method": "plain"},
    "statistics": ADAPTING | {"method": "ddc", "lam": 0.0},
    "ddc": ADAPTING | {"method": "ddc"},
    "dan": ADAPTING | {"method": "dan"},
    "dan-all-pairs": ADAPTING | {"method": "dan", "set": {"estimator": "unbiased"}},
    "jan": ADAPTING | {"method": "jan"},
    "jan-all-pairs": ADAPTING | {"method": "jan", "set": {"estimator": "unbiased"}},
    "dann": ADAPTING | {"method": "dann"},
    "cdan": ADAPTING | {"method": "cdan"},
    "adda": ADAPTING | {"method": "adda", "init": "source"},  # begins where source training ended
    "target": {"data": TARGET, "method": "plain"},
    "few": FEW | {"method": "plain"},
    "few-l2-sp": FEW | {"method": "l2-sp"},
    "few-fm": TAUGHT | {"method": "fm"},
    **{f"l2t-gan-{x}": L2T_GAN | {"set": {"ablation": x, "gamma": GAMMA}} for x in "ABCD"},
}


class SmallNet(nn.Module):
    """Two convolutions and two linear layers: logits ``[n, num_classes]`` of images ``[n, 3, 16, 16]``."""

    input_size = (3, 16, 16)

    def __init__(self, num_classes: int = 10, drop: float = 0.25) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 5, padding=2, bias=False)
        self.first_norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 48, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(48)
        self.hidden = nn.Linear(48 * 16, 128)
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.first_norm(self.first(x)).relu(), 2)
        x = nn.functional.max_pool2d(self.second_norm(self.second(x)).relu(), 2)
        return self.head(self.drop(self.hidden(x.flatten(1)).relu()))


def accuracy(weights: Path, data: str) -> float:
    """In percent, on the test part."""
    import safetensors.torch

    from netgraft.data.opening import load_data

    net = SmallNet().eval()
    net.load_state_dict(safetensors.torch.load_file(weights))
    test = load_data(data, size=net.input_size, mean=MEAN, std=STD, split="test")
    with torch.no_grad():
        return 100 * (net(test.images).argmax(1) == test.labels).double().mean().item()


def train(name: str, seed: int, epochs: int, folder: Path) -> Path:
    """Weights after the last epoch; those that are there already are taken."""
    from netgraft.finetune.engine.loop import finetune
    from netgraft.finetune.settings import TrainingSettings

    weights = folder / f"{name}-{seed}-{epochs}" / "last.safetensors"
    if (folder / f"{name}-{seed}-{epochs}.done").exists():
        return weights
    preset: dict[str, Any] = {"batch_size": 64} | PRESETS[name]
    network = f"{Path(__file__)}:SmallNet"
    if "init" in preset:
        preset["init"] = str(train(preset["init"], seed, epochs, folder))
    if "source" in preset:
        preset |= {"source": network, "source_weights": str(train(preset["source"], seed, epochs, folder))}
    common: dict[str, Any] = {"epochs": epochs, "seed": seed, "lr": 0.02, "weight_decay": 5e-4}
    fixed: dict[str, Any] = {"mean": MEAN, "std": STD, "device": "cpu", "tensorboard": False}
    finetune(TrainingSettings(network, out=str(weights.parent), **common, **fixed, **preset), force=True)
    (folder / f"{name}-{seed}-{epochs}.done").touch()
    return weights


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Mean and standard error of each preset's accuracies, and the mean time."""
    rows = ["| method | digits-m | digits | seeds | seconds |", "|---|---|---|---|---|"]
    for name in PRESETS:
        mine = [line for line in lines if line["method"] == name]
        if mine:
            cells = [_spread([line[data] for line in mine]) for data in ("digits-m", "digits")]
            seconds = statistics.mean(line["seconds"] for line in mine)
            rows.append(f"| {name} | {' | '.join(cells)} | {len(mine)} | {seconds:.0f} |")
    return "\n".join(rows)


def _spread(values: Sequence[float]) -> str:
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{error}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Domain adaptation from digits to digits in front of photographs.")
    parser.add_argument("--methods", default=",".join(PRESETS), help=f"of {', '.join(PRESETS)}")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("domain_shift.jsonl"), help="lines of finished runs")
    parser.add_argument("--folder", type=Path, help="where trainings are kept; a temporary folder by default")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    chosen = [name.strip() for name in options.methods.split(",")]
    if unknown := sorted(set(chosen) - set(PRESETS)):
        raise SystemExit(f"Unknown: {', '.join(unknown)}. There are {', '.join(PRESETS)}.")
    torch.set_num_threads(options.threads)
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    lines = [line for line in lines if line["epochs"] == options.epochs]
    done = {(line["method"], line["seed"]) for line in lines}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(options.seeds):
            for name in chosen:
                if (name, seed) in done:
                    continue
                began = time.process_time()
                weights = train(name, seed, options.epochs, folder)
                line = {"method": name, "seed": seed, "epochs": options.epochs}
                line |= {data.partition(":")[2]: round(accuracy(weights, data), 2) for data in (TARGET, SOURCE)}
                line["seconds"] = round(time.process_time() - began, 1)
                lines.append(line)
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(json.dumps(line), file=sys.stderr, flush=True)
    print(table([line for line in lines if line["method"] in chosen]))


if __name__ == "__main__":
    main()
