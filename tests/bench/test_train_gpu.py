"""bench/scripts/train_gpu.sh: pieces that end in time, and resume from each other."""

import os
import subprocess
import sys

import pytest
from support.helpers import SOURCE

pytestmark = pytest.mark.process

SCRIPT = SOURCE / "bench" / "scripts" / "train_gpu.sh"

# In place of pxfast: notes its arguments, is over at its third call, and keeps a checkpoint when interrupted.
TRAINING = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[0]).parent
with open(folder / "calls", "a") as file:
    print(*sys.argv[1:], file=file)
if len((folder / "calls").read_text().splitlines()) == 3:
    sys.exit()
def interrupted(number, frame):
    (folder / "m.1.checkpoint.safetensors").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, interrupted)
if "--fail" in sys.argv:
    sys.exit(2)
time.sleep(100)
"""


@pytest.fixture
def script(tmp_path):
    training = tmp_path / "training.py"
    training.write_text(TRAINING)

    def script(*arguments: str, code: int) -> list[str]:
        environment = {**os.environ, "TRAIN": f"{sys.executable} -S {training}", "PIECE_SECONDS": "2"}
        done = subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == code, done.stderr
        calls = tmp_path / "calls"
        return calls.read_text().splitlines() if calls.exists() else done.stderr.splitlines()

    return script


def test_pieces_resume_from_each_other_until_the_end(script, tmp_path):
    out = f"{tmp_path}/m.1.safetensors"
    first = f"train cifar10 --out {out} --device cuda --budget 1h"
    assert script("cifar10", out, "--budget", "1h", code=75) == [first]
    later = first.replace(" --budget", " --resume --budget")
    assert script("cifar10", out, "5", "--budget", "1h", code=0) == [first, later, later]


def test_a_failure_is_not_repeated(script, tmp_path):
    assert len(script("cifar10", f"{tmp_path}/m.safetensors", "5", "--fail", code=2)) == 1


def test_without_arguments_it_says_how_to_use_it(script):
    lines = script(code=2)
    assert any(line.startswith("Usage: bench/scripts/train_gpu.sh DATASET OUT [PIECES]") for line in lines)
    assert not any(line.startswith(("#", "set ")) for line in lines)
