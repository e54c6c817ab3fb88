"""CPU time of the commands that must be quick, beside Python and typer: ``python tests/benchmarks/startup.py``.

Each command runs in a process of its own, several times; the median of user and system time counts. Exit code 1 if one
takes more than the 0.35 seconds that are allowed.
"""

import os
import statistics
import subprocess
import sys

LIMIT = 0.35  # seconds of CPU
RUNS = 7
BASELINES = {"python -c pass": ["-c", "pass"], "python -c 'import typer'": ["-c", "import typer"]}
COMMANDS = {
    f"netgraft {command}".strip(): ["-m", "netgraft", *command.split()]
    for command in ("", "--help", "--version", "transfer --help", "recipes", "matchers", "models", "trasnfer")
}


def cpu_seconds(arguments: list[str]) -> float:
    """User and system time of one Python process."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    times = {
        name: statistics.median(cpu_seconds(arguments) for _ in range(RUNS))
        for name, arguments in (BASELINES | COMMANDS).items()
    }
    python, typer = (times[name] for name in BASELINES)
    print(f"{'':26}{'CPU s':>7}{'x python':>10}{'x typer':>9}")
    for name, seconds in times.items():
        print(f"{name:26}{seconds:7.3f}{seconds / python:10.1f}{seconds / typer:9.1f}")
    slow = [name for name in COMMANDS if name in times and times[name] > LIMIT]
    print(f"over {LIMIT} s: {', '.join(slow)}" if slow else f"none over {LIMIT} s")
    return bool(slow)


if __name__ == "__main__":
    sys.exit(main())
