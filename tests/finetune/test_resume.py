"""A training that is killed or interrupted goes on, in processes of their own."""

import re
import signal
import subprocess
import sys
import time

import pytest
from support.runs import settings, train, with_source, write_nets

from netgraft.errors import CorruptFile, UsageError

COMMAND = [sys.executable, "-m", "netgraft", "finetune"]


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def command(out, *more):
    """120 steps in 6 epochs, states every third step."""
    given = "./net.py --init init.safetensors --data netgraft:digits --samples-per-class 32 -b 16 --epochs 6 --lr 0.05"
    return [*COMMAND, *given.split(), "--out", out, "--device", "cpu", "--recovery-interval", "3", *more]


def start(folder, arguments):
    return subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(folder, arguments):
    process = start(folder, arguments)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


def wait_for(file, process):
    deadline = time.monotonic() + 120
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def files(folder, out):
    return [(folder / out / f"{which}.safetensors").read_bytes() for which in ("best", "last")]


def test_killed_and_resumed_equals_uninterrupted(folder):
    """SIGKILL at whatever step it is; the resumed run ends in the same bytes."""
    finish(folder, command("whole"))
    killed = start(folder, command("killed"))
    wait_for(folder / "killed" / "state.pt", killed)
    time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(60) == -signal.SIGKILL
    assert not files_equal(folder)
    killed.communicate()
    finish(folder, command("killed", "--resume", "auto"))
    assert files(folder, "whole") == files(folder, "killed")
    left = {path.name for path in (folder / "killed").iterdir() if path.name != "tensorboard"}
    assert {name for name in left if not name.startswith(".netgraft-")} == {
        "config.json",
        "metrics.jsonl",
        "metrics.csv",
        "best.safetensors",
        "last.safetensors",
        "state.pt",
    }


def files_equal(folder):
    last = [folder / out / "last.safetensors" for out in ("whole", "killed")]
    return last[1].exists() and last[0].read_bytes() == last[1].read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_saves_and_says_how_to_go_on(folder, number, code):
    process = start(folder, command("run", "--epochs", "200"))
    wait_for(folder / "run" / "state.pt", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert re.search(r"Saved\. Go on with: netgraft finetune -c run/config\.json --resume auto", errors)
    assert "Traceback" not in errors


def test_state_and_settings_are_checked(folder):
    chosen = settings(folder, epochs=1)
    train(chosen)
    with pytest.raises(UsageError, match="settings that it began with") as caught:
        train(settings(folder, epochs=1, lr=0.1), resume=True)
    assert "--lr: 0.05 then, 0.1 now" in caught.value.where
    state = folder / "run" / "state.pt"
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptFile, match="state"):
        train(chosen, resume=True)


def test_nothing_to_resume_begins(folder):
    result, _ = train(settings(folder, epochs=1), resume=True)
    assert not result.resumed
    again, _ = train(settings(folder, epochs=1), resume=True)
    assert again.resumed
    assert again.history == result.history


def test_other_order_of_workers_changes_nothing(folder):
    """Augmented images read by two processes are the same as those read by none."""
    found = []
    for workers in (0, 2):
        chosen = with_source(folder, aug=True, workers=workers, out=str(folder / f"run{workers}"), epochs=1)
        train(chosen)
        found.append(files(folder, f"run{workers}"))
    assert found[0] == found[1]
