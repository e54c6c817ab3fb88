"""What `refit` and `distil` cost, and give, at 224x224 on a CPU: time, memory, R^2, agreement with the source.

    python tests/benchmarks/large_images.py                        # the four pairs
    python tests/benchmarks/large_images.py --growth               # time and memory over widths and image counts

Every line is one `netgraft transfer` in a process of its own. Weights are random, which changes no cost; batch norms'
statistics are measured on synthetic images, so that activations have the scale of a trained network's. Agreement is the
share of held-out synthetic images on which source and target name the same of 1000 classes, beside how often the source
names its most frequent one: what a target reaches that says the same of every image.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file

from netgraft.data.synthetic import make_images
from netgraft.files.checkpoint import read_provenance
from netgraft.models.batch_norm import recalibrating

REFIT = ["--recipe", "refit", "--set", "refit_images=1024", "--keep-head"]
PAIRS = [
    ("vit_small_patch16_224", "vit_tiny_patch16_224", REFIT),
    ("resnet18", "convnext_atto", REFIT),
    ("resnet50", "mobilenetv3_large_100", REFIT),
    ("resnet18", "mobilenetv3_small_100", ["--recipe", "distil", "--set", "steps=100", "--keep-head"]),
]
WIDTHS = ["mobilenetv3_small_050", "mobilenetv3_small_075", "mobilenetv3_small_100", "mobilenetv3_large_100"]
COUNTS = [128, 256, 512, 1024]
HELD_OUT = 64


def images(count, seed):
    """Synthetic images [count, 3, 224, 224], normalised as ImageNet's are."""
    data = timm.data
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.IMAGENET_DEFAULT_MEAN, data.IMAGENET_DEFAULT_STD))
    return (make_images("mix", count, (3, 224, 224), seed) - mean) / std


def source_weights(name, folder):
    """A file of random weights with fitting batch norms, and the network itself."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    with torch.no_grad(), recalibrating(model):
        model(images(32, seed=7))
    file = folder / f"{name}.safetensors"
    if not file.exists():
        save_file(model.state_dict(), file)
    return model, file


@torch.no_grad()
def answers(model):
    """The class of each held-out image."""
    return torch.cat([model(part).argmax(1) for part in images(HELD_OUT, seed=2**31 - 7).split(16)])


def transfer(source, target, options, folder):
    """Run the command; wall seconds, CPU seconds, the largest resident set in MB, and the checkpoint."""
    _, weights = source_weights(source, folder)
    output = folder / "init.safetensors"
    command = [sys.executable, "-m", "netgraft", "transfer", source, target, "--source-weights", str(weights), *options]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--no-receipt", "-f", "-o", str(output)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: exit code {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output


def r_squared(output):
    """Least, median and largest R^2 of the layers that were refitted."""
    report = next(report for report in read_provenance(output)["passes"] if report["name"] == "refit")
    found = sorted(layer["r2"] for layer in report["layers"] if layer["r2"] is not None)
    return (found[0], statistics.median(found), found[-1]) if found else None


def report_pairs(folder):
    print(f"{'':62}{'wall s':>8}{'CPU s':>8}{'MB':>7}  R^2 least, median, most   agreement (most frequent class)")
    for source, target, options in PAIRS:
        wall, cpu, memory, output = transfer(source, target, options, folder)
        there = answers(source_weights(source, folder)[0])
        model = timm.create_model(target).eval()
        model.load_state_dict(load_file(output))
        agreement = (answers(model) == there).double().mean()
        constant = there.bincount().max() / len(there)
        quality = " ".join(f"{value:6.2f}" for value in r_squared(output) or ())
        name = f"{source} -> {target} {' '.join(options)}"
        print(f"{name:62}{wall:8.0f}{cpu:8.0f}{memory:7.0f}  {quality:26}{agreement:.2f} ({constant:.2f})", flush=True)


def report_growth(folder):
    print(f"{'resnet18 ->':24}{'images':>7}{'wall s':>8}{'CPU s':>8}{'MB':>7}")
    runs = [("mobilenetv3_small_100", count) for count in COUNTS] + [(target, COUNTS[0]) for target in WIDTHS]
    for target, count in runs:
        options = ["--recipe", "refit", "--set", f"refit_images={count}"]
        wall, cpu, memory, _ = transfer("resnet18", target, options, folder)
        print(f"{target:24}{count:7}{wall:8.0f}{cpu:8.0f}{memory:7.0f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--growth", action="store_true", help="time and memory over widths and image counts instead")
    parser.add_argument("--pairs", type=json.loads, help="numbers of the pairs to run, as [0, 3]")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.pairs is not None:
        PAIRS[:] = [PAIRS[number] for number in options.pairs]
    with tempfile.TemporaryDirectory() as temporary:
        (report_growth if options.growth else report_pairs)(Path(temporary))


if __name__ == "__main__":
    main()
