"""Two processes that wait for trainings: starting them takes longer than a small training does."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import safetensors.torch

WORKER = """
import json, os, sys, traceback
sys.path[:0] = {paths!r}
from support.runs import train, with_source
for line in sys.stdin:
    given = json.loads(line)
    try:
        train(with_source({folder!r}, **given), force=True)
    except BaseException:
        print(json.dumps(traceback.format_exc()), flush=True)
        os._exit(1)  # so that the other one does not wait for this
    print(json.dumps(""), flush=True)
"""

SAME = {"target_arg": {"drop": 0.0}, "epochs": 4, "samples_per_class": 10}
"""Settings with which two processes compute what one does: dropout is each process's own."""

LONGEST = 600
"""Seconds that a training may take."""


class Two:
    """A pair of gloo processes, as torchrun starts them. After a failure the next training gets a new pair."""

    def __init__(self, folder):
        self.folder, self.pair = folder, []

    def train(self, out, **given):
        """Train in ``folder/out``. An error of either process is an AssertionError here, and both are ended."""
        self.pair = self.pair or self._start()
        ending = threading.Timer(LONGEST, self._kill)
        ending.start()
        line = json.dumps({"out": f"{self.folder}/{out}", **given}) + "\n"
        for process in self.pair:
            process.stdin.write(line)
            process.stdin.flush()
        answers = [process.stdout.readline() for process in self.pair]
        ending.cancel()
        errors = [json.loads(answer) if answer else "it ended" for answer in answers]
        if any(errors):
            self.end()
        assert errors == ["", ""], "\n".join(errors)

    def end(self):
        self._kill()
        for process in self.pair:
            process.communicate()
        self.pair = []

    def _kill(self):
        for process in self.pair:
            process.kill()

    def _start(self):
        paths = [str(Path(__file__).parent.parent)]
        (self.folder / "worker.py").write_text(WORKER.format(paths=paths, folder=str(self.folder)))
        return start(self.folder, ["worker.py"], 2, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def weights(folder, out):
    return safetensors.torch.load_file(folder / out / "last.safetensors")


def distance(one, other):
    """The largest relative difference of a tensor, by its norm."""
    floats = [key for key in one if one[key].is_floating_point()]
    return max(float((one[key] - other[key]).norm() / one[key].norm().clamp(min=1e-12)) for key in floats)


def launch(folder, runs):
    """Train each of ``runs``, settings by the name of its folder, in two processes."""
    two = Two(folder)
    try:
        for out, given in runs.items():
            two.train(out, **given)
    finally:
        two.end()


def start(folder, command, world, **pipes):
    """Python's ``command`` in so many processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(world):
        more = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = os.environ | {name: str(value) for name, value in more.items()} | {"OMP_NUM_THREADS": "1"}
        whole = [sys.executable, "-W", "error", *command]
        started.append(subprocess.Popen(whole, cwd=folder, env=env, text=True, **pipes))
    return started
