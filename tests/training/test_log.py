"""The log of a training: whole lines of JSON, in every training, continued without a gap or a repeat."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.helpers import environment, real_images, run_python
from support.small_training import CONFIG, SETTINGS, position
from support.small_training import run as run_small

from pxfast.adp.score_network import ScoreNetworkConfig
from pxfast.adp.training import ScoreSettings, train_score_network
from pxfast.classifiers import ClassifierSettings, ResNetConfig
from pxfast.classifiers import training as classifier_training
from pxfast.pixelcnn.training import Trainer, train
from pxfast.training.log import TrainingLog, events_path, log_path
from pxfast.training.run import checkpoint_path

LOSSES = {
    "train": {"train_bits_per_dim", "learning_rate"},
    "train-classifier": {"train_loss", "train_accuracy", "learning_rate"},
    "train-adp": {"train_loss", "learning_rate"},
}
ALWAYS = {"step", "seconds", "images_per_second", "checkpoint"}


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in log_path(out).read_text().splitlines()]


def start(kind: str, out: Path, monkeypatch, **options) -> None:
    """Train for a few steps of four images each, with a checkpoint behind each of them."""
    images = real_images(1, (8, 8), 16)
    common = {"progress": False, "checkpoint_interval": 0.0, **options}
    how = {"batch_size": 4, "epochs": 1, "precision": "fp32"}
    if kind == "train":
        settings = SETTINGS.__class__(**how)
        train(CONFIG, images, out, settings=settings, validation=images[:3], **common)
    elif kind == "train-adp":
        train_score_network(ScoreNetworkConfig((8, 8), 1, 2), images, out, settings=ScoreSettings(**how), **common)
    else:
        labels = (images.float().mean((1, 2, 3)) > 60).long()
        monkeypatch.setattr(classifier_training, "load_dataset", lambda name, root, train: (images, labels))
        config = ResNetConfig((8, 8), 1, (4, 6, 8), units=1, classes=2)
        monkeypatch.setattr(classifier_training, "architecture_for", lambda arch, dataset: config)
        settings = ClassifierSettings(**how)
        classifier_training.train_classifier("fashion-mnist", "resnet62", "", out, settings=settings, **common)


def test_a_disk_without_any_space_left_is_named(tmp_path):
    """A write of which nothing is taken raises by itself, without a name."""
    log_path(tmp_path / "m").symlink_to("/dev/full")
    log = TrainingLog(tmp_path / "m", own=False, force=True)
    with pytest.raises(OSError, match="No space left") as raised:
        log.write(1, {"train_loss": 2.0})
    log.close()
    assert raised.value.filename == str(log_path(tmp_path / "m"))


@pytest.mark.parametrize("kind", LOSSES)
def test_every_training_logs_every_measurement(kind, monkeypatch, tmp_path):
    out = tmp_path / "m.safetensors"
    start(kind, out, monkeypatch)
    lines = lines_of(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    expected = ALWAYS | LOSSES[kind] | ({"validation_bits_per_dim"} if kind == "train" else set())
    assert lines[0].keys() == expected - {"images_per_second"}, "the first step may compile"
    assert all(line.keys() == expected for line in lines[1:])
    assert lines[0]["seconds"] < lines[-1]["seconds"]
    assert all(line["images_per_second"] > 0 for line in lines[1:])
    assert not events_path(out).exists()


def test_a_line_has_the_mean_of_its_steps(monkeypatch, tmp_path):
    out, losses, step = tmp_path / "m.safetensors", [], Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda trainer: losses.append(step(trainer)) or losses[-1])
    start("train", out, monkeypatch, checkpoint_interval=1000.0)
    (line,) = lines_of(out)
    assert line["step"] == len(losses) == 4
    assert line["train_bits_per_dim"] == pytest.approx(sum(losses) / 4)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_rate_leaves_out_the_first_step_which_may_compile(resumed, monkeypatch, tmp_path):
    out, took, count_step = tmp_path / "m.safetensors", iter((100.0, 2.0, 2.0, 2.0)), Trainer.count_step
    settings = SETTINGS.__class__(batch_size=4, epochs=2, precision="fp32")
    if resumed:
        trainer = Trainer(CONFIG, settings, real_images(1, (8, 8), 16))
        trainer.step, trainer.seconds = 4, 7.0
        trainer.save(checkpoint_path(out))
    monkeypatch.setattr(Trainer, "count_step", lambda trainer, seconds: count_step(trainer, next(took, 2.0)))
    options = {"settings": settings, "resume": resumed, "checkpoint_interval": 1000.0, "progress": False}
    train(CONFIG, real_images(1, (8, 8), 16), out, **options)
    assert lines_of(out)[0]["images_per_second"] == 2.0


def test_a_run_whose_last_step_ends_an_interval_is_measured_and_kept_once_there(monkeypatch, tmp_path):
    saved, save = [], Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda trainer, path: saved.append(trainer.step) or save(trainer, path))
    start("train", tmp_path / "m.safetensors", monkeypatch)
    assert saved == [1, 2, 3, 4]


def test_muons_rate_is_logged(monkeypatch, tmp_path):
    out = tmp_path / "m.safetensors"
    settings = SETTINGS.__class__(batch_size=8, epochs=1, precision="fp32", optimiser="muon", warmup=0)
    train(CONFIG, real_images(1, (8, 8), 16), out, settings=settings, progress=False, checkpoint_interval=0.0)
    first = lines_of(out)[0]
    assert (first["learning_rate"], first["muon_learning_rate"]) == (2e-3, 0.05)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.whole] * (kind == "train-adp")) for kind in LOSSES]
)
def test_a_resumed_run_has_each_line_once(kind, monkeypatch, tmp_path):
    """Of steps that a killed run took after its last checkpoint, the lines go away with them."""
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    start(kind, whole, monkeypatch)
    write = TrainingLog.write

    def dying(log: TrainingLog, step: int, values: dict, **options) -> None:
        write(log, step, values, **options)
        if step == 3:  # before the checkpoint of this step
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            start(kind, parts, monkeypatch)
    assert [line["step"] for line in lines_of(parts)] == [1, 2, 3]
    assert position(checkpoint_path(parts)) == 2
    with log_path(parts).open("a") as file:
        file.write('{"step": 4, "seconds"')  # as after a power cut
    start(kind, parts, monkeypatch, resume=True)
    times = ("seconds", "images_per_second")
    timeless = [[{k: v for k, v in line.items() if k not in times} for line in lines_of(out)] for out in (whole, parts)]
    assert timeless[0] == timeless[1]
    start(kind, parts, monkeypatch, resume=True)
    assert len(lines_of(parts)) == 4, "a run that has ended adds nothing"


KILLED = """
import sys
from pathlib import Path
from support.small_training import run
run(Path(sys.argv[1]), 1000, 0.0)
"""


@pytest.mark.process
def test_kill_9_leaves_whole_lines(tmp_path):
    out = tmp_path / "m.safetensors"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(out)], env=environment())
    try:
        while not log_path(out).exists() or log_path(out).stat().st_size < 600:
            assert child.poll() is None
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    text = log_path(out).read_text()
    assert text.endswith("\n")
    steps = [json.loads(line)["step"] for line in text.splitlines()]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("options", [{}, {"resume": True}])
def test_the_log_of_a_run_without_a_checkpoint_is_replaced(options, tmp_path):
    """It was killed too early, before the checkpoint that its last line tells of, and begins anew."""
    out = tmp_path / "m.safetensors"
    log_path(out).write_text('{"step": 9, "train_loss": 1.5}\n{"step": 10, "checkpoint": false}\n{"step": 11, "tr')
    run_small(out, 0.5, 1000, **options)
    assert [line["step"] for line in lines_of(out)] == [2]


def test_the_log_of_a_finished_run_with_one_checkpoint_is_not_replaced(tmp_path):
    """Though its last line is the only one, as of a run that was killed before its first checkpoint."""
    out = tmp_path / "m.safetensors"
    run_small(out, 0.5, 1000)
    (line,) = lines_of(out)
    assert line["checkpoint"] is True
    before = log_path(out).read_bytes()
    for path in (out, checkpoint_path(out)):
        path.rename(tmp_path / f"moved-{path.name}")
    with pytest.raises(FileExistsError, match=r"m\.log\.jsonl exists already; pass --force"):
        run_small(out, 0.5, 1000)
    assert log_path(out).read_bytes() == before


@pytest.mark.parametrize("kind", LOSSES)
def test_a_line_says_that_its_checkpoint_is_there_when_it_is(kind, monkeypatch, tmp_path):
    """Also of a run that was killed just behind the checkpoint, once it is resumed."""
    out = tmp_path / "m.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "checkpoint_kept", lambda log: 1 / 0 if log.last_step == 2 else None)
        with pytest.raises(ZeroDivisionError):
            start(kind, out, monkeypatch)
    assert [line["checkpoint"] for line in lines_of(out)] == [False, False]
    assert position(checkpoint_path(out)) == 2
    start(kind, out, monkeypatch, resume=True)
    assert [line["checkpoint"] for line in lines_of(out)] == [False, True, True, True]


def test_what_is_there_is_not_replaced(tmp_path):
    out = tmp_path / "m.safetensors"
    log_path(out).write_text('{"step": 9, "train_loss": 1.5, "checkpoint": true}\n{"step": 10, "train_loss": 1.5}\n')
    with pytest.raises(FileExistsError, match=r"m\.log\.jsonl exists already; pass --force"):
        run_small(out, 0.5, 1000)
    assert [line["step"] for line in lines_of(out)] == [9, 10]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"step": 1, "checkpoint": 3, "loss": true}\n', 1),
        ("notes of mine\n", 1),
        ('{"step": 1}\n{"step": 1}\n', 2),
        ('{"step": 1}\n{"step": "2"}\n', 2),
        ('{"step": 1, "loss": [3]}\n', 1),
        ("x" * 70_000, 1),
    ],
)
def test_a_file_that_is_no_log_is_refused(text, line, tmp_path):
    out = tmp_path / "m.safetensors"
    log_path(out).write_text(text)
    with pytest.raises(ValueError, match=rf"m\.log\.jsonl: line {line} is no measurement of a training"):
        run_small(out, 0.5, 1000, resume=True)
    assert log_path(out).read_text() == text


def test_a_log_that_appears_during_a_run_is_not_replaced(tmp_path):
    log = TrainingLog(tmp_path / "m.safetensors", own=False, force=False)
    log.begin(0)
    log.path.write_text("precious")
    with pytest.raises(FileExistsError, match="appeared while this was running"):
        log.write(1, {"loss": 1.0})
    assert log.path.read_text() == "precious"


FULL = """
import sys
from pathlib import Path
from pxfast.training.log import TrainingLog
from support.helpers import limit_file_size
limit_file_size()
log = TrainingLog(Path(sys.argv[1]), own=False, force=False)
log.begin(0)
try:
    for step in range(1, 1000):
        log.write(step, {"loss " + 900 * "x": 1.0 / step})
except OSError as error:
    print(error.filename)
"""


@pytest.mark.process
def test_a_full_disk_is_told_and_leaves_whole_lines(tmp_path):
    out = tmp_path / "m.safetensors"
    assert run_python(FULL, str(out)).strip() == str(log_path(out))
    text = log_path(out).read_text()
    assert len(text) > 60_000
    assert text.endswith("\n")
    assert [json.loads(line)["step"] for line in text.splitlines()] == list(range(1, text.count("\n") + 1))


@pytest.mark.external
def test_tensorboard_shows_the_same(monkeypatch, tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    monkeypatch.setenv("PXFAST_TENSORBOARD", "1")
    out = tmp_path / "m.safetensors"

    def shown() -> dict[str, list[tuple[int, float]]]:
        events = accumulator.EventAccumulator(str(events_path(out)))
        events.Reload()
        tags = events.Tags()["scalars"]
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}

    def logged() -> dict[str, list[tuple[int, float]]]:
        lines = lines_of(out)
        tags = lines[1].keys() - {"step", "checkpoint"}
        return {
            tag: [(line["step"], pytest.approx(line[tag], rel=1e-5)) for line in lines if tag in line] for tag in tags
        }

    def interrupted(trainer: Trainer) -> float:
        if trainer.step == 3:
            raise KeyboardInterrupt
        return step(trainer)

    step = Trainer.train_step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            start("train", out, monkeypatch)
    assert shown() == logged()
    start("train", out, monkeypatch, resume=True)
    assert shown() == logged()
    assert len(lines_of(out)) == 4
    with pytest.raises(FileExistsError, match="exists already"):
        start("train", out, monkeypatch)
    start("train", out, monkeypatch, force=True)
    assert shown() == logged()


def test_without_tensorboard_there_is_the_log_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("PXFAST_TENSORBOARD", "1")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    start("train", tmp_path / "m.safetensors", monkeypatch)
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors", "m.checkpoint.safetensors", "m.log.jsonl"}


def test_a_tensorboard_that_does_not_work_stops_no_training(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("PXFAST_TENSORBOARD", "1")
    monkeypatch.setattr("pxfast.training.log.writes_events", lambda: True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    start("train", tmp_path / "m.safetensors", monkeypatch)
    assert "no files for TensorBoard, which can't be imported: " in capfd.readouterr().err
    assert len(lines_of(tmp_path / "m.safetensors")) == 4
