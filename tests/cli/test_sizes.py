"""Images of another size than the shipped models': 64 x 64, from a folder, through every command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.helpers import bundled_images

import pxfast
from pxfast.classifiers import ResNetConfig
from pxfast.classifiers.architectures import ARCHITECTURES
from pxfast.data.image_decoding import read_image
from pxfast.data.image_files import write_png

SIDE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """22 images of 64 x 64 pixels, each of four of CIFAR-10's."""
    place = tmp_path_factory.mktemp("mosaics")
    images = bundled_images(3)
    for i in range(22):
        upper, lower = (torch.cat((images[i + 2 * k], images[i + 2 * k + 1]), 2) for k in range(2))
        write_png(torch.cat((upper, lower), 1), place / f"{i:02d}.png")
    return place


@pytest.mark.whole  # two commands of it: the test below
def test_images_of_64_pixels_are_trained_on_judged_purified_and_drawn(folder, run_here, refused, tmp_path):
    model = tmp_path / "m.safetensors"
    small = ["--preset", "small", "--filters", 4, "--resnets", 1, "--batch-size", 4, "--epochs", 1, "--device", "cpu"]
    out, _ = run_here("train", folder, "--out", model, *small, "--precision", "fp32", "--json", "--quiet")
    facts = json.loads(out)
    assert (facts["test_images"], facts["steps"]) == (3, 4)
    config = pxfast.load(str(model)).config
    assert (config.image_size, config.channels) == ((SIDE, SIDE), 3)
    log = [json.loads(line) for line in model.with_suffix(".log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 4
    assert log[-1]["validation_bits_per_dim"] < 12.0

    few = tmp_path / "few"
    few.mkdir()
    for name in ("00.png", "10.png", "20.png"):  # the test images
        (few / name).write_bytes((folder / name).read_bytes())
    bits = json.loads(run_here("bpd", few, "--model", model, "--json")[0])
    assert bits["mean"] == pytest.approx(facts["bits_per_dim"], abs=1e-3)

    run_here("purify", few, tmp_path / "purified", "--eps", 8, "--model", model, "--precision", "fp32", "--quiet")
    before, after = (
        np.stack([read_image(place / f"{i}0.png") for i in range(3)]) for place in (few, tmp_path / "purified")
    )
    assert 0 < np.abs(before.astype(int) - after).max() <= 8
    assert pxfast.verify(before[:1], after[:1], eps=8, model=str(model), precision="fp32").passed

    run_here("sample", 2, "--model", model, "--out", tmp_path / "s.npy", "--grid", tmp_path / "s.png", "--quiet")
    assert np.load(tmp_path / "s.npy").shape == (2, 3, SIDE, SIDE)
    message = refused("purify", few, tmp_path / "other", "--eps", 8)
    assert "no shipped model takes images of shape (3, 64, 64)" in message
    assert "pxfast train" in message


def test_a_score_network_and_a_classifier_of_64_pixels(folder, run_here, monkeypatch, tmp_path):
    small = lambda size, channels, classes: ResNetConfig(size, channels, (4, 6, 8), units=1, classes=classes)  # noqa: E731
    monkeypatch.setitem(ARCHITECTURES, "resnet62", small)
    common = ["--batch-size", 4, "--epochs", 0.25, "--device", "cpu", "--precision", "fp32", "--quiet"]
    score = tmp_path / "s.safetensors"
    run_here("train-adp", folder, "--out", score, "--preset", "small", "--ngf", 2, *common)
    run_here("purify", folder / "00.png", tmp_path / "p.png", "--defence", f"adp:sigma=0.1,steps=1,model={score}")
    assert read_image(tmp_path / "p.png").shape == (3, SIDE, SIDE)
    for kind, first in (("a", 0), ("b", 11)):
        for i in range(first, first + 11):
            target = tmp_path / "classes" / kind / f"{i:02d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((folder / f"{i:02d}.png").read_bytes())
    judge = tmp_path / "c.safetensors"
    run_here("train-classifier", tmp_path / "classes", "resnet62", "--out", judge, *common)
    words = ["--attack", "fgsm", "--classifier", judge, "--images", 2, "--out", tmp_path / "a.npy", "--device", "cpu"]
    run_here("attack", tmp_path / "classes", *words, "--quiet")
    assert np.load(tmp_path / "a.npy").shape == (2, 3, SIDE, SIDE)
