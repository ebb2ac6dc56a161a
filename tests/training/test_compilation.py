"""Steps are compiled where that spares more than it takes, and a resumed run goes on as it began."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from support.helpers import real_images
from support.small_training import CONFIG, SETTINGS

from pxfast.adp.score_network import ScoreNetworkConfig
from pxfast.adp.training import ScoreSettings, train_score_network
from pxfast.base import durations, progress
from pxfast.base.durations import keep_time, last_time
from pxfast.pixelcnn.files import read_metadata
from pxfast.pixelcnn.training import Trainer, preset, read_settings, train
from pxfast.training import compilation, loop
from pxfast.training.compilation import compiling_key, settle_compilation, step_key
from pxfast.training.processes import Processes
from pxfast.training.run import checkpoint_path

OPEN = dataclasses.replace(SETTINGS, epochs=0.5, compile=None)
CPU = torch.device("cpu")
IMAGES = real_images(1, (8, 8), 64)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def compiled(monkeypatch) -> list:
    """What torch.compile was called with; here it compiles nothing."""
    found: list = []
    monkeypatch.setattr(torch, "compile", lambda function: found.append(function) or function)
    return found


def settled(settings, images: int = 50_000, **options):
    return settle_compilation(settings, CONFIG, images, Processes(), None, progress=False, **options)


@pytest.mark.parametrize(("budget", "expected"), [(60.0, False), (500.0, False), (600.0, True), (7200.0, True)])
def test_a_budget_must_be_worth_it(budget, expected):
    """300 s are spared by a step 2.3 times faster in a run of 531 s."""
    settings, why = settled(dataclasses.replace(OPEN, budget=budget))
    assert settings == dataclasses.replace(OPEN, budget=budget, compile=expected)
    assert why.startswith("compiled: " if expected else "not compiled: ")
    assert "compiling takes 05:00 as a rule, and spares " in why
    assert why.endswith(f"of a run of {durations.in_words(budget)}")


def test_so_must_epochs():
    assert not settled(dataclasses.replace(OPEN, epochs=0.1))[0].compile
    assert settled(dataclasses.replace(OPEN, epochs=10))[0].compile


def test_what_it_took_the_last_time_counts():
    settings = dataclasses.replace(OPEN, budget=120.0)
    assert not settled(settings)[0].compile
    keep_time(compiling_key(CONFIG, settings, CPU), 20.0)
    found, why = settled(settings)
    assert found.compile
    assert why == "compiled: compiling took 00:20 the last time, and spares 01:07 of a run of 02:00"
    assert not settled(dataclasses.replace(settings, batch_size=8))[0].compile, "it is of another batch"
    for compile, seconds in ((False, 1.0), (True, 0.9)):
        keep_time(step_key(CONFIG, dataclasses.replace(settings, compile=compile), CPU), seconds)
    assert not settled(settings)[0].compile, "a step 1.11 times faster spares 12 s"
    keep_time(step_key(CONFIG, dataclasses.replace(settings, compile=True), CPU), 2.0)
    assert "spares 00:00" in settled(settings)[1]


@pytest.mark.parametrize("compile", [True, False])
def test_what_was_asked_for_is_done(compile):
    settings = dataclasses.replace(OPEN, budget=1.0, compile=compile)
    assert settled(settings) == (settings, None)


def test_obstacles(monkeypatch):
    settings = dataclasses.replace(OPEN, budget=7200.0)
    graphs = dataclasses.replace(settings, cuda_graphs=True)
    assert settled(graphs) == (
        dataclasses.replace(graphs, compile=False),
        "not compiled: the steps are recorded as CUDA graphs",
    )
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert settled(settings)[1] == "not compiled: there is no C++ compiler"


def test_the_preset_for_a_cpu_leaves_it_open():
    assert preset("small", "cifar10")[1].compile is None
    assert preset("full", "cifar10")[1].compile is False


def test_a_short_run_is_not_compiled_and_its_notes_say_why(compiled, tmp_path, capfd):
    out = tmp_path / "m.safetensors"
    train(CONFIG, IMAGES, out, settings=OPEN)
    assert compiled == []
    notes = read_metadata(out)[1]
    assert notes["training"]["compile"] is False
    assert notes["compilation"].startswith("not compiled: compiling takes 05:00 as a rule, and spares 00:0")
    assert notes["compilation"] in capfd.readouterr().err
    train(CONFIG, IMAGES, out, settings=dataclasses.replace(OPEN, compile=False), force=True, progress=False)
    assert "compilation" not in read_metadata(out)[1]


def test_a_resumed_run_goes_on_as_it_began(compiled, monkeypatch, tmp_path):
    """Whatever is known by then: or else its result would have other bits."""
    out, step = tmp_path / "m.safetensors", Trainer.train_step
    settings = dataclasses.replace(OPEN, epochs=1.0)
    keep_time(compiling_key(CONFIG, settings, CPU), 0.001)

    def interrupted(trainer):
        if trainer.step == 2:
            raise KeyboardInterrupt
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, IMAGES, out, settings=settings, checkpoint_interval=0.0, progress=False)
    assert len(compiled) == 1
    why = read_metadata(out)[1]["compilation"]
    assert why.startswith("compiled: compiling took 00:00 the last time")
    assert read_settings(checkpoint_path(out))[1].compile is True
    keep_time(compiling_key(CONFIG, settings, CPU), 3000.0)
    train(CONFIG, IMAGES, out, settings=settings, resume=True, progress=False)
    assert len(compiled) == 2
    assert read_metadata(out)[1]["compilation"] == why
    assert read_metadata(out)[1]["training"]["compile"] is True


def test_other_trainings_decide_by_the_same_door(compiled, tmp_path):
    settings = ScoreSettings(batch_size=4, epochs=0.5, precision="fp32", compile=None)
    config = ScoreNetworkConfig((8, 8), 1, 2)
    train_score_network(config, IMAGES, tmp_path / "a.safetensors", settings=settings, progress=False)
    assert compiled == []
    keep_time(compiling_key(config, settings, CPU), 0.001)
    train_score_network(config, IMAGES, tmp_path / "b.safetensors", settings=settings, progress=False)
    assert len(compiled) == 1


def test_a_run_tells_its_phases(compiled, monkeypatch, run_here, tmp_path):
    """On standard error, what is done and for how long it took the last time; what is kept is kept by the network."""
    for module, name, value in (
        *((progress, "PATIENCE", 0.0), (durations, "SHORT", 0.0), (loop, "LONG_ENOUGH", 0.0)),
        (compilation, "COMPILING", {"cpu": 0.0}),
    ):
        monkeypatch.setattr(module, name, value)
    from pxfast.data import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda name, root, train: (IMAGES, None))
    monkeypatch.setitem(datasets.DATASETS, "fashion-mnist", (1, 8, 8))
    words = ["train", "fashion-mnist", "--root", "-", "--preset", "small", "--filters", 2, "--resnets", 1]
    words += ["--batch-size", 8, "--device", "cpu", "--out", tmp_path / "m.safetensors"]
    _, err = run_here(*words, "--epochs", 1)
    assert "compiled: compiling takes 00:00 as a rule, and spares 00:02 of a run of 00:04" in err
    phases = ["reading fashion-mnist", "initialising the weights by 64 images", "compiling the steps"]
    for title in phases:
        assert re.search(rf"^{title}: took \d\d:\d\d$", err, flags=re.MULTILINE), title
    assert "measuring bits/dim on 64 test images\n" in err
    assert [err.index(title) for title in phases] == sorted(err.index(title) for title in phases)
    config, settings = read_settings(checkpoint_path(tmp_path / "m.safetensors"))
    assert last_time(compiling_key(config, settings, CPU)) > 0
    assert last_time(step_key(config, settings, CPU)) > 0
    _, err = run_here(*words, "--budget", "0.01s", "--compile", "--force")
    assert "measuring bits/dim on 64 test images, which the budget does not count\n" in err
    assert re.search(r"^compiling the steps \(\d\d:\d\d last time\)", err, flags=re.MULTILINE)
    _, err = run_here(*words, "--budget", "0.01s", "--force", "--quiet")
    assert err == ""


def test_the_keys_name_the_machine_and_the_sizes(tmp_path: Path):
    key = compiling_key(CONFIG, SETTINGS, CPU)
    for part in ("PixelCNNConfig", '"filters": 6', "batch 16", "fp32", "thread", f"torch {torch.__version__}"):
        assert part in key
