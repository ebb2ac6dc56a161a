"""Training of classifiers: augmentation, what a step minimises, budget, resuming, refusals."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.helpers import bundled_images
from support.small_classifiers import SMALL
from torch import Tensor, nn

from pxfast.classifiers import Classifier, accuracy, build, load_classifier, training
from pxfast.classifiers.adversarial import draw_eps
from pxfast.classifiers.losses import consistent_cross_entropy, smoothed_cross_entropy
from pxfast.classifiers.training import ClassifierSettings, ClassifierTrainer, shifted, train_classifier
from pxfast.classifiers.weights import read_notes
from pxfast.cli.main import main
from pxfast.data.datasets import DATASETS
from pxfast.training.run import checkpoint_path

SETTINGS = ClassifierSettings(epochs=2, batch_size=16, precision="fp32", horizontal_flips=True)


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Training data that need no files, and a network that needs no time: real images, labelled by brightness."""
    images = bundled_images(1)
    brightness = images.float().mean((1, 2, 3))
    labels = (brightness > brightness.median()).long()
    monkeypatch.setattr(training, "load_dataset", lambda name, root, train: (images, labels))
    monkeypatch.setattr(training, "architecture_for", lambda arch, dataset: SMALL)
    return images, labels


def train(out, **changes) -> Classifier:
    options = {"settings": SETTINGS, "progress": False, **changes}
    return train_classifier("fashion-mnist", "resnet62", "", out, **options)


def train_until(step: int, out, settings: ClassifierSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that Ctrl-C ends before this step."""
    train_step = ClassifierTrainer.train_step

    def interrupted(trainer: ClassifierTrainer) -> tuple[float, float]:
        if trainer.step == step:
            raise KeyboardInterrupt
        return train_step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTrainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(out, settings=settings, checkpoint_interval=0.0)


def test_it_learns_in_whatever_mode_the_caller_is(small_data, tmp_path) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=0.2)
    expected = train(tmp_path / "plain.safetensors", settings=settings).state_dict()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = train(tmp_path / "mode.safetensors", settings=settings).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_shifts_are_crops_of_the_padded_image() -> None:
    """Every shifted image is one of the 9 that moves by one pixel give, and all of them occur."""
    image = bundled_images(1)[3:4]
    moved = shifted(image.expand(200, -1, -1, -1), 1, torch.Generator().manual_seed(0))
    padded = F.pad(image, (1, 1, 1, 1))
    candidates = torch.cat([padded[:, :, i : i + 28, j : j + 28] for i in range(3) for j in range(3)])
    matches = (moved[:, None] == candidates[None]).flatten(2).all(2)
    assert (matches.sum(1) == 1).all()
    assert (matches.sum(0) > 0).all()
    assert torch.equal(shifted(image, 0, torch.Generator()), image)


def test_about_half_of_the_images_are_flipped(small_data) -> None:
    images, labels = small_data
    trainer = ClassifierTrainer(SMALL, dataclasses.replace(SETTINGS, batch_size=64, max_shift=0), images, labels)
    batch, batch_labels = trainer.batch()
    chosen = trainer.chosen(0)
    straight = (batch == images[chosen]).flatten(1).all(1)
    flipped = (batch == images[chosen].flip(3)).flatten(1).all(1)
    assert (straight | flipped).all()
    assert 16 < int(flipped.sum()) < 48
    assert torch.equal(batch_labels, labels[chosen])


@pytest.mark.parametrize(
    ("dataset", "flips"),
    [("fashion-mnist", True), ("cifar10", True), ("cifar100", True), ("mnist", False), ("svhn", False), (".", False)],
)
def test_images_are_flipped_where_their_class_stays(small_data, tmp_path, dataset, flips) -> None:
    """A mirrored digit is none, or another one."""
    for given, expected in ((None, flips), (not flips, not flips)):
        out = tmp_path / f"{given}.safetensors"
        settings = ClassifierSettings(epochs=0.1, batch_size=16, precision="fp32", horizontal_flips=given)
        train_classifier(dataset, "resnet62", "", out, settings=settings, progress=False)
        notes = read_notes(out)
        assert notes["training"]["horizontal_flips"] is expected
        assert notes["dataset"] == (dataset if dataset in DATASETS else str(Path.cwd())), (
            "another folder may have its name"
        )


@pytest.mark.parametrize("defence", ["fgsm", "bim"])
def test_half_of_each_batch_is_attacked_and_the_model_left_alone(defence: str, small_data) -> None:
    settings = dataclasses.replace(SETTINGS, defence=defence, delta=8.0)
    trainer = ClassifierTrainer(SMALL, settings, *small_data)
    images, _ = trainer.batch()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    x = trainer.adversarial_batch(images)
    for name, value in trainer.model.state_dict().items():  # batch normalisation's running mean among them
        assert torch.equal(value, before[name]), name
    assert trainer.model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in trainer.model.parameters())
    clean = images.float() / 255
    assert torch.equal(x[:8], clean[:8])
    eps = draw_eps(8, 8.0, torch.Generator().manual_seed(trainer.step_seed(0)))
    farthest = (x[8:] - clean[8:]).abs().amax((1, 2, 3)) * 255
    assert (farthest <= eps + 1e-3).all()
    assert (farthest[eps >= 1] > 0.9).all()
    assert torch.equal(x, trainer.adversarial_batch(images))


def test_label_smoothing_is_what_a_step_minimises(small_data) -> None:
    plain = ClassifierTrainer(SMALL, SETTINGS, *small_data)
    smooth = ClassifierTrainer(SMALL, dataclasses.replace(SETTINGS, defence="label-smoothing"), *small_data)
    images, labels = plain.batch()
    plain.model.eval()  # only to look at the logits: train_step sets the mode it needs
    with torch.no_grad():
        logits = build_logits(smooth, images)
    assert smooth.train_step()[0] == pytest.approx(float(smoothed_cross_entropy(logits, labels, 0.1)), rel=1e-4)
    assert plain.train_step()[0] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)


def test_consistency_compares_two_versions_of_an_image(small_data) -> None:
    images, labels = small_data
    count, settings = len(images), dataclasses.replace(SETTINGS, behind="cells:width=8,offsets=3", consistency=2.0)
    versions = images.repeat(3, 1, 1, 1)
    versions[:, 0, 14, 14] = torch.arange(3 * count)  # a pixel tells which image it is, and which version
    unmoved = dataclasses.replace(settings, horizontal_flips=False, max_shift=0)
    trainer = ClassifierTrainer(SMALL, unmoved, versions, labels.repeat(3), versions=3)
    found = set()
    for trainer.step in range(8):
        seen, known = trainer.batch()
        assert len(seen) == len(known) == settings.batch_size
        first, second = seen[:, 0, 14, 14].long().chunk(2)
        assert torch.equal(first % count, second % count)
        assert torch.equal(known, labels[first % count].repeat(2))
        found |= set(zip((first // count).tolist(), (second // count).tolist(), strict=True))
    assert found == set(itertools.permutations(range(3), 2))
    with pytest.raises(ValueError, match=f"expected 2 or more versions of each of {3 * count} images, got 1"):
        ClassifierTrainer(SMALL, settings, versions, labels.repeat(3))
    with pytest.raises(ValueError, match=f"expected 1 or more versions of each of {count} images, got 7"):
        ClassifierTrainer(SMALL, SETTINGS, images, labels, versions=7)


def test_versions_are_moved_alike_and_their_consistency_is_minimised(small_data) -> None:
    images, labels = small_data
    settings = dataclasses.replace(SETTINGS, behind="cells:width=8,offsets=2", consistency=2.0, max_shift=2)
    trainer = ClassifierTrainer(SMALL, settings, images.repeat(2, 1, 1, 1), labels.repeat(2), versions=2)
    seen, known = trainer.batch()
    first, second = seen.chunk(2)
    assert torch.equal(first, second)
    assert not torch.equal(first, images[trainer.chosen(0)[: len(first)] % len(images)])
    with torch.no_grad():
        logits = build_logits(trainer, seen)
    assert trainer.train_step()[0] == pytest.approx(float(consistent_cross_entropy(logits, known, 2.0)), rel=1e-4)


def build_logits(trainer: ClassifierTrainer, images: Tensor) -> Tensor:
    """Logits in training mode, of a copy of the trainer's model, so that its running statistics stay as they are."""
    copied = build(SMALL)
    copied.load_state_dict(trainer.model.state_dict())
    return copied(images)


@pytest.mark.parametrize(
    "defence",
    [pytest.param(name, marks=[pytest.mark.whole] * (name not in ("none", "fgsm"))) for name in training.DEFENCES],
)
def test_training_learns(defence: str, small_data, tmp_path) -> None:
    settings = ClassifierSettings(epochs=9, batch_size=16, learning_rate=0.05, defence=defence, delta=2.0)
    train(tmp_path / "a.safetensors", settings=settings)
    notes = read_notes(tmp_path / "a.safetensors")
    assert notes["test_accuracy"] >= 0.8
    assert notes["test_images"] == len(bundled_images(1))
    assert notes["steps"] == 9 * 4
    assert notes["architecture"] == "resnet62"
    assert notes["training"]["defence"] == defence
    images, labels = small_data
    assert accuracy(load_classifier(tmp_path / "a.safetensors"), images, labels) == notes["test_accuracy"]


@pytest.mark.parametrize("defence", ["none", "bim"])
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(
    defence: str, small_data, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(SETTINGS, defence=defence, delta=3.0)
    whole = train(tmp_path / "whole.safetensors", settings=settings)
    out = tmp_path / "parts.safetensors"
    train_until(5, out, settings, monkeypatch)
    assert not out.exists()
    with pytest.raises(FileExistsError, match="checkpoint"):
        train(out, settings=settings)
    parts = train(out, settings=settings, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"another settings \(seed: 0 then, 1 now\)"):
        train(out, resume=True, settings=dataclasses.replace(settings, seed=1))


def test_a_budget_ends_the_run_and_its_schedule(small_data, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes a second of a clock that the test turns."""
    rates: list[float] = []
    train_step = ClassifierTrainer.train_step

    def step(trainer: ClassifierTrainer) -> tuple[float, float]:
        before = trainer.seconds
        result = train_step(trainer)
        rates.append(trainer.optimiser.param_groups[0]["lr"])
        trainer.seconds = before + 1.0
        return result

    monkeypatch.setattr(ClassifierTrainer, "train_step", step)
    train(tmp_path / "a.safetensors", settings=dataclasses.replace(SETTINGS, epochs=1000, budget=20.0))
    assert read_notes(tmp_path / "a.safetensors")["steps"] == len(rates) == 20
    peak = max(rates)
    assert rates.index(peak) in (2, 3)  # the end of the first tenth
    assert peak > 0.09
    assert rates[-1] < 0.01 * peak * 2
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[3:]))


def test_training_refuses_bad_input(small_data, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        train(tmp_path / "nowhere" / "a.safetensors")
    with pytest.raises(ValueError, match="128 images, got 64"):
        train(tmp_path / "a.safetensors", settings=ClassifierSettings())
    images, labels = small_data
    checkpoint = checkpoint_path(tmp_path / "b.safetensors")
    ClassifierTrainer(SMALL, SETTINGS, images, labels).save(checkpoint)
    other = ClassifierTrainer(SMALL, SETTINGS, images.flip(0), labels)
    with pytest.raises(ValueError, match="other training images"):
        other.restore(checkpoint)


def test_a_run_may_start_from_a_classifier(small_data, tmp_path) -> None:
    first = train(tmp_path / "a.safetensors")
    start = str(tmp_path / "a.safetensors")
    settings = dataclasses.replace(SETTINGS, start=start, learning_rate=1e-6, epochs=0.25, defence="fgsm")
    second = train(tmp_path / "b.safetensors", settings=settings)
    for (name, before), after in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-2, atol=1e-4, msg=name)
    before, after = read_notes(start), read_notes(tmp_path / "b.safetensors")
    assert after["training"]["start"] == start
    assert "earlier_runs" not in before
    assert after["earlier_runs"] == [{key: before[key] for key in ("training", "steps", "seconds")}]
    with pytest.raises(ValueError, match=r"expected to start from a classifier of .*got"):
        train(tmp_path / "c.safetensors", settings=dataclasses.replace(SETTINGS, start="fashion-mnist"))


def test_names_are_checked(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"'imagenet'.*cifar10, cifar100, fashion-mnist"):
        train_classifier("imagenet", "resnet62", "", tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"'lenet'.*wrn28-10"):
        train_classifier("cifar10", "lenet", "", tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"budget": 0.0}, "budget"),
        ({"batch_size": 1}, "batch_size"),
        ({"precision": "fp16"}, "precision"),
        ({"max_shift": -1}, "max_shift"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"defence": "pgd"}, r"fgsm.*'pgd'"),
        ({"delta": 0.0}, "delta"),
        ({"smoothing": 1.0}, "smoothing"),
    ],
)
def test_bad_settings(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifierSettings(**changes)


def test_a_loss_that_is_not_finite_stops_the_run(small_data) -> None:
    trainer = ClassifierTrainer(SMALL, SETTINGS, *small_data)
    nn.init.constant_(trainer.model.output.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="step 0: loss nan"):
        trainer.train_step()


def test_a_gradient_that_is_not_finite_changes_no_weight(small_data) -> None:
    """A finite loss may have one."""
    trainer, other = (ClassifierTrainer(SMALL, SETTINGS, *small_data) for _ in range(2))
    spoilt = trainer.model.output.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(FloatingPointError, match=r"step 0: loss \d.*, gradient of norm (nan|inf)"):
        trainer.train_step()
    assert all(map(torch.equal, trainer.model.parameters(), before))
    spoilt.remove()
    assert trainer.train_step() == other.train_step()
    assert all(map(torch.equal, trainer.model.parameters(), other.model.parameters()))


def test_command(small_data, tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "vgg.safetensors"
    words = ["train-classifier", "fashion-mnist", "vgg16", "--root", "unused", "--out", str(out), "--defence", "fgsm"]
    words += ["--delta", "25", "--epochs", "0.5", "--batch-size", "16", "--no-flips", "--max-shift", "2"]
    monkeypatch.setattr("sys.argv", ["pxfast", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "accuracy on 64 test images" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["pxfast", *words, "--force", "--json"])
    with pytest.raises(SystemExit):
        main()
    facts = json.loads(capsys.readouterr().out)
    assert (facts["test_images"], facts["steps"], facts["files"]) == (64, 2, [str(out)])
    with safe_open(out, framework="pt") as file:
        notes = json.loads(file.metadata()["notes"])
    assert facts["test_accuracy"] == notes["test_accuracy"]
    settings = notes["training"]
    assert (settings["defence"], settings["delta"], settings["max_shift"]) == ("fgsm", 25.0, 2)
    assert not settings["horizontal_flips"]
    assert notes["steps"] == 2


def test_a_resumed_run_needs_no_file_to_start_from(small_data, model: Classifier, tmp_path) -> None:
    training.save_classifier(model, tmp_path / "start.safetensors")
    settings = dataclasses.replace(SETTINGS, start=str(tmp_path / "start.safetensors"))
    found = train(tmp_path / "a.safetensors", settings=settings)
    (tmp_path / "start.safetensors").unlink()
    again = train(tmp_path / "a.safetensors", settings=settings, resume=True)
    assert all(map(torch.equal, found.state_dict().values(), again.state_dict().values()))


def test_an_interrupted_run_knows_the_runs_that_it_came_from(small_data, tmp_path, monkeypatch) -> None:
    names = [str(tmp_path / f"{letter}.safetensors") for letter in "abc"]
    quick = dataclasses.replace(SETTINGS, epochs=0.25)
    train(names[0], settings=quick)
    train(names[1], settings=dataclasses.replace(quick, start=names[0], seed=1))
    last = dataclasses.replace(SETTINGS, start=names[1], seed=2)
    train_until(3, names[2], last, monkeypatch)
    for name in names[:2]:
        Path(name).unlink()
    train(names[2], settings=last, resume=True)
    found = read_notes(names[2])
    assert [run["training"]["seed"] for run in found["earlier_runs"]] == [0, 1]
    assert [run["steps"] for run in found["earlier_runs"]] == [1, 1]
    assert found["training"]["seed"] == 2


def test_resuming_on_other_data_is_refused(small_data, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = small_data
    out = tmp_path / "a.safetensors"
    train(out)
    for what, changed in (("labels", (images, 1 - labels)), ("images", (255 - images, labels))):
        monkeypatch.setattr(training, "load_dataset", lambda name, root, train, changed=changed: changed)
        with pytest.raises(ValueError, match=f"checkpoint of a run on other training {what}"):
            train(out, resume=True)
    with safe_open(checkpoint_path(out), framework="pt") as file:
        older = {name: value for name, value in file.metadata().items() if name != "labels"}
    save_file(load_file(checkpoint_path(out)), checkpoint_path(out), older)
    monkeypatch.setattr(training, "load_dataset", lambda name, root, train: (images, 1 - labels))
    train(out, resume=True)  # an older version kept no trace of the labels
