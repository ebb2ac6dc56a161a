"""A training's files belong to one run at a time, and what is not its own it does not replace."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.helpers import environment, real_images
from support.small_training import CONFIG, SETTINGS

from pxfast.adp import training as adp_training
from pxfast.adp.score_network import ScoreNetwork, ScoreNetworkConfig
from pxfast.adp.training import ScoreSettings, record_quality, train_score_network
from pxfast.pixelcnn.network import PixelCNN
from pxfast.pixelcnn.training import Trainer, record_bits_per_dim, train
from pxfast.pixelcnn.training import loop as training_loop
from pxfast.training import checkpoints
from pxfast.training.log import TrainingLog, log_path
from pxfast.training.outputs import run_outputs
from pxfast.training.provenance import training_parts
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


@pytest.mark.parametrize("sharded", [False, True])
def test_a_forced_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path, monkeypatch, sharded):
    """The run before, of the same settings, does not come back; its model stays till there is a new one."""
    if sharded:
        monkeypatch.setattr(checkpoints, "SHARD_BYTES", 30_000)
        monkeypatch.setattr(checkpoints, "SINGLE_FILE_BYTES", 30_000)
    out, step, write = tmp_path / "m.safetensors", Trainer.train_step, TrainingLog.write
    short_run(out)
    model, old = out.read_bytes(), {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(old) == 3 or sharded

    def killed(trainer):
        if trainer.step == 0 and killed.early:
            raise KeyboardInterrupt
        return step(trainer)

    def logged(log, step, *arguments, **options):
        write(log, step, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train_step", killed)
    monkeypatch.setattr(TrainingLog, "write", logged)
    killed.early = True
    with pytest.raises(KeyboardInterrupt):
        short_run(out, force=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old, "before the first line nothing is replaced"
    killed.early = False
    with pytest.raises(KeyboardInterrupt):
        short_run(out, force=True)
    assert out.read_bytes() == model
    assert {path.name for path in tmp_path.iterdir()} == {out.name, log_path(out).name}
    monkeypatch.setattr(TrainingLog, "write", write)
    with pytest.raises(FileExistsError, match=r"exists, but not .*checkpoint.*--force"):
        short_run(out, resume=True)
    steps = []
    monkeypatch.setattr(Trainer, "train_step", lambda trainer: steps.append(trainer.step) or step(trainer))
    short_run(out, resume=True, force=True)
    assert steps == [0, 1, 2, 3]


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
def test_two_runs_do_not_share_a_checkpoint(tmp_path):
    command = [sys.executable, "-c", OTHER, str(tmp_path / "m.safetensors")]
    with run_outputs(tmp_path / "m.safetensors", resume=False, force=False):
        said = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout
        assert said.startswith("another process is writing ")
    assert subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout == "training\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["lr-0.1", "m", "m.SAFETENSORS", ".safetensors", "m.checkpoint.safetensors"])
def test_names_that_would_share_a_checkpoint_or_be_one_are_refused(tmp_path, name):
    words = "another name than NAME" if "checkpoint" in name else "must have the suffix .safetensors"
    with pytest.raises(ValueError, match=words):
        short_run(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


HISTORY = [{"training": {"seed": 7}, "steps": 3, "seconds": 1}]  # of the weights that a run starts from


@pytest.fixture(params=["train", "train-adp"])
def started(request, tmp_path):
    """A training's OUT, and what runs it from another network's weights; a resumed one is not told of the runs of that.

    Its keywords are those of the training.
    """
    images, out = real_images(1, (8, 8), 64), tmp_path / "m.safetensors"
    if request.param == "train":
        call, config, settings = train, CONFIG, ONE
        start = PixelCNN(CONFIG)
        start.initialise(images)
    else:
        call, config = train_score_network, ScoreNetworkConfig((8, 8), 1, 4)
        settings, start = ScoreSettings(batch_size=16, epochs=1), ScoreNetwork(config)
    return out, lambda out=out, **options: call(config, images, out, settings=settings, start=start,
                                                **{"progress": False, **options})  # fmt: skip


def parts_of(out) -> list[dict]:
    with safe_open(out, framework="pt") as file:
        return training_parts(json.loads(file.metadata()["notes"]))


def test_what_is_measured_is_not_trained_anew_meanwhile(started, request, monkeypatch):
    """Or the new run's file would be noted with the number of the one before."""
    out, run = started
    run()
    before, refused = out.read_bytes(), []

    def measuring(function):
        def measured(*arguments, **options):
            with pytest.raises(BlockingIOError, match="another process is writing"):
                run(force=True)
            refused.append(out.read_bytes() == before)
            return function(*arguments, **options)

        return measured

    images = real_images(1, (8, 8), 4)
    monkeypatch.setattr(training_loop, "mean_bits_per_dim", measuring(training_loop.mean_bits_per_dim))
    monkeypatch.setattr(adp_training, "denoising_quality", measuring(adp_training.denoising_quality))
    if request.node.callspec.params["started"] == "train":
        record_bits_per_dim(out, images)
    else:
        record_quality(out, images, (0.1,))
    assert refused == [True]
    assert parts_of(out)
    run(force=True)


def test_a_checkpoint_knows_the_runs_before_its_own(started):
    out, run = started
    run(earlier=HISTORY)
    steps = [3, 4]
    assert [part["steps"] for part in parts_of(out)] == steps
    out.unlink()  # as where the run was killed between its checkpoint and its model
    run(resume=True, earlier=[{"steps": 9}])  # of a --start that is not used
    assert [part["steps"] for part in parts_of(out)] == steps
    other = out.with_name("other.safetensors")
    run(other, earlier=[{"steps": 9}])
    other.rename(out)
    run(resume=True, force=True)
    assert [part["steps"] for part in parts_of(out)] == steps
    out.write_bytes(b"no model")
    with pytest.raises(FileExistsError, match="--force"):
        run(resume=True)
    run(resume=True, force=True)
    assert [part["steps"] for part in parts_of(out)] == steps


def test_an_older_checkpoint_has_the_runs_before_its_own_from_their_model(started):
    out, run = started
    run(earlier=HISTORY)
    checkpoint = checkpoint_path(out)
    with safe_open(checkpoint, framework="pt") as file:
        older = {name: value for name, value in file.metadata().items() if name != "earlier"}
    save_file(load_file(checkpoint), checkpoint, older)
    before = checkpoint.read_bytes()
    run(resume=True)
    assert [part["steps"] for part in parts_of(out)] == [3, 4]
    checkpoint.write_bytes(before)
    out.write_bytes(b"no model")
    run(resume=True, force=True)
    assert [part["steps"] for part in parts_of(out)] == [4]
