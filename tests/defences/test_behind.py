"""A classifier trained behind a defence: what it sees, what is kept, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.helpers import bundled_images, trained_model
from torch import Tensor

import pxfast
from pxfast.classifiers import Classifier, ResNetConfig, accuracy, build, save_classifier, training
from pxfast.classifiers.adversarial import bim_examples, draw_eps, fgsm_examples
from pxfast.classifiers.training import ClassifierSettings, train_classifier
from pxfast.classifiers.weights import load_classifier, read_notes
from pxfast.cli.main import main
from pxfast.defences import behind, train_behind
from pxfast.defences.behind import Prepared, parse_front
from pxfast.engines.choosers import uniforms
from pxfast.pixeldefend.cells import cells, midpoints, shifts
from pxfast.tensors.seeds import derived_seeds

SMALL = ResNetConfig((28, 28), 1, (4, 8, 16), units=1)
COUNT = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The file of a small density model."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    pxfast.save(trained_model((28, 28), 1, 8, 1), path)
    return path


@pytest.fixture(scope="module")
def start() -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(SMALL).eval()


@pytest.fixture
def images() -> Tensor:
    return bundled_images(1)[:COUNT]


def settings(front: str, **changes) -> ClassifierSettings:
    return ClassifierSettings(epochs=1, batch_size=8, precision="fp32", behind=front, **changes)


def prepared(front: str, folder: Path, **changes) -> Prepared:
    return Prepared(settings(front, **changes), folder, threads=1, progress=False)


@pytest.mark.parametrize(("adversary", "examples"), [(None, bim_examples), ("fgsm", fgsm_examples)])
def test_behind_a_purifier_clean_purified_and_attacked_then_purified_images(
    tmp_path, monkeypatch, model, start, images, adversary, examples
):
    monkeypatch.setattr(behind, "BLOCK", 8)
    save_classifier(start, tmp_path / "start.safetensors")
    front = prepared(f"purifier:eps=8,model={model}", tmp_path / "kept", adversary=adversary, start="start", seed=3)
    images, labels = images[:12], torch.arange(12)
    seen, known = front.training(images, labels, start)
    clean, purified, defended = seen.split(12)
    assert torch.equal(clean, images)
    assert torch.equal(known, labels.repeat(3))
    assert torch.equal(purified, pxfast.purify(images, 8, model=model))
    expected = []
    for first in range(0, 12, 8):
        block = images[first : first + 8]
        (seed,) = derived_seeds([3], first)
        eps = draw_eps(len(block), 8.0, torch.Generator().manual_seed(seed))
        expected.append((255 * examples(start, block.float() / 255, eps)).round().byte())
    attacked = torch.cat(expected)
    assert int((attacked.int() - images.int()).abs().amax()) > 4
    assert torch.equal(defended, pxfast.purify(attacked, 8, model=model))
    assert all(parameter.requires_grad for parameter in start.parameters())
    assert torch.equal(front.seen(images[:3]), purified[:3]), "in use it sees what it was trained on"


def test_without_a_classifier_to_start_from_nothing_is_attacked(tmp_path, images):
    front = prepared("feature-squeezing:colours=4", tmp_path / "kept")
    seen, known = front.training(images, torch.arange(COUNT), None)
    assert torch.equal(seen, torch.cat((images, pxfast.defences.FeatureSqueezing(4)(images))))
    assert torch.equal(known, torch.arange(COUNT).repeat(2))


@pytest.mark.parametrize(("guess", "dither"), [("pixeldefend", "lattice"), ("midpoints", "random")])
def test_in_cells_guesses_at_offsets_that_are_drawn_for_each_image(tmp_path, model, images, guess, dither):
    text = f"cells:width=40,guess={guess},dither={dither},offsets=2,model={model}"
    front = prepared(text, tmp_path / "kept", seed=5)
    assert front.versions == 2
    seen, known = front.training(images, torch.arange(COUNT), None)
    assert torch.equal(known, torch.arange(COUNT).repeat(2))
    v = shifts((1, 28, 28), 40, dither)
    offsets = set()
    for at, group in enumerate(seen.split(COUNT)):
        for number, (image, guessed) in enumerate(zip(images, group, strict=True)):
            offset = int(uniforms(5, np.array([number], dtype=np.uint64), at)[0] * 40)
            offsets.add(offset)
            lower, upper = cells(image, 40, offset + v)
            if guess == "midpoints":
                assert torch.equal(guessed, (255 * midpoints(lower, upper)).round().byte())
            assert ((lower <= guessed) & (guessed <= upper)).all()
            if guess == "pixeldefend" and number == 7:
                likeliest = pxfast.purify(lower[None], within=(lower[None], upper[None]), model=model)
                assert torch.equal(guessed, likeliest[0])
    assert len(offsets) > 15


def test_what_was_purified_is_kept_and_found(tmp_path, monkeypatch, images):
    """A run that dies goes on behind the blocks that it has finished; another seed's choice is other images."""
    monkeypatch.setattr(behind, "BLOCK", 4)
    calls = []

    def counted(self, given: Tensor, numbers: Tensor, at: int) -> Tensor:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(len(given))
        return 255 - given

    monkeypatch.setattr(behind.InFront, "__call__", counted)
    labels = torch.arange(COUNT)
    with pytest.raises(KeyboardInterrupt):
        prepared("feature-squeezing", tmp_path / "kept").training(images, labels, None)
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 3
    calls[:] = [0]
    seen, _ = prepared("feature-squeezing", tmp_path / "kept").training(images, labels, None)
    assert calls == [0, 4, 4], "three of five blocks were there"
    assert torch.equal(seen[COUNT:], 255 - images)
    calls[:] = [0] * 3
    again, _ = prepared("feature-squeezing", tmp_path / "kept").training(images, labels, None)
    assert torch.equal(again, seen)
    with pytest.raises(KeyboardInterrupt):  # another defence finds nothing of it
        prepared("feature-squeezing:colours=4", tmp_path / "kept").training(images, labels, None)


def test_some_of_the_images(tmp_path, images):
    labels = torch.arange(COUNT)
    some, known = prepared("feature-squeezing", tmp_path / "a", behind_images=6).training(images, labels, None)
    assert len(known.unique()) == 6
    assert torch.equal(known[:6], known[6:])
    assert torch.equal(some[:6], images[known[:6]])
    _, others = prepared("feature-squeezing", tmp_path / "b", behind_images=6, seed=1).training(images, labels, None)
    assert not torch.equal(others, known)
    _, everything = prepared("feature-squeezing", tmp_path / "c", behind_images=99).training(images, labels, None)
    assert torch.equal(everything, labels.repeat(2))


def call(monkeypatch, capsys, *words: object, code: int = 0) -> tuple[str, str]:
    """What the command prints: its output and its errors."""
    monkeypatch.setattr(sys, "argv", ["pxfast", "train-classifier", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert (stop.value.code or 0) == code, err
    assert "Traceback" not in err
    return out, err


@pytest.fixture
def small_data(monkeypatch) -> tuple[Tensor, Tensor]:
    """A data set of bundled images, labelled by brightness, and a network that needs no time."""
    images = bundled_images(1)[:32]
    brightness = images.float().mean((1, 2, 3))
    labels = (brightness > brightness.median()).long()
    monkeypatch.setattr(training, "load_dataset", lambda name, root, train: (images, labels))
    monkeypatch.setattr(training, "architecture_for", lambda arch, dataset: SMALL)
    return images, labels


def test_a_training_from_end_to_end(tmp_path, monkeypatch, capsys, small_data, start, model):
    """By the command line: notes, accuracies and a resumed run that gives the same weights."""
    images, labels = small_data
    save_classifier(start, tmp_path / "start.safetensors")
    monkeypatch.chdir(tmp_path)
    front = f"cells:width=64,offsets=3,model={model}"
    words = ["fashion-mnist", "resnet62", "--start", "start.safetensors", "--precision", "fp32", "--threads", "1"]
    words = [*words, "--behind", front, "--consistency", "2", "--epochs", "2", "--batch-size", "8"]
    printed, _ = call(monkeypatch, capsys, *words, "--out", "a.safetensors")
    notes = read_notes("a.safetensors")
    assert notes["training"]["behind"] == front
    assert notes["training"]["consistency"] == 2.0
    assert notes["behind_test_images"] == 32
    trained = load_classifier("a.safetensors")
    seen = prepared(front, tmp_path / "a.safetensors.purified").seen(images)
    assert notes["behind_test_accuracy"] == accuracy(trained, seen, labels)
    assert f"{100 * notes['behind_test_accuracy']:.2f} % behind {front} on 32 of them" in printed
    more = ("--keep", "a.safetensors.purified", "--quiet", "--json")
    out, err = call(monkeypatch, capsys, *words, "--out", "b.safetensors", *more)
    assert json.loads(out)["behind_test_accuracy"] == notes["behind_test_accuracy"]
    assert not err
    assert not Path("b.safetensors.purified").exists()
    for name, value in load_classifier("b.safetensors").state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name
    call(monkeypatch, capsys, *words, "--out", "a.safetensors", "--resume")  # finished, and of the same images
    changed = [word if word != front else front.replace("width=64", "width=65") for word in words]
    _, err = call(monkeypatch, capsys, *changed, "--out", "a.safetensors", "--resume", code=2)
    assert "another settings (behind" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cells", "expected cells:width=W"),
        ("cells:width=0", "width must be"),
        ("cells:width=8.5", "width must be"),
        ("cells:width=8,guess=sample", "guess must be one of pixeldefend, midpoints, got 'sample'"),
        ("cells:width=8,dither=blue", "dither must be one of lattice, random, got 'blue'"),
        ("cells:width=8,offsets=0", "offsets must be"),
        (
            "cells:depth=8",
            "expected NAME=VALUE with one of the names width, guess, dither, offsets, model, got 'depth=8'",
        ),
        ("cells:width=8,model=nothing", "nothing"),
        ("cell:width=8", "unknown defence 'cell'"),
        ("purifier:eps=8/255", "8/255"),
    ],
)
def test_fronts_that_there_are_not(text, message):
    with pytest.raises((ValueError, TypeError), match=message):
        parse_front(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"behind": None, "adversary": "bim"}, "adversary and behind_images are settings of a training behind"),
        ({"behind": None, "behind_images": 5}, "adversary and behind_images are settings of a training behind"),
        ({"defence": "fgsm"}, "behind a defence say adversary='fgsm'"),
        ({"adversary": "bim"}, "expected start, got None"),
        ({"adversary": "pgd", "start": "cifar10"}, "adversary must be one of none, fgsm, bim"),
        ({"behind_images": 0}, "behind_images must be"),
        ({"consistency": -1.0}, "consistency must be"),
        (
            {"consistency": 1.0, "behind": None},
            "expected behind, defence='none' and an even batch size, got behind=None",
        ),
        (
            {"consistency": 1.0, "defence": "label-smoothing"},
            "got behind='feature-squeezing', defence='label-smoothing'",
        ),
        ({"consistency": 1.0, "batch_size": 9}, "an even batch size, got .* and 9"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(settings("feature-squeezing"), **changes)


def test_requests_that_cannot_be_met(tmp_path, images):
    with pytest.raises(ValueError, match="images in cells are not attacked"):
        prepared("cells:width=8", tmp_path / "kept", adversary="fgsm", start="cifar10")
    for front in ("cells:width=8", "feature-squeezing"):
        with pytest.raises(ValueError, match=f"expected cells:...,offsets=2 or more, got {front}"):
            prepared(front, tmp_path / "kept", consistency=1.0)
    with pytest.raises(ValueError, match="expected settings with behind"):
        Prepared(ClassifierSettings(), tmp_path / "kept")
    with pytest.raises(ValueError, match=r"call pxfast\.defences\.train_behind"):
        train_classifier("cifar10", "resnet62", "", tmp_path / "a.safetensors", settings=settings("cells:width=8"))
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is not a folder"):
        train_behind(
            "cifar10", "resnet62", "", tmp_path / "a", settings=settings("cells:width=8"), keep=tmp_path / "file"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_keep_belongs_to_behind(tmp_path, monkeypatch, capsys):
    _, err = call(monkeypatch, capsys, "cifar10", "resnet62", "--out", tmp_path / "a", "--keep", "k", code=2)
    assert "--keep is for --behind" in err
