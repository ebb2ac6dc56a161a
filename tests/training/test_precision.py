"""A training takes the precision that is faster on its device, unless told, and a resumed one keeps its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.helpers import real_images
from support.small_training import CONFIG, SETTINGS

from pxfast.adp.score_network import ScoreNetworkConfig
from pxfast.adp.training import ScoreSettings, ScoreTrainer
from pxfast.base import machine
from pxfast.classifiers.resnet import ResNetConfig
from pxfast.classifiers.training import ClassifierSettings, ClassifierTrainer
from pxfast.pixelcnn.files import read_metadata
from pxfast.pixelcnn.training import Trainer, TrainingSettings, branch_settings, preset, read_settings, train
from pxfast.training import settle
from pxfast.training.run import checkpoint_path

OPEN = dataclasses.replace(SETTINGS, epochs=1, precision="auto")
IMAGES = real_images(1, (8, 8), 64)
ZEN3 = "sse2 avx2 fma"
ZEN4 = f"{ZEN3} avx512f avx512_bf16"


@pytest.fixture
def device_prefers(monkeypatch):
    """Sets whether the device is one that is faster in bf16."""
    return lambda bf16: monkeypatch.setattr(settle, "torch_prefers_bf16", lambda device: bf16)


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("AuthenticAMD", ZEN3, False),  # emulates bf16
        ("AuthenticAMD", ZEN4, True),
        ("GenuineIntel", ZEN4, False),  # half as many products as in fp32
        ("GenuineIntel", f"{ZEN4} amx_bf16 amx_tile", True),
        ("", "", False),  # no Linux, or no x86
    ],
)
def test_a_processor_prefers_bf16_where_it_has_fast_instructions_for_it(monkeypatch, tmp_path, vendor, flags, expected):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: AMD EPYC\nflags\t\t: {flags}\n\n" * 2)
    monkeypatch.setattr(machine, "CPUINFO", file)
    assert machine.torch_prefers_bf16("cpu") is expected
    assert machine.processor_name() == "AMD EPYC"
    file.unlink()
    assert machine.torch_prefers_bf16("cpu") is False
    assert machine.processor_name() == "unknown processor"


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_prefers_bf16_where_it_has_it(monkeypatch, supported):
    """And not where torch would emulate it, as on a V100."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported
    )
    assert machine.torch_prefers_bf16("cuda") is supported


def test_no_training_asks_for_bf16_where_nobody_did():
    assert {TrainingSettings().precision, ClassifierSettings().precision, ScoreSettings().precision} == {"auto"}
    assert preset("small", "cifar10")[1].precision == preset("full", "cifar10")[1].precision == "auto"
    assert preset("paper", "cifar10")[1].precision == "fp32", "as the authors' code has it"


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16"), (False, "fp32")])
def test_every_trainer_takes_the_devices_precision(device_prefers, bf16, expected):
    device_prefers(bf16)
    labels = torch.zeros(len(IMAGES), dtype=torch.int64)
    network = ResNetConfig((8, 8), 1, (4, 6, 8), units=1, classes=2)
    trainers = (
        Trainer(CONFIG, OPEN, IMAGES),
        ScoreTrainer(ScoreNetworkConfig((8, 8), 1, 2), ScoreSettings(batch_size=4), IMAGES),
        ClassifierTrainer(network, ClassifierSettings(batch_size=4), IMAGES, labels),
    )
    for trainer in trainers:
        assert trainer.settings.precision == expected
        with trainer.autocast():
            assert torch.is_autocast_enabled("cpu") is bf16


def test_what_was_taken_is_recorded_and_a_resumed_run_keeps_it(device_prefers, tmp_path, capfd):
    """On another machine, too: or else the result would have other bits."""
    out = tmp_path / "m.safetensors"
    device_prefers(True)
    train(CONFIG, IMAGES, out, settings=OPEN, checkpoint_interval=0.0)
    assert read_settings(checkpoint_path(out))[1].precision == "bf16"
    assert read_metadata(out)[1]["training"]["precision"] == "bf16"
    assert "bf16" not in capfd.readouterr().err
    device_prefers(False)
    train(CONFIG, IMAGES, out, settings=OPEN, resume=True, force=True)
    assert read_metadata(out)[1]["training"]["precision"] == "bf16"
    assert "the run computes in bf16, which is slower on this device than fp32" in capfd.readouterr().err
    train(CONFIG, IMAGES, out, settings=OPEN, force=True, progress=False)
    assert read_metadata(out)[1]["training"]["precision"] == "fp32"
    assert capfd.readouterr().err == ""


def test_a_branch_keeps_the_precision_of_its_run(device_prefers, tmp_path):
    held, out = tmp_path / "held.safetensors", tmp_path / "ended.safetensors"
    device_prefers(True)
    settings = dataclasses.replace(OPEN, schedule="wsd", decay_share=0.0)
    train(CONFIG, IMAGES, held, settings=settings, progress=False)
    device_prefers(False)
    _, ending = branch_settings(checkpoint_path(held), epochs=1)
    ending = dataclasses.replace(ending, precision="auto")
    train(CONFIG, IMAGES, out, settings=ending, branch=held, progress=False)
    assert read_metadata(out)[1]["training"]["precision"] == "bf16"
