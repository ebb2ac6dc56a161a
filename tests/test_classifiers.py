"""The paper's classifier: its architecture, its inputs, its files, its training, and the shipped one's accuracy."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import bundled_images
from torch import nn

from pxfast.classifiers import ResNet, ResNetConfig, accuracy, load_classifier, predict, save_classifier, training
from pxfast.classifiers.resnet import NormActivation, ResidualUnit, standardise
from pxfast.classifiers.training import ClassifierSettings, ClassifierTrainer, augment, train_classifier
from pxfast.classifiers.weights import FORMAT, classifier_path, read_notes
from pxfast.data import load_dataset
from pxfast.weights import load, read_safetensors

FASHION = ResNetConfig((28, 28), 1, (4, 8, 16))
CIFAR = ResNetConfig((32, 32), 3, (16, 32, 64))
SMALL = ResNetConfig((28, 28), 1, (4, 8, 16), units=1)


def random_classifier(config: ResNetConfig, seed: int = 0) -> ResNet:
    """In eval mode, with batch normalisation as training would leave it rather than at its start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNet(config)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if name.endswith(("running_var", "norm.weight")):
                    value.uniform_(0.5, 1.5)
                elif name.endswith(("running_mean", "norm.bias")):
                    value.normal_(0.0, 0.2)
    return model.eval()


@pytest.mark.parametrize(("config", "parameters"), [(FASHION, 60_374), (CIFAR, 950_234)])
def test_architecture_is_the_papers(config: ResNetConfig, parameters: int) -> None:
    """62 layers with weights; sizes and widths after each block; parameters counted by hand from appendix C.1."""
    model = random_classifier(config)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 62
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    shapes = []
    for i in (9, 19, 29):
        model.units[i].register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    H, W = config.image_size
    logits = model(torch.zeros(2, config.channels, H, W, dtype=torch.uint8))
    assert shapes == [(width, H >> i, W >> i) for i, width in enumerate(config.widths)]
    assert logits.shape == (2, 10)
    assert logits.dtype == torch.float32


def test_shortcut_is_average_pooling_and_zero_features() -> None:
    unit = ResidualUnit(4, 8, stride=2, shared=False, leakiness=0.1).eval()
    nn.init.zeros_(unit.conv2.weight)
    x = torch.randn(3, 4, 6, 6)
    y = unit(x)
    torch.testing.assert_close(y[:, 2:6], F.avg_pool2d(x, 2))
    assert (y[:, :2] == 0).all()
    assert (y[:, 6:] == 0).all()


def test_only_the_first_unit_shares_its_activation_with_the_shortcut() -> None:
    assert [unit.shared for unit in ResNet(FASHION).units] == [True] + [False] * 29
    unit = ResidualUnit(4, 4, stride=1, shared=True, leakiness=0.1).eval()
    nn.init.zeros_(unit.conv2.weight)
    x = torch.randn(3, 4, 6, 6)
    torch.testing.assert_close(unit(x), unit.activation1(x))


def test_activation_is_leaky() -> None:
    activation = NormActivation(1, 0.1).eval()
    x = torch.tensor([-2.0, 3.0]).reshape(1, 1, 1, 2)
    expected = torch.tensor([-0.2, 3.0]).reshape(1, 1, 1, 2) / math.sqrt(1.001)
    torch.testing.assert_close(activation(x), expected)


def test_standardise() -> None:
    images = bundled_images(1)[:8]
    x = standardise(images)
    torch.testing.assert_close(x.mean((1, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((1, 2, 3), correction=0), torch.ones(8))
    assert (standardise(torch.full((1, 1, 28, 28), 7, dtype=torch.uint8)) == 0).all()


def test_uint8_and_floats_in_0_1_give_the_same_logits() -> None:
    model, images = random_classifier(FASHION), bundled_images(1)[:8]
    assert torch.equal(model(images), model(images.float() / 255))
    torch.testing.assert_close(model(images), model(images.double() / 255))


def test_predictions_do_not_depend_on_the_batch() -> None:
    model, images = random_classifier(FASHION), bundled_images(1)[:16]
    together = model(images)
    torch.testing.assert_close(together[5:6], model(images[5:6]))
    assert torch.equal(predict(model, images), together.argmax(1))
    assert predict(model, images[:0]).shape == (0,)


def test_accuracy() -> None:
    model, images = random_classifier(FASHION), bundled_images(1)[:8]
    labels = predict(model, images)
    assert accuracy(model, images, labels) == 1.0
    labels[:2] = (labels[:2] + 1) % 10
    assert accuracy(model, images, labels) == 0.75
    with pytest.raises(ValueError, match="8 and 7"):
        accuracy(model, images, labels[:7])


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 3, 28, 28), ValueError, r"\(N, 1, 28, 28\), got \(1, 3, 28, 28\)"),
        (torch.zeros(1, 28, 28), ValueError, r"got \(1, 28, 28\)"),
        (torch.zeros(1, 1, 28, 28, dtype=torch.int64), TypeError, "int64"),
    ],
)
def test_bad_input(images: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        random_classifier(FASHION)(images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (28, 27)}, "image_size"),
        ({"channels": 2}, "channels"),
        ({"widths": (4, 8)}, "widths"),
        ({"widths": (4, 7, 16)}, "even steps"),
        ({"units": 0}, "units"),
        ({"classes": 1}, "classes"),
        ({"leakiness": 1.0}, "leakiness"),
    ],
)
def test_bad_configuration(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**{"image_size": (28, 28), "channels": 1, "widths": (4, 8, 16), **changes})


def test_files_hold_the_model_bit_for_bit(tmp_path) -> None:
    """Saving rounds convolutions to bf16 once; from then on nothing changes."""
    save_classifier(random_classifier(FASHION), tmp_path / "a.safetensors", notes={"test_accuracy": 0.5})
    first = load_classifier(tmp_path / "a.safetensors")
    save_classifier(first, tmp_path / "b.safetensors", notes={"test_accuracy": 0.5})
    second = load_classifier(tmp_path / "b.safetensors")
    assert first.config == FASHION
    assert not second.training
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    stored, _ = read_safetensors(tmp_path / "b.safetensors", FORMAT)
    types = {name: value.dtype for name, value in stored.items()}
    assert types["units.0.conv1.weight"] == types["output.weight"] == torch.bfloat16
    assert types["units.0.activation1.norm.running_var"] == types["output.bias"] == torch.float32
    assert read_notes(tmp_path / "b.safetensors") == {"test_accuracy": 0.5}


def test_unknown_truncated_and_foreign_files_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"'mnist'.*fashion-mnist"):
        load_classifier("mnist")
    with pytest.raises(TypeError, match="int"):
        load_classifier(3)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_classifier(tmp_path / "nowhere.safetensors")
    path = tmp_path / "model.safetensors"
    save_classifier(random_classifier(SMALL), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated"):
        load_classifier(path)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="another kind"):
        load(path)


def test_augmentation_flips_and_shifts() -> None:
    """Every augmented image is one of the 2 * 9 that flips and shifts by one pixel give, and many kinds occur."""
    image = bundled_images(1)[3:4]
    settings = ClassifierSettings(max_shift=1)
    augmented = augment(image.expand(200, -1, -1, -1), settings, torch.Generator().manual_seed(0))
    padded = [F.pad(x, (1, 1, 1, 1)) for x in (image, image.flip(3))]
    candidates = torch.cat([x[:, :, i : i + 28, j : j + 28] for x in padded for i in range(3) for j in range(3)])
    matches = (augmented[:, None] == candidates[None]).flatten(2).all(2)
    assert (matches.sum(1) >= 1).all()
    assert (matches.sum(0) > 0).all()
    plain = ClassifierSettings(max_shift=0, horizontal_flips=False)
    assert torch.equal(augment(image, plain, torch.Generator()), image)


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training data that need no files: real images, labelled by whether they are bright."""
    images = bundled_images(1)
    brightness = images.float().mean((1, 2, 3))
    labels = (brightness > brightness.median()).long()
    monkeypatch.setattr(training, "load_dataset", lambda name, root, train: (images, labels))


def test_training_learns(small_data: None, tmp_path) -> None:
    settings = ClassifierSettings(epochs=20, batch_size=16, learning_rate=0.05)
    train_classifier("fashion-mnist", "", tmp_path / "a.safetensors", settings=settings, progress=False)
    notes = read_notes(tmp_path / "a.safetensors")
    assert notes["test_accuracy"] >= 0.8
    assert notes["test_images"] == len(bundled_images(1))
    assert notes["steps"] == 20 * 4
    assert notes["training"]["epochs"] == 20
    model = load_classifier(tmp_path / "a.safetensors")
    images, labels = training.load_dataset("fashion-mnist", "", train=False)
    assert accuracy(model, images, labels) == notes["test_accuracy"]


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(
    small_data: None, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ClassifierSettings(epochs=2, batch_size=16, precision="fp32")

    def train(name: str, **changes) -> ResNet:
        options = {"settings": settings, "progress": False, "checkpoint_interval": 0.0, **changes}
        return train_classifier("fashion-mnist", "", tmp_path / name, **options)

    whole = train("whole.safetensors")
    train_step = ClassifierTrainer.train_step

    def interrupted(trainer: ClassifierTrainer) -> tuple[float, float]:
        if trainer.step == 5:
            raise KeyboardInterrupt
        return train_step(trainer)

    monkeypatch.setattr(ClassifierTrainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("parts.safetensors")
    assert not (tmp_path / "parts.safetensors").exists()
    monkeypatch.setattr(ClassifierTrainer, "train_step", train_step)
    with pytest.raises(FileExistsError, match="checkpoint"):
        train("parts.safetensors")
    parts = train("parts.safetensors", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    with pytest.raises(ValueError, match="another settings"):
        train("parts.safetensors", resume=True, settings=dataclasses.replace(settings, seed=1))


def test_training_refuses_bad_input(small_data: None, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"'mnist'.*cifar10, fashion-mnist"):
        train_classifier("mnist", "", tmp_path / "a.safetensors")
    settings = ClassifierSettings(batch_size=16)
    with pytest.raises(FileNotFoundError, match="no such file"):
        train_classifier("fashion-mnist", "", tmp_path / "a.safetensors", resume=True, settings=settings)
    with pytest.raises(ValueError, match="128 images, got 64"):
        train_classifier("fashion-mnist", "", tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="epochs"):
        ClassifierSettings(epochs=0)
    with pytest.raises(ValueError, match="precision"):
        ClassifierSettings(precision="fp16")


def test_shipped_classifier_is_the_papers_and_small() -> None:
    model, notes = load_classifier("fashion-mnist"), read_notes("fashion-mnist")
    assert model.config == FASHION
    assert classifier_path("fashion-mnist").stat().st_size < 2**20
    assert notes["test_images"] == 10_000
    assert notes["test_accuracy"] >= 0.88
    json.dumps(notes)


def test_shipped_classifier_reaches_its_recorded_accuracy(data_root) -> None:
    """On the first 1,000 test images; 3 points are more than three standard errors of that many."""
    images, labels = load_dataset("fashion-mnist", data_root, train=False)
    measured = accuracy(load_classifier("fashion-mnist"), images[:1000], labels[:1000])
    assert measured >= read_notes("fashion-mnist")["test_accuracy"] - 0.03
