"""Are the checkpoints of two commits the same bytes? Writes one digest for each of 40 pairs and every recipe.

    python tests/benchmarks/same_bytes.py --out after.json                      # this checkout
    python tests/benchmarks/same_bytes.py --root ../before --out before.json    # another one
    python tests/benchmarks/same_bytes.py --compare before.json after.json      # exit code 1 where they differ

Each transfer runs as its command line does. ``file`` is the sha256 of the whole checkpoint, ledger included;
``tensors`` that of the names, types, shapes and numbers alone. What is refused counts by its text. Sizes, images and
steps are small: this compares code with code and says nothing about quality.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

NETS = "tests/benchmarks/transfer_quality/nets.py"
GREY = ("netgraft:resnet20-glyphs", "netgraft:vgg11-glyphs")
OWN = (
    *("examples/my_arch.py", "examples/resnet8.py", "examples/plainnet5.py", f"{NETS}:Wide5x5", f"{NETS}:Depthwise"),
    *(f"{NETS}:NoNorm", f"{NETS}:ResNet26", f"{NETS}:vit_deep", f"{NETS}:vit_wide", *GREY),
)
SIZED = {"examples/my_arch.py": ["--input-size", "1,16,16"]}
TIMM = (
    *(("resnet18", "resnet34"), ("resnet34", "resnet18"), ("resnet18", "resnet18"), ("resnet18", "resnet10t")),
    *(("resnet10t", "resnet14t"), ("vgg11", "resnet18"), ("regnetx_002", "resnet10t"), ("regnety_002", "regnetx_002")),
    *(("mobilenetv2_050", "mobilenetv2_100"), ("mobilenetv3_small_050", "mobilenetv3_small_100")),
    *(("efficientnet_b0", "efficientnet_b1"), ("tf_efficientnet_lite0", "tf_efficientnet_lite1")),
    *(("efficientnet_b0", "mobilenetv3_small_050"), ("convnext_atto", "convnext_femto")),
    *(("convnext_atto", "resnet10t"), ("densenet121", "resnet18")),
)
VIT = (
    *((f"{NETS}:vit_deep", f"{NETS}:vit_wide"), (f"{NETS}:vit_wide", f"{NETS}:vit_deep")),
    (f"{NETS}:vit_deep", "examples/plainnet5.py"),
)
PAIRS = [(s, t) for s in GREY for t in OWN] + list(TIMM) + list(VIT)
SMALL = ["--set", "refit_images=16"]
RECIPES = {
    "auto": ["--budget", "0.01"],
    "hmt": [],
    "graft": [],
    "grow": [],
    "refit": SMALL,
    "distil": [*SMALL, "--set", "steps=2", "--set", "images=64", "--set", "batch=16"],
}


def transfer(source: str, target: str, recipe: str, folder: Path) -> dict[str, str]:
    """The digests of what one command writes, or the first line of its refusal."""
    from safetensors.torch import load_file
    from typer.testing import CliRunner

    from netgraft.cli import app

    out = folder / "out.safetensors"
    args = ["transfer", source, target, "-o", str(out), "--force", "--recipe", recipe, *RECIPES[recipe]]
    if source not in GREY:
        args += ["--random-source"]
    if source not in GREY and NETS not in source:
        args += ["--input-size", "3,64,64", "--source-input-size", "3,64,64"]
    args += SIZED.get(target, [])
    result = CliRunner().invoke(app, args, prog_name="netgraft")
    if result.exit_code:
        return {"refused": next((line for line in result.stderr.splitlines() if line.startswith("netgraft:")), "?")}
    tensors = hashlib.sha256()
    for key, value in load_file(out).items():
        tensors.update(f"{key} {value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    return {"file": hashlib.sha256(out.read_bytes()).hexdigest(), "tensors": tensors.hexdigest()}


def measure(root: Path, out: Path) -> None:
    """Write the digests of the checkout ``root``; a run that was stopped goes on where it stopped."""
    os.chdir(root)
    sys.path.insert(0, str(root))
    found = json.loads(out.read_text()) if out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for source, target in PAIRS:
            for recipe in RECIPES:
                name = f"{source} -> {target} {recipe}"
                if name not in found:
                    found[name] = transfer(source, target, recipe, Path(folder))
                    print(name, *found[name].values(), flush=True)
                    out.write_text(json.dumps(found, indent=1) + "\n")


def compare(before: Path, after: Path) -> int:
    """Print what differs; 1 if anything does."""
    one, other = (json.loads(path.read_text()) for path in (before, after))
    names = sorted({*one, *other})
    ledgers = [n for n in names if one.get(n) != other.get(n)]
    numbers = [n for n in ledgers if {**one.get(n, {}), "file": ""} != {**other.get(n, {}), "file": ""}]
    for name in ledgers:
        print("numbers differ" if name in numbers else "only the ledger differs", name)
    pairs = {name.rpartition(" ")[0] for name in names}
    refused = sum("refused" in other.get(n, {}) for n in names)
    print(f"{len(names)} transfers of {len(pairs)} pairs, {refused} of them refused: ", end="")
    print(f"{len(numbers)} with other numbers, {len(ledgers) - len(numbers)} with another ledger alone")
    return int(bool(numbers))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compare", type=Path, nargs=2)
    given = parser.parse_args()
    if given.compare:
        return compare(*given.compare)
    if given.out is None:
        parser.error("--out FILE or --compare BEFORE AFTER")
    measure(given.root.resolve(), given.out.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
