"""A run that is held at its rate, and branches that end it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.helpers import real_images
from support.small_training import CONFIG, SETTINGS, position

from pxfast.data import datasets
from pxfast.pixelcnn.files import load_model, read_metadata
from pxfast.pixelcnn.training import Trainer, branch_settings, read_settings, train
from pxfast.training.processes import Processes
from pxfast.training.run import checkpoint_path

HELD = dataclasses.replace(SETTINGS, epochs=100.0, schedule="wsd", decay_share=0.1)
IMAGES = real_images(1, (8, 8), 64)  # four steps an epoch


@pytest.fixture
def held(tmp_path) -> Path:
    """The OUT of a held run of 4 steps, of which there is the checkpoint."""
    trainer = Trainer(CONFIG, HELD, IMAGES)
    trainer.initialise()
    for _ in range(4):
        trainer.train_step()
    out = tmp_path / "held.safetensors"
    trainer.save(checkpoint_path(out))
    return out


def test_a_branch_goes_on_with_falling_rates_and_leaves_the_held_run(held, tmp_path, one_thread):
    config, settings = branch_settings(checkpoint_path(held), epochs=1)
    assert config == CONFIG
    assert settings == dataclasses.replace(HELD, epochs=2.0, decay_share=0.5)
    before, out = checkpoint_path(held).read_bytes(), tmp_path / "ended.safetensors"
    ended = train(config, IMAGES, out, settings=settings, branch=held, progress=False)
    assert checkpoint_path(held).read_bytes() == before
    assert position(checkpoint_path(out)) == 8
    assert read_metadata(out)[1]["steps"] == 8
    assert load_model(out).config == CONFIG
    twin = Trainer(CONFIG, HELD, IMAGES)
    twin.restore(checkpoint_path(held))
    twin.settings = settings
    factors = []
    while twin.step < 8:
        factors.append(twin.rate_factor())
        twin.train_step()
    assert factors == pytest.approx([1 - i / 4 for i in range(4)])
    best = twin.best()[0]
    best.round_as_stored(torch.bfloat16)
    for ours, theirs in zip(ended.parameters(), best.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    twin = Trainer(CONFIG, HELD, IMAGES)
    twin.restore(checkpoint_path(held))
    assert twin.rate_factor() == 1.0


def go_on(held: Path, steps: int, seconds: float | None = None) -> None:
    """Let the held run take some steps, as another process does, and keep its checkpoint."""
    trainer = Trainer(CONFIG, HELD, IMAGES)
    trainer.restore(checkpoint_path(held))
    for _ in range(steps):
        trainer.train_step()
    trainer.seconds = trainer.seconds if seconds is None else seconds
    trainer.save(checkpoint_path(held))


@pytest.mark.parametrize("length", [{"epochs": 1.0}, {"budget": 10.0}])
def test_a_branch_of_a_run_that_went_on_falls_from_there_for_as_long(held, tmp_path, monkeypatch, length):
    """Its settings are from one checkpoint and its weights from a later one: the data were read in between."""
    go_on(held, 0, seconds=30.0)
    _, settings = branch_settings(checkpoint_path(held), **length)
    go_on(held, 4, seconds=60.0)
    factors, step, count_step = [], Trainer.train_step, Trainer.count_step
    monkeypatch.setattr(Trainer, "train_step", lambda run: factors.append(run.rate_factor()) or step(run))
    monkeypatch.setattr(Trainer, "count_step", lambda run, seconds: count_step(run, 2.5))
    out = tmp_path / "ended.safetensors"
    train(CONFIG, IMAGES, out, settings=settings, branch=held, progress=False)
    assert factors == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert position(checkpoint_path(out)) == 12
    ended = read_settings(checkpoint_path(out))[1]
    assert (ended.epochs, ended.budget) == ((3.0, None) if "epochs" in length else (HELD.epochs, 70.0))


def test_a_branch_of_a_run_that_falls_by_now_is_refused(held, tmp_path):
    _, settings = branch_settings(checkpoint_path(held), epochs=1)
    trainer = Trainer(CONFIG, HELD, IMAGES)
    trainer.restore(checkpoint_path(held))
    trainer.step = 380
    trainer.save(checkpoint_path(held))
    with pytest.raises(ValueError, match="its rate is falling already"):
        train(CONFIG, IMAGES, tmp_path / "ended.safetensors", settings=settings, branch=held, progress=False)
    none = dataclasses.replace(settings, decay_share=0.0)
    with pytest.raises(ValueError, match=r"settings of a branch, whose rates fall, got decay_share=0\.0"):
        train(CONFIG, IMAGES, tmp_path / "ended.safetensors", settings=none, branch=held, progress=False)


def test_processes_have_the_same_checkpoint_of_a_run_that_goes_on(held):
    """This one, the second, reads it before the first one does, and reads it again."""

    class Second(Processes):
        def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
            if position(checkpoint_path(held)) == 4:
                go_on(held, 4)
            return 8.0, stop

    trainer = Trainer(CONFIG, HELD, IMAGES, Second())
    trainer.restore(checkpoint_path(held))
    assert trainer.step == 8


def test_a_branch_may_last_some_seconds(held):
    path = checkpoint_path(held)
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {**metadata, "position": '{"step": 8, "seconds": 30.0}'})
    assert branch_settings(path, budget=10.0)[1] == dataclasses.replace(HELD, budget=40.0, decay_share=0.25)


@pytest.mark.parametrize("way", ["above", "link", "relative"])
def test_a_branch_is_no_other_way_to_the_held_run(held, tmp_path, monkeypatch, way):
    """Its files would take the place of that run's."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    out = {"above": tmp_path / "folder" / ".." / held.name, "link": tmp_path / "link" / held.name}.get(way, held.name)
    before = checkpoint_path(held).read_bytes()
    _, settings = branch_settings(checkpoint_path(held), epochs=1)
    with pytest.raises(ValueError, match="expected a branch with files of its own"):
        train(CONFIG, IMAGES, out, settings=settings, branch=held, force=True, progress=False)
    assert checkpoint_path(held).read_bytes() == before


def test_what_is_no_branch_is_told(held, tmp_path):
    path, out = checkpoint_path(held), tmp_path / "other.safetensors"
    with pytest.raises(ValueError, match="a branch needs a budget or epochs, one of them"):
        branch_settings(path)
    with pytest.raises(ValueError, match="epochs must be a number"):
        branch_settings(path, epochs=0.0)
    with pytest.raises(FileNotFoundError):
        branch_settings(checkpoint_path(out), epochs=1)
    _, settings = branch_settings(path, epochs=1)
    with pytest.raises(ValueError, match="expected a branch with files of its own"):
        train(CONFIG, IMAGES, held, settings=settings, branch=held, force=True)
    with pytest.raises(ValueError, match="a start or a branch of another run, got both"):
        train(CONFIG, IMAGES, out, settings=settings, branch=held, start=Trainer(CONFIG, HELD, IMAGES).model)
    with pytest.raises(ValueError, match=r"learning_rate: 0\.002 then, 0\.1 now"):
        train(CONFIG, IMAGES, out, settings=dataclasses.replace(settings, learning_rate=0.1), branch=held)
    for changes, message in (({}, "got cosine"), ({"schedule": "wsd", "epochs": 2.0}, "its rate is falling already")):
        other = Trainer(CONFIG, dataclasses.replace(SETTINGS, **changes), IMAGES)
        other.step = 7
        other.save(checkpoint_path(out))
        with pytest.raises(ValueError, match=message):
            branch_settings(checkpoint_path(out), epochs=1)


def test_the_command_ends_a_held_run_and_resumes_the_branch(held, run_here, refused, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load_dataset", lambda name, root, train: (IMAGES, None))
    out = tmp_path / "ended.safetensors"
    words = ["train", "fashion-mnist", "--root", "-", "--device", "cpu", "--quiet", "--out", out, "--branch", held]
    assert "one of them: how long its decay takes" in refused(*words)
    assert "not those of a --preset" in refused(*words, "--preset", "small", "--epochs", 1)
    assert "it has no --decay-share" in refused(*words, "--epochs", 1, "--decay-share", 0.1)
    run_here(*words, "--epochs", 1)
    assert read_settings(checkpoint_path(out))[1].epochs == 2.0
    run_here(*words, "--epochs", 1, "--resume")
    assert read_settings(checkpoint_path(out))[1].epochs == 2.0
    assert read_metadata(out)[1]["steps"] == 8
