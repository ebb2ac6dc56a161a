"""A training's files belong to one run at a time, and what is not its own it does not replace."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.helpers import environment, real_images
from support.small_training import CONFIG, SETTINGS

from pxfast.pixelcnn.training import Trainer, train
from pxfast.training.log import log_path
from pxfast.training.outputs import run_outputs
from pxfast.training.run import checkpoint_path

ONE = dataclasses.replace(SETTINGS, epochs=1)


def short_run(out, **options) -> None:
    train(CONFIG, real_images(1, (8, 8), 64), out, settings=ONE, **{"progress": False, **options})


def test_a_run_without_a_checkpoint_begins_anew_and_says_so(tmp_path, capfd, one_thread):
    """As one does that was killed before its first checkpoint."""
    anew, whole = tmp_path / "anew.safetensors", tmp_path / "whole.safetensors"
    short_run(anew, resume=True, progress=True)
    assert f"there is no checkpoint {checkpoint_path(anew)}: the training begins anew\n" in capfd.readouterr().err
    short_run(whole)
    ours, theirs = load_file(anew), load_file(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    checkpoint_path(whole).unlink()
    before = whole.read_bytes()
    with pytest.raises(FileExistsError, match=r"exists, but not .*checkpoint.*--force"):
        short_run(whole, resume=True)
    assert whole.read_bytes() == before


@pytest.mark.parametrize("interval", [pytest.param(1000, marks=pytest.mark.whole), 0])
def test_a_model_that_appears_during_a_run_is_not_replaced(tmp_path, monkeypatch, interval):
    """Neither before the first checkpoint nor later, nor by a resumed run; when it has gone, the run goes on."""
    out, step = tmp_path / "m.safetensors", Trainer.train_step

    def meanwhile(trainer):
        if trainer.step == 2:
            out.unlink(missing_ok=True)
            out.write_bytes(b"precious")
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", meanwhile)
    with pytest.raises(FileExistsError, match="appeared while this was running"):
        short_run(out, checkpoint_interval=interval)
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match="its training was not the one of"):
        short_run(out, resume=True)
    assert out.read_bytes() == b"precious"
    out.unlink()
    short_run(out, resume=True)
    assert {path.name for path in tmp_path.iterdir()} == {out.name, checkpoint_path(out).name, log_path(out).name}


OTHER = """
import sys
from pxfast.training.outputs import run_outputs
try:
    with run_outputs(sys.argv[1], resume=False, force=True):
        print("training")
except BlockingIOError as error:
    print(error)
"""


@pytest.mark.process
@pytest.mark.parametrize("name", ["m.safetensors", "m.other"])
def test_two_runs_do_not_share_a_checkpoint(tmp_path, name):
    """Outputs that differ in their suffix alone have the same checkpoint."""
    command = [sys.executable, "-c", OTHER, str(tmp_path / name)]
    with run_outputs(tmp_path / "m.safetensors", resume=False, force=False):
        said = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout
        assert said.startswith("another process is writing ")
    assert subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout == "training\n"
    assert list(tmp_path.iterdir()) == []
