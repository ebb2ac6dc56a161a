"""Which network and settings ``pxfast train`` makes of a preset, of options, and of a checkpoint."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from support.helpers import bundled_images, real_images, run_command
from support.small_training import CONFIG, SETTINGS

import pxfast
from pxfast.data import datasets as data
from pxfast.pixelcnn import training
from pxfast.pixelcnn.files import read_metadata
from pxfast.pixelcnn.network import PixelCNNConfig, forward_flops
from pxfast.pixelcnn.training import PRESETS, Trainer, TrainingSettings, preset
from pxfast.training.run import checkpoint_path


@pytest.fixture
def asked(run_here, monkeypatch, tmp_path):
    """Runs the command up to where it would begin to train; gives what it would train, and how."""

    def asked(*options, dataset="cifar10") -> tuple[PixelCNNConfig, TrainingSettings]:
        found = []
        images = real_images(1, (8, 8), 64)
        monkeypatch.setattr(data, "load_dataset", lambda name, root, train: (images, None))
        monkeypatch.setattr(training, "train", lambda config, images, out, **given: found.append((config, given)))
        monkeypatch.setattr(training, "record_bits_per_dim", lambda *arguments, **options: 3.0)
        arguments = ["train", dataset, "--root", "-", "--out", tmp_path / "m.safetensors", "--device", "cpu", *options]
        out, _ = run_here(*arguments)
        assert out == "3.0000 bits/dim on the test set\n"
        ((config, given),) = found
        return config, given["settings"]

    return asked


@pytest.mark.parametrize(("dataset", "filters"), [("cifar10", 160), ("fashion-mnist", 40)])
def test_the_paper_preset_is_the_authors_setting(asked, dataset, filters):
    config, settings = asked("--preset", "paper", dataset=dataset)
    channels, *size = data.DATASETS[dataset]
    assert config == PixelCNNConfig(tuple(size), channels, filters, resnets=5, mixtures=10, dropout=0.5)
    assert dataclasses.asdict(settings) == {
        "batch_size": 4 * 12,
        "epochs": 5000.0,
        "budget": None,
        "optimiser": "adam",
        "learning_rate": 1e-3,
        "schedule": "exponential",
        "decay": 0.999995,
        "decay_share": settings.decay_share,  # of no effect
        "warmup": 0,
        "gradient_clip": 0.0,
        "ema_decay": 0.9995,
        "horizontal_flips": False,
        "precision": "fp32",
        "compile": False,
        "cuda_graphs": False,
        "seed": 0,
        "muon_learning_rate": settings.muon_learning_rate,  # of no effect
    }
    trainer = Trainer(CONFIG, dataclasses.replace(settings, batch_size=4), real_images(1, (8, 8), 16))
    (adam,) = trainer.optimisers
    assert adam.defaults["betas"] == (0.95, 0.9995)


def test_the_paper_preset_has_the_papers_size():
    assert forward_flops(preset("paper", "cifar10")[0]) == pytest.approx(48.74e9, rel=1e-3)
    assert preset("paper", "cifar10")[0] == dataclasses.replace(preset("full", "cifar10")[0], dropout=0.5)


@pytest.mark.parametrize("name", ["full", "small"])
def test_only_colour_images_are_flipped(name):
    assert preset(name, "cifar10")[1].horizontal_flips
    assert not preset(name, "fashion-mnist")[1].horizontal_flips


def test_options_change_a_preset(asked):
    assert asked() == preset("full", "cifar10")
    config, settings = asked("--preset", "small", "--filters", 24, "--dropout", 0.1, "--budget", "1h30m", "--no-flips",
                             "--optimiser", "adam", "--no-compile", "--gradient-clip", 0)  # fmt: skip
    before = preset("small", "cifar10")
    assert config == dataclasses.replace(before[0], filters=24, dropout=0.1)
    assert settings == dataclasses.replace(
        before[1], budget=5400.0, horizontal_flips=False, optimiser="adam", compile=False, gradient_clip=0.0
    )


def test_resume_takes_the_checkpoints_settings(asked, tmp_path):
    trainer = Trainer(CONFIG, SETTINGS, real_images(1, (8, 8), 64))
    trainer.initialise()
    trainer.save(checkpoint_path(tmp_path / "m.safetensors"))
    assert asked("--resume") == (CONFIG, SETTINGS)
    assert asked("--resume", "--seed", 3) == (CONFIG, dataclasses.replace(SETTINGS, seed=3)), "for train() to refuse"
    assert asked("--resume", "--preset", "small") == preset("small", "cifar10")


def test_a_grown_networks_file_says_how_large_each_run_was(run_here, monkeypatch, tmp_path):
    images = bundled_images(3)[:16]
    monkeypatch.setattr(data, "load_dataset", lambda name, root, train: (images, images))
    common = ["train", "cifar10", "--root", "-", "--device", "cpu", "--preset", "small", "--no-compile"]
    common += ["--batch-size", "8", "--epochs", "1"]
    first, grown = tmp_path / "first.safetensors", tmp_path / "grown.safetensors"
    out, err = run_here(*common, "--filters", "3", "--resnets", "1", "--out", first, "--json")
    facts = json.loads(out)
    assert facts.keys() == {"bits_per_dim", "test_images", "steps", "seconds", "files"}
    assert (facts["test_images"], facts["steps"], facts["files"]) == (16, 2, [str(first)])
    assert facts["bits_per_dim"] == pytest.approx(read_metadata(first)[1]["test_bits_per_dim"], abs=1e-3)
    assert "2/2 steps" in err
    assert "\r" not in err
    out, err = run_here(*common, "--filters", "4", "--out", grown, "--start", first, "--quiet")
    assert "bits/dim on the test set" in out
    assert not err
    config, notes = read_metadata(grown)
    assert (config.filters, config.resnets) == (4, 1), "the layers are the start's, not the preset's"
    assert [part["network"] for part in notes["parts"]] == [{"filters": f, "resnets": 1} for f in (3, 4)]
    assert notes["images_seen"] == 32


def test_what_is_unknown_is_told(refused, tmp_path):
    arguments = ["train", "cifar10", "--root", tmp_path, "--out", tmp_path / "m.safetensors"]
    assert f"unknown preset 'large'; known: {', '.join(PRESETS)}" in refused(*arguments, "--preset", "large")
    assert "cifar10 was not found" in refused(*arguments, "--resume"), "there is no checkpoint: it begins anew"
    with pytest.raises(ValueError, match="known: cifar10, cifar100, fashion-mnist, mnist, svhn"):
        preset("small", "imagenet")


@pytest.mark.process
def test_train(run_here, refused, data_root, tmp_path):
    out = tmp_path / "model.safetensors"
    options = ["--root", data_root, "--out", out, "--filters", 2, "--resnets", 1, "--threads", 1, "--batch-size", 8]
    run_command("train", "fashion-mnist", *options, "--epochs", "0.0005", "--dropout", 0.1)
    model = pxfast.load(out)
    assert model.config == pxfast.PixelCNNConfig((28, 28), 1, 2, 1, dropout=0.1)
    assert "exists already; pass --force" in refused("train", "fashion-mnist", *options)
    bits = json.loads(run_here("bpd", _first_test_images(data_root, tmp_path), "--model", out, "--json")[0])
    assert 0 < bits["mean"] < 100


def _first_test_images(data_root, tmp_path) -> Path:
    path = tmp_path / "first.npy"
    np.save(path, data.load_dataset("fashion-mnist", data_root, train=False)[0][:4].numpy())
    return path


def test_train_refuses_bad_settings(refused, tmp_path):
    options = ["--root", tmp_path, "--out", tmp_path / "model.safetensors"]
    assert "known: cifar10, cifar100, fashion-mnist" in refused("train", "imagenet", *options)
    assert "budget must be a duration" in refused("train", "cifar10", *options, "--budget", "long")
    assert "checkpoint interval must be a duration" in refused("train", "cifar10", *options, "--checkpoint-interval", 9)
    assert "filters must be an integer in 1..4096" in refused("train", "cifar10", *options, "--filters", 0)
    assert "fashion-mnist was not found under" in refused("train", "fashion-mnist", *options)
    assert os.listdir(tmp_path) == []
