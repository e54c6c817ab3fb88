"""Does what an initialisation carries tell how well it trains? Spearman's rank correlation over the benchmark's cells.

    python tests/benchmarks/carried_rank.py --cache ~/.cache/netgraft-quality --out ranks.json
    python tests/benchmarks/carried_rank.py --targets plainnet5 resnet8 --seeds 1     # a handful

For each source that is shipped, each target and each recipe: the number of ``evidence/carried.py``, which needs no
label, and the accuracy after fine-tuning on ten images per class (``transfer_quality``), a mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from transfer_quality import finetune
from transfer_quality.domains import DOMAINS, FAMILIES, TARGETS
from transfer_quality.initialisations import Source, make, parse

from netgraft.data.images import ImageSource
from netgraft.errors import NetgraftError
from netgraft.evidence.carried import Measure
from netgraft.evidence.parity import Party
from netgraft.models.model import read_weights
from netgraft.models.side import own_weights
from netgraft.trace import trace

SOURCES = ("resnet20-embedded", "vgg11-embedded")
INITS = ("scratch", "hmt", "graft", "refit", "distil:steps=100", "distil")


def ranked(values: list[float]) -> torch.Tensor:
    """Ranks from 1, the mean rank for equal values."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return (tensor[:, None] > tensor).sum(1) + ((tensor[:, None] == tensor).sum(1) + 1) / 2


def spearman(one: list[float], other: list[float]) -> float:
    """The correlation of the ranks."""
    return float(torch.corrcoef(torch.stack([ranked(one), ranked(other)]))[0, 1])


def cells(cache: Path, targets: list[str], inits: list[str], seeds: int) -> list[dict[str, object]]:
    """One row per source, target and initialisation."""
    domain, rows = DOMAINS["glyphs"], []
    for name in SOURCES:
        source = Source.parse(name)
        given = domain.side(FAMILIES[source.family], source=True, weights=source.weights(cache, "glyphs", "", 0)).load()
        party = Party(given, trace(given), read_weights(given).tensors)
        for target in targets:
            model = domain.side(TARGETS[target], source=False).load()
            own, _ = own_weights(model, 0, allow_nonfinite=False)
            graph = trace(model)
            measure = Measure(party, Party(model, graph, own), ImageSource("mix"))
            for init in inits:
                try:
                    made = make(cache, "glyphs", source, target, parse(init), steps=0)
                except NetgraftError:
                    continue  # nothing to move
                found = measure.look(made.tensors or own)
                accuracies = []
                for seed in range(seeds):
                    task = finetune.task(cache, "glyphs", target, 10, seed)
                    net = finetune.fresh("glyphs", target, made.tensors, seed)
                    finetune.tune(net, *task.train, seed)
                    accuracies.append(100 * finetune.accuracy(net, *task.test))
                row = {"source": name, "target": target, "init": init, "accuracy": round(mean(accuracies), 1)}
                rows.append(row | {"carried": None if found is None else round(found.share, 3)})
                print(*rows[-1].values(), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "netgraft-quality")
    parser.add_argument(
        "--targets", nargs="+", default=["plainnet5", "resnet8", "wide5x5", "depthwise", "nonorm", "vit"]
    )
    parser.add_argument("--inits", nargs="+", default=list(INITS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = [row for row in cells(given.cache, given.targets, given.inits, given.seeds) if row["carried"] is not None]
    within = [
        spearman([r["carried"] for r in part], [r["accuracy"] for r in part])
        for source in SOURCES
        for target in given.targets
        if len(part := [r for r in rows if (r["source"], r["target"]) == (source, target)]) > 2
    ]
    overall = spearman([row["carried"] for row in rows], [row["accuracy"] for row in rows])
    print(f"{len(rows)} cells: Spearman {overall:.2f} over all, {mean(within):.2f} within a pair on average")
    if given.out is not None:
        document = {"cells": rows, "spearman": overall, "within": within}
        given.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
