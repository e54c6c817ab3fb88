"""What a network's last features tell of photographs, without any training of it.

    python examples/imagenet/probe.py resnet10t random init.safetensors --pictures pictures/photographs
    python examples/imagenet/probe.py netgraft:efficientnet-lite0 own --pictures pictures/photographs

Logistic regression on the input of the classifier, for a network as it is written in its checkpoint (no statistics of
norms are estimated again), with pictures of its own size. It is fitted on the training half, training and validation
pictures together; its C is chosen there, by cross-validation. The accuracy is that of the test pictures, and its
standard error a bootstrap over them: it does not tell what other training pictures would do.

Records go to ``--folder``/probes, from where ``study.py --report`` puts them into its table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from draws import kinds
from networks import Network, file_name, typed

PENALTIES = tuple(10.0**power for power in range(-5, 2))
"""C of the logistic regression, the inverse of its penalty."""
FOLDS, RESAMPLED = 4, 2000


def probe(train: np.ndarray, labels: np.ndarray, test: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, float]:
    """Which test images are right [n], and the C: the one that is best in folds of the training images.

    Features are [n, p]; each is scaled by its mean and deviation over the images that are learnt.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    search = GridSearchCV(pipeline, {"logisticregression__C": PENALTIES}, cv=folds).fit(train, labels)
    return search.predict(test) == wanted, float(search.best_params_["logisticregression__C"])


def bootstrap_error(right: np.ndarray, seed: int = 0) -> float:
    """The standard error of 100 * mean(right), over draws of the images with replacement."""
    rng = np.random.default_rng(seed)
    means = [right[rng.integers(len(right), size=len(right))].mean() for _ in range(RESAMPLED)]
    return 100 * float(np.std(means, ddof=1))


def listed(pictures: Path, parts: Sequence[str]) -> tuple[list[Path], np.ndarray]:
    """The files of these parts, and the numbers of their kinds."""
    found = [
        (file, number)
        for number, kind in enumerate(kinds(pictures))
        for part in parts
        for file in sorted((pictures / part / kind).glob("*.png"))
    ]
    return [file for file, _ in found], np.array([number for _, number in found])


def measure(network: Network, pictures: Path) -> dict[str, Any]:
    """The record of one network, as JSON."""
    (learnt, labels), (tested, wanted) = listed(pictures, ("train", "validation")), listed(pictures, ("test",))
    train, test = (network.observe(files)[0].double().numpy() for files in (learnt, tested))
    right, penalty = probe(train, labels, test, wanted)
    facts = {"target": network.name, "weights": network.weights, "size": list(network.size), "C": penalty}
    facts |= {"accuracy": 100 * float(right.mean()), "error": bootstrap_error(right)}
    return facts | {"train": len(learnt), "test": len(tested), "features": train.shape[1]}


def main(arguments_given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Linear probe of photographs.")
    parser.add_argument("target", help="as netgraft names models")
    parser.add_argument("weights", nargs="+", help="checkpoints; random; own, for pretrained weights of the name")
    parser.add_argument("--pictures", type=Path, required=True, help="a folder that data.py made")
    parser.add_argument("--target-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--input-size", help="C,H,W; the network's own without it")
    parser.add_argument("--source", help="whose normalisation random weights are given, as a transfer would")
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments_given)
    torch.set_num_threads(1)
    (options.folder / "probes").mkdir(parents=True, exist_ok=True)
    for network in typed(options):
        facts = measure(network, options.pictures)
        file = options.folder / "probes" / f"{file_name(network.name, network.weights)}.json"
        file.write_text(json.dumps(facts) + "\n")
        print(f"{network.name} {network.weights}: {facts['accuracy']:.1f} ± {facts['error']:.1f}, C {facts['C']:g}")


if __name__ == "__main__":
    main()
