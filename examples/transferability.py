"""How transferable are a network's layers? The study of Yosinski et al. (NIPS 2014), on letters and digits.

    python examples/transferability.py --seeds 3

The network (``few_labels.VGG9``: eight convolutions and a classifier) is trained on task A, letters
(``netgraft:glyphs``, all images), and on task B, distorted handwritten digits (``netgraft:digits-hard``). Then for
every n the first n convolutions, with their norms, are copied into a fresh network, which is trained on B:

- ``AnB``: copied from A's network, and frozen; ``AnB+``: copied from A's, and trained too.
- ``BnB``: copied from B's network, and frozen (the self-control: what breaks here is not the task); ``BnB+``: trained.

Where AnB falls below BnB, the layers are special to letters; where BnB falls below baseB, layers had adapted to their
neighbours. A seed draws the images and the fresh layers, the same ones for all; differences are taken seed by seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from few_labels import FIXED, NETS, PROTOCOL, mean_and_error

TASKS = {"A": ("netgraft:glyphs", 26), "B": ("netgraft:digits-hard", 10)}
KINDS = ("AnB", "AnB+", "BnB", "BnB+")
CONVOLUTIONS = 8


def base(task: str, samples: int, seed: int, epochs: int, folder: Path) -> tuple[Path, float]:
    """The network trained on one task from scratch: its weights, and its accuracy on that task's test part."""
    of_task = samples if task == "B" else None
    return trained(folder / f"base{task}-{seed}", *TASKS[task], of_task, seed, epochs)


def trained(
    out: Path, data: str, classes: int, samples: int | None, seed: int, epochs: int, **more: Any
) -> tuple[Path, float]:
    """Trains with the few-labels protocol; what was trained before is read again."""
    from netgraft.finetune.engine.loop import finetune
    from netgraft.finetune.settings import TrainingSettings

    weights, said = out / "last.safetensors", out / "accuracy.json"
    if not said.exists():
        drawn = {"samples_per_class": samples, "seed": seed, "draw_seed": seed, "val_interval": epochs}
        options = PROTOCOL | FIXED | drawn | {"target_arg": {"num_classes": classes}, "epochs": epochs} | more
        history = finetune(TrainingSettings(NETS["vgg9"][0], data, str(out), **options), force=True).history
        said.write_text(json.dumps(history[-1]["eval_top1"]))
    return weights, float(json.loads(said.read_text()))


def started(n: int, donor: Path, seed: int, file: Path) -> Path:
    """A checkpoint of a fresh network for task B whose first ``n`` convolutions and their norms are the donor's."""
    from safetensors.torch import load_file, save_file

    from netgraft.architecture.chain import longest_chain
    from netgraft.models.side import Side, own_weights
    from netgraft.trace import trace

    model = Side(NETS["vgg9"][0], "target", {"num_classes": TASKS["B"][1]}).load()
    graph = trace(model)
    chain = longest_chain(graph)
    layers = [
        name for first, norms in zip(chain.layers[:n], chain.followers[:n], strict=True) for name in (first, *norms)
    ]
    keys = {slot.key for name in layers for slot in graph.layers[name].tensors.values()}
    own, _ = own_weights(model, seed, allow_nonfinite=False)
    given = load_file(donor)
    save_file({key: (given[key] if key in keys else tensor).contiguous() for key, tensor in own.items()}, file)
    return file


def accuracy(kind: str, n: int, samples: int, seed: int, epochs: int, folder: Path) -> float:
    """Of one network on task B's test part, in percent."""
    donor, _ = base(kind[0], samples, seed, epochs, folder)
    out = folder / f"{kind.replace('n', str(n))}-{seed}"
    start = started(n, donor, seed, folder / f"{out.name}.safetensors")
    frozen = {} if kind.endswith("+") else {"freeze": str(n)}
    return trained(out, *TASKS["B"], samples, seed, epochs, init=str(start), **frozen)[1]


def table(found: Mapping[str, Mapping[int, Sequence[float]]], bases: Mapping[str, Sequence[float]]) -> str:
    """One row for each n; every entry is the mean over seeds with its standard error."""
    rows = [f"baseB {mean_and_error(bases['B'])}; baseA, on letters, {mean_and_error(bases['A'])}", ""]
    rows += ["| n | " + " | ".join(KINDS) + " | AnB less BnB |", "|--:|" + "--:|" * (len(KINDS) + 1)]
    for n in next(iter(found.values())):
        pairs = zip(found["AnB"][n], found["BnB"][n], strict=True)
        cells = [mean_and_error(found[kind][n]) for kind in KINDS]
        rows.append(f"| {n} | {' | '.join(cells)} | {mean_and_error([a - b for a, b in pairs], sign='+')} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains all networks of the study and prints the table; a stopped run with ``--folder`` goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--samples", type=int, default=20, help="images of each class of B")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--layers", type=int, nargs="+", default=list(range(1, CONVOLUTIONS + 1)), help="n")
    parser.add_argument("--folder", type=Path, help="where trainings are kept; a temporary folder by default")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        common = {"epochs": given.epochs, "folder": folder}
        seeds = range(given.seeds)
        bases = {task: [base(task, given.samples, seed, **common)[1] for seed in seeds] for task in TASKS}
        found = {
            kind: {n: [accuracy(kind, n, given.samples, seed, **common) for seed in seeds] for n in given.layers}
            for kind in KINDS
        }
    print(table(found, bases))


if __name__ == "__main__":
    main()
