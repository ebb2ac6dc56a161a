"""A training that was killed or interrupted goes on as if nothing had been; what is there is not spoiled unasked."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.helpers import environment, real_images
from support.small_training import CONFIG, SETTINGS, position, run

from pxfast.pixelcnn.files import load_model
from pxfast.pixelcnn.training import Trainer, read_settings, train
from pxfast.training.run import checkpoint_path

# A training run in a process of its own: OUT, epochs, seconds between checkpoints.
RUN = """
import sys
from pathlib import Path
import torch
from support.small_training import run
torch.set_num_threads(1)
out, epochs, interval = sys.argv[1:]
run(Path(out), float(epochs), float(interval))
"""


def start_and_wait(out: Path, epochs: float, interval: float, *, steps: int) -> subprocess.Popen:
    """Start RUN and come back when its checkpoint has seen ``steps`` steps."""
    command = [sys.executable, "-c", RUN, str(out), str(epochs), str(interval)]
    process = subprocess.Popen(command, env=environment(OMP_NUM_THREADS="1"))
    deadline = time.monotonic() + 120
    while position(checkpoint_path(out)) < steps:
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.01)
    return process


@pytest.mark.process
def test_kill_and_resume_gives_the_weights_of_an_uninterrupted_run(tmp_path, one_thread):
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    process = start_and_wait(killed, 10, 0, steps=5)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 5 <= position(checkpoint_path(killed)) < 40, "killed too late to say anything"
    run(whole, 10, 1000)
    run(killed, 10, 1000, resume=True)
    assert position(checkpoint_path(killed)) == position(checkpoint_path(whole)) == 40
    for ours, theirs in ((checkpoint_path(killed), checkpoint_path(whole)), (killed, whole)):
        ours, theirs = load_file(ours), load_file(theirs)
        assert ours.keys() == theirs.keys()
        for name in theirs:  # model, averaged model and the optimiser's state, bit for bit
            assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize(
    ("head", "channels"),
    [
        ("logistic", 3),
        ("softmax", 1),
        pytest.param("logistic", 1, marks=pytest.mark.whole),
        pytest.param("softmax", 3, marks=pytest.mark.whole),
    ],
)
def test_a_restored_trainer_goes_on_bit_for_bit(tmp_path, one_thread, head, channels):
    config = dataclasses.replace(CONFIG, head=head, channels=channels)
    images = real_images(channels, (8, 8), 64)
    first, second = Trainer(config, SETTINGS, images), Trainer(config, SETTINGS, images)
    first.initialise()
    for _ in range(2):
        first.train_step()
    first.save(tmp_path / "checkpoint.safetensors")
    second.restore(tmp_path / "checkpoint.safetensors")
    for _ in range(2):
        assert first.train_step() == second.train_step()
    for (name, ours), theirs in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_restored_trainer_goes_on_bit_for_bit_with_muon(tmp_path, one_thread):
    settings = dataclasses.replace(SETTINGS, optimiser="muon", precision="bf16")
    images, path = real_images(1, (8, 8), 64), tmp_path / "checkpoint.safetensors"
    first, second = Trainer(CONFIG, settings, images), Trainer(CONFIG, settings, images)
    first.initialise()
    for _ in range(2):
        first.train_step()
    first.save(path)
    second.restore(path)
    for _ in range(2):
        assert first.train_step() == second.train_step()
    for (name, ours), theirs in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    kept = [name.rpartition(".")[2] for name in load_file(path) if name.startswith("optimiser.")]
    v = [name for name, _ in first.model.named_parameters() if name.endswith(".v") and not name.startswith("input_")]
    assert kept.count("momentum") == len(v)
    assert kept.count("exp_avg") == len(list(first.model.parameters())) - len(v)


def test_the_checkpoint_of_an_older_version_goes_on(tmp_path):
    images, path = real_images(1, (8, 8), 64), tmp_path / "checkpoint.safetensors"
    first, second = Trainer(CONFIG, SETTINGS, images), Trainer(CONFIG, SETTINGS, images)
    first.initialise()
    first.train_step()
    first.save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    settings = json.loads(metadata["settings"])
    newer = ("optimiser", "muon_learning_rate", "schedule", "decay", "decay_share", "cuda_graphs")
    for name in newer:  # which there were not then
        del settings[name]
    save_file(load_file(path), path, {**metadata, "settings": json.dumps(settings)})
    assert read_settings(path) == (CONFIG, SETTINGS)
    second.restore(path)
    assert first.train_step() == second.train_step()
    other = Trainer(CONFIG, dataclasses.replace(SETTINGS, optimiser="muon"), images)
    with pytest.raises(ValueError, match="optimiser: adam then, muon now"):
        other.restore(path)


@pytest.mark.process
def test_interrupt_keeps_everything_and_is_told(tmp_path):
    out = tmp_path / "model.safetensors"
    process = start_and_wait(out, 100_000, 0.2, steps=1)
    before = position(checkpoint_path(out))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) not in (0, -signal.SIGKILL), "100000 epochs were left"
    assert position(checkpoint_path(out)) >= before
    assert load_model(out).config.filters == CONFIG.filters
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


def test_resume_refuses_other_settings_by_name(finished):
    images, settings = real_images(1, (8, 8), 64), dataclasses.replace(SETTINGS, epochs=1)
    faster, wider = dataclasses.replace(settings, learning_rate=0.1), dataclasses.replace(CONFIG, filters=7)
    with pytest.raises(ValueError, match=r"learning_rate: 0\.002 then, 0\.1 now"):
        train(CONFIG, images, finished, settings=faster, resume=True)
    with pytest.raises(ValueError, match="filters: 6 then, 7 now"):
        train(wider, images, finished, settings=settings, resume=True)


def test_resume_refuses_what_is_no_checkpoint(finished):
    images, settings = real_images(1, (8, 8), 64), dataclasses.replace(SETTINGS, epochs=1)
    checkpoint = checkpoint_path(finished)
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated"):
        train(CONFIG, images, finished, settings=settings, resume=True)
    checkpoint.write_bytes(finished.read_bytes())  # a model is not a checkpoint
    with pytest.raises(ValueError, match="another kind"):
        train(CONFIG, images, finished, settings=settings, resume=True)


def test_nothing_is_overwritten_unasked(finished):
    images, settings = real_images(1, (8, 8), 64), dataclasses.replace(SETTINGS, epochs=1, seed=5)
    before = finished.read_bytes()
    with pytest.raises(FileExistsError, match=r"model\.safetensors exists already"):
        train(CONFIG, images, finished, settings=settings, progress=False)
    assert finished.read_bytes() == before
    train(CONFIG, images, finished, settings=settings, force=True, progress=False)
    assert finished.read_bytes() != before
    finished.unlink()
    with pytest.raises(FileExistsError, match=r"checkpoint\.safetensors exists already"):
        train(CONFIG, images, finished, settings=settings, progress=False)


def test_a_folder_that_is_missing_is_told_before_training(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train(CONFIG, real_images(1, (8, 8), 64), tmp_path / "nowhere" / "model.safetensors", settings=SETTINGS)


def test_resuming_on_other_images_is_refused(finished):
    images = real_images(1, (8, 8), 64)
    with pytest.raises(ValueError, match="checkpoint of a run on other training images"):
        Trainer(CONFIG, dataclasses.replace(SETTINGS, epochs=1), images.flip(0)).restore(checkpoint_path(finished))
