"""How often a target gives the source's first answer of ImageNet's thousand, before any training.

    netgraft transfer netgraft:efficientnet-lite0 resnet10t --keep-head -o init.safetensors
    python examples/imagenet/agreement.py netgraft:efficientnet-lite0 resnet10t random init.safetensors \\
        --pictures pictures/photographs-all

Only for targets with the source's classes (``--keep-head``, or a copy). Each network is shown the photographs in its
own size. No label is used. The standard error is that of a share of so many pictures. Records go to
``--folder``/agreements.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from networks import OWN, Network, file_name, typed
from torch import Tensor


def agreement(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Percent of the images with the same first answer, and its standard error; answers are [n, classes] each."""
    if one.shape != other.shape:
        raise SystemExit(f"The networks have {one.shape[1]} and {other.shape[1]} classes: make both with the same.")
    share = float((one.argmax(1) == other.argmax(1)).double().mean())
    return 100 * share, 100 * (share * (1 - share) / len(one)) ** 0.5


def measure(network: Network, answers: Tensor, files: Sequence[Path], source: str) -> dict[str, Any]:
    """The record of one network, as JSON; ``answers`` are the source's."""
    given = network.observe(files)[1]
    if given is None:
        raise SystemExit(f"{network.name} does not answer with a score per class.")
    share, error = agreement(answers, given)
    facts = {"source": source, "target": network.name, "weights": network.weights, "size": list(network.size)}
    return facts | {"agreement": share, "error": error, "pictures": len(files)}


def main(arguments_given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Agreement with the source's first answer on photographs.")
    parser.add_argument("source", help="as netgraft names models, with pretrained weights")
    parser.add_argument("target", help="as netgraft names models")
    parser.add_argument("weights", nargs="+", help="checkpoints; random; own, for pretrained weights of the name")
    parser.add_argument("--pictures", type=Path, required=True, help="any folder of pictures, PNG")
    parser.add_argument("--target-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--input-size", help="C,H,W of the target; its own without it")
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments_given)
    torch.set_num_threads(1)
    files = sorted(options.pictures.rglob("*.png"))
    if not files:
        raise SystemExit(f"There are no PNG files in {options.pictures}: make them with data.py beside this script.")
    answers = Network(options.source, OWN, device=options.device).observe(files)[1]
    if answers is None:
        raise SystemExit(f"{options.source} does not answer with a score per class.")
    (options.folder / "agreements").mkdir(parents=True, exist_ok=True)
    for network in typed(options):
        facts = measure(network, answers, files, options.source)
        file = options.folder / "agreements" / f"{file_name(network.name, network.weights)}.json"
        file.write_text(json.dumps(facts) + "\n")
        print(f"{network.name} {network.weights}: {facts['agreement']:.1f} ± {facts['error']:.1f} of {len(files)}")


if __name__ == "__main__":
    main()
