"""CPU time of ``inspect-chains`` beside that of the imports it cannot do without.

Each process starts afresh; the two sides of a pair alternate, so that both see the same state of the machine. Printed
are the medians and the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAIRS = {
    "resnet50": (["inspect-chains", "resnet50"], "import timm", 1.25),
    "examples/my_arch.py": (["inspect-chains", "./examples/my_arch.py"], "import torch", 1.3),
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def cpu_seconds(command: list[str]) -> float:
    """User and system time of one process, with its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(arguments: list[str], statement: str, rounds: int) -> tuple[float, float, float]:
    """Median seconds of netgraft and of the import, and the median ratio."""
    netgraft = [sys.executable, "-m", "netgraft", *arguments]
    imports = [sys.executable, "-c", statement]
    for command in (imports, netgraft):  # files into the page cache
        cpu_seconds(command)
    pairs = [(cpu_seconds(netgraft), cpu_seconds(imports)) for _ in range(rounds)]
    ours, theirs = zip(*pairs, strict=True)
    return statistics.median(ours), statistics.median(theirs), statistics.median(a / b for a, b in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    late = 0
    for name, (arguments, statement, limit) in PAIRS.items():
        ours, theirs, ratio = measure(arguments, statement, rounds)
        verdict = "ok" if ratio <= limit else "TOO SLOW"
        late += ratio > limit
        print(
            f"inspect-chains {name}: {ours:.2f} s, {statement}: {theirs:.2f} s, ratio {ratio:.2f} <= {limit}: {verdict}"
        )
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
