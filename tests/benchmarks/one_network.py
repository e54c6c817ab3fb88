"""Is one network translated into another implementation of it? Transfers every pair with the default recipe and no map.

    python tests/benchmarks/one_network.py                            # every pair, lively weights
    python tests/benchmarks/one_network.py --only fused --only vit    # pairs whose name contains one of these
    python tests/benchmarks/one_network.py --recipe grow --plain      # another recipe; weights as initialised
    python tests/benchmarks/one_network.py --list                     # the pairs, and which libraries are missing
    python tests/benchmarks/one_network.py --truth                    # the pairs themselves: their own copies

A pair is translated when both networks compute the same on the same random inputs: relative error at most 1e-5 in
single precision. ``seconds`` is CPU time of the command beyond building both networks, on one thread. Libraries beside
netgraft's own dependencies (transformers, segmentation_models_pytorch, efficientnet_lite_pytorch) are looked for on
PYTHONPATH; pairs that need a missing one are skipped and counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from support.one_network.measuring import LIMIT, measure, true_copy_error  # noqa: E402
from support.one_network.pair import Pair  # noqa: E402
from support.one_network.pairs import all_pairs  # noqa: E402


def chosen_pairs(only: list[str], exactly: list[str]) -> list[Pair]:
    found = [pair for pair in all_pairs() if not only or any(part in pair.name for part in only)]
    return [pair for pair in found if not exactly or pair.name in exactly]


def one(pair: Pair, given: argparse.Namespace) -> dict[str, Any]:
    """What is measured of a pair; an exception of ours or of netgraft's is a result as well."""
    try:
        if given.truth:
            error, alive = true_copy_error(pair, lively=not given.plain)
            return {"error": error, "seconds": 0.0, "recipe": "truth", "why": f"outputs vary by {alive:.2g}"}
        with tempfile.TemporaryDirectory() as folder:
            return measure(pair, Path(folder), lively=not given.plain, recipe=given.recipe)
    except Exception as failure:  # the table goes on
        why = f"{type(failure).__name__}: {failure}".splitlines()[0][:160]
        return {"error": float("inf"), "seconds": float("nan"), "recipe": "-", "why": why}


def run(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure each pair, print a line for it, and keep the file up to date; what it holds already is not repeated."""
    found = json.loads(given.out.read_text()) if given.out and given.out.exists() else {}
    for pair in chosen_pairs(given.only, given.exactly):
        if pair.missing:
            found[pair.name] = {"skipped": f"needs {', '.join(pair.missing)}"}
        elif "error" not in found.get(pair.name, {}):
            found[pair.name] = one(pair, given)
        result = found[pair.name]
        if "skipped" in result:
            print(f"{'skipped':>9} {'':>7} {'':12} {pair.name}  {result['skipped']}", flush=True)
        else:
            seconds = f"{result['seconds']:6.1f}s"
            print(f"{result['error']:9.1e} {seconds} {result['recipe']:12} {pair.name}  {result['why']}", flush=True)
        if given.out:
            given.out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def summary(found: dict[str, dict[str, Any]]) -> str:
    measured = [each for each in found.values() if "error" in each]
    right = sum(each["error"] <= LIMIT for each in measured)
    slow = sum(each["seconds"] > 30 for each in measured)
    skipped = f"; {len(found) - len(measured)} skipped" if len(found) > len(measured) else ""
    return f"{right} of {len(measured)} pairs within {LIMIT:g}; {slow} took more than 30 s{skipped}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="of a pair's name; repeatable")
    parser.add_argument("--exactly", action="append", default=[], metavar="NAME", help="of a pair; repeatable")
    parser.add_argument("--recipe", help="another than the default")
    parser.add_argument("--plain", action="store_true", help="weights as initialised")
    parser.add_argument("--truth", action="store_true", help="copy as the pair says instead of transferring")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the same as JSON; a stopped run goes on")
    given = parser.parse_args()
    if given.list:
        for pair in chosen_pairs(given.only, given.exactly):
            missing = f"  (needs {', '.join(pair.missing)})" if pair.missing else ""
            print(f"{pair.name}: {pair.source} -> {pair.target} {pair.size}{missing}")
        return 0
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = run(given)
    print(summary(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
