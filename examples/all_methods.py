"""All methods on one task and budget: from letters to digits with a fifth of the labels.

    python examples/all_methods.py --folder all_methods_runs --run
    python examples/all_methods.py --folder all_methods_runs

The first line trains what is missing, the second writes the tables of what there is. The source,
``netgraft:resnet20-glyphs``, reads letters; the target, VGG9 of ``few_labels.py``, learns ``netgraft:digits-hard`` from
18 images of each class, a fifth of those to train with. Each method of ``netgraft methods`` runs from the target's own
random weights (``scratch``) and from what ``netgraft transfer`` makes of the source (``auto``), with one schedule
(``few_labels.PROTOCOL``), the same number of batches and its default options: nothing is tuned, and the test images
choose nothing. A seed draws the labelled images, the weights that are random and the order, the same for all methods.

Methods that need data of the source domain (``netgraft methods NAME`` says so) have a table of their own, since they
see more: all images of ``netgraft:digits``, the same digits undistorted, with their labels, beside the target's. They
learn both domains' labels where they can (``labels=both``), and are compared with ``together``, which does just that.

A run leaves ``result.json`` in a folder of its name, and is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import few_labels
import torch
from few_labels import INITS, difference, mean_and_error

SAMPLES, EPOCHS = 18, 30
DOMAIN, GLYPHS = "netgraft:digits", "netgraft:glyphs"
DOMAIN_IMAGES, CLASSES = 899, 10
FIRST_TRAINED = ("adda", "tzeng")  # on the source domain, as their papers begin
OWN_IMAGES = ("ewc", "l2-sp-fisher")  # measure the source's task on its images
TOGETHER = "together"
EXTRA: dict[str, dict[str, Any]] = {TOGETHER: {"method": "ddc", "lam": 0.0}}  # the labels of both domains alone

Results = Mapping[str, Mapping[str, Mapping[int, Mapping[str, float]]]]
"""Of each method, start and seed."""


def methods() -> tuple[list[str], list[str]]:
    """Those without images of a source domain and those with, each with what they are compared with first."""
    from netgraft import plugins

    names = plugins.listing("finetune.methods")
    domain = [name for name in names if _has_domain(name)]
    rest = [name for name in names if name not in (*domain, "plain")]
    return ["plain", *rest], [TOGETHER, *domain]


def _has_domain(method: str) -> bool:
    from netgraft.finetune.protocol import Need

    return method in EXTRA or Need.SOURCE_DATA in few_labels.needs(method)


def refused(method: str, init: str) -> bool:
    """Whether there is nothing that the method could stay near."""
    return init == "scratch" and not _has_domain(method) and few_labels.refused(method, init)


def settings_of(method: str, init: str, seed: int, epochs: int, samples: int, folder: Path, out: Path) -> Any:
    """The whole of a run; what it begins from or learns from is trained before."""
    from netgraft.finetune.protocol import Need
    from netgraft.finetune.settings import TrainingSettings

    preset = {"method": method} | EXTRA.get(method, {})
    wanted, options = few_labels.needs(preset["method"]), few_labels.described(preset["method"]).options
    given: dict[str, Any] = preset | {"seed": seed, "draw_seed": seed, "epochs": epochs, "samples_per_class": samples}
    if {Need.SOURCE_MODEL, Need.SOURCE_GRADIENTS} & set(wanted):
        given["source"] = few_labels.SOURCE
    if Need.SAME_CLASSES in wanted or method == "jacobian":  # the source learns the digits first, from the same images
        given |= {"source_arg": few_labels.NETS[few_labels.TEACHER][1]}
        given |= {"source_weights": str(_teacher(seed, epochs, samples, folder))}
    if method in OWN_IMAGES:
        given["source_data"] = GLYPHS
    if _has_domain(method):
        given["source_data"] = DOMAIN
        if "labels" in options and method != "rtn":  # which learns the source's labels alone
            given["set"] = {"labels": "both"}
    if init == "auto":
        given["init"] = str(few_labels.transferred("vgg9", seed, folder))
    if method in FIRST_TRAINED:
        weights = _trained_on_source_domain(init, seed, epochs, samples, given.get("init"), folder)
        given["init"] = str(weights)
    reference, arguments = few_labels.NETS["vgg9"]
    fixed = few_labels.PROTOCOL | few_labels.FIXED | {"val_interval": epochs}
    return TrainingSettings(reference, few_labels.DATA, str(out), target_arg=arguments, **(fixed | given))


def _teacher(seed: int, epochs: int, samples: int, folder: Path) -> Path:
    """The source after it has learnt the digits from the same few images."""
    line = dict(zip(few_labels.KEY, (few_labels.TEACHER, "total", "auto", samples, seed, epochs), strict=True))
    out = few_labels.run_folder(folder, line)
    if not (out / "done").exists():
        few_labels.train(few_labels.TEACHER, "total", "auto", samples, seed, epochs, folder)
    return out / "last.safetensors"


def _trained_on_source_domain(init: str, seed: int, epochs: int, samples: int, start: str | None, folder: Path) -> Path:
    """The target after it has learnt the source domain: from all its images, in no more batches than a run has."""
    from netgraft.finetune.engine.loop import finetune
    from netgraft.finetune.settings import TrainingSettings

    epochs = max(1, epochs * samples * CLASSES // DOMAIN_IMAGES)
    out = folder / f"on-source-domain-{init}-{seed}-{epochs}"
    if not (out / "done").exists():
        reference, arguments = few_labels.NETS["vgg9"]
        fixed = few_labels.PROTOCOL | few_labels.FIXED | {"seed": seed, "epochs": epochs, "val_interval": epochs}
        finetune(TrainingSettings(reference, DOMAIN, str(out), target_arg=arguments, init=start, **fixed), force=True)
        (out / "state.pt").unlink()
        (out / "done").touch()
    return out / "last.safetensors"


def run(method: str, init: str, seed: int, epochs: int, samples: int, folder: Path) -> dict[str, float]:
    """The run's result, which is read where it is there already."""
    from netgraft.finetune.engine.explain import explain
    from netgraft.finetune.engine.loop import finetune

    out = place(method, init, seed, epochs, samples, folder)
    file = out / "result.json"
    if not file.exists():
        chosen = settings_of(method, init, seed, epochs, samples, folder, out)
        step, clock = explain(chosen).step, few_labels.Clock()
        history = finetune(chosen, force=True, watch=clock).history
        found = {"accuracy": history[-1]["eval_top1"], "step": step, "seconds": clock.seconds}
        (out / "state.pt").unlink()  # large, and not for going on: the run has ended
        found = {name: round(value, 4) for name, value in found.items()}
        file.write_text(json.dumps(found) + "\n", encoding="utf-8")
    read: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
    return read


def _told(*chosen: Any) -> str:
    """The result as it is printed. What ends in an error, such as a loss that is not finite, leaves the others run."""
    from netgraft.errors import NetgraftError

    try:
        return json.dumps(run(*chosen))
    except NetgraftError as error:
        return f"failed: {error}"


def place(method: str, init: str, seed: int, epochs: int, samples: int, folder: Path) -> Path:
    return folder / f"{method}-{init}-{seed}-{epochs}-{samples}"


# --------------------------------------------------------------------------------------------------------------- tables


def finished(names: Sequence[str], seeds: int, epochs: int, samples: int, folder: Path) -> Results:
    found: dict[str, dict[str, dict[int, dict[str, float]]]] = {n: {init: {} for init in INITS} for n in names}
    for name in names:
        for init in INITS:
            for seed in range(seeds):
                if (place(name, init, seed, epochs, samples, folder) / "result.json").exists():
                    found[name][init][seed] = run(name, init, seed, epochs, samples, folder)
    return found


def table(found: Results) -> str:
    """A row for each method that has a result; the first method is what the others are compared with."""
    first = next(iter(found))
    titles = ["method", *(t for init in INITS for t in (init, f"less {first}")), "F a step", "seconds", "seeds"]
    rows = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for name, starts in found.items():
        every = [one for seeds in starts.values() for one in seeds.values()]
        if not every:
            continue
        cells = [name]
        for init in INITS:
            mine = {seed: one["accuracy"] for seed, one in starts[init].items()}
            other = {seed: one["accuracy"] for seed, one in found[first][init].items()}
            if mine:
                cells += [mean_and_error(list(mine.values())), "" if name == first else difference(mine, other)]
            else:
                cells += ["refused" if refused(name, init) else "", ""]
        cells.append(f"{statistics.mean(one['step'] for one in every):.2f}")
        cells.append(f"{statistics.median(one['seconds'] for one in every):.1f}")
        counts = [str(len(starts[init])) for init in INITS if not refused(name, init)]
        rows.append("| " + " | ".join([*cells, counts[0] if len(set(counts)) == 1 else " and ".join(counts)]) + " |")
    return "\n".join(rows)


# ------------------------------------------------------------------------------------------------------------- the face


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="All methods on one task and budget.")
    parser.add_argument("--folder", type=Path, required=True, help="where runs and their results are kept")
    parser.add_argument("--run", action="store_true", help="train what is missing; else only write the tables")
    parser.add_argument("--methods", help="some of them, with commas between")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="labelled images of each class")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if min(options.seeds, options.samples, options.epochs) < 1:
        parser.error("--seeds, --samples and --epochs are at least 1")
    both = methods()
    every = [name for names in both for name in names]
    chosen = few_labels.chosen_names(parser, "--methods", options.methods or ",".join(every), every)
    torch.set_num_threads(options.threads)
    budget = options.epochs, options.samples, options.folder
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds if options.run else 0):  # outermost: what is finished is a table of all methods
        for name in chosen:
            for init in INITS:
                if not refused(name, init):
                    print(name, init, seed, _told(name, init, seed, *budget), file=sys.stderr, flush=True)
    for names in both:
        if mine := [name for name in names if name in chosen]:
            print(table(finished(mine, options.seeds, *budget)) + "\n")


if __name__ == "__main__":
    main()
