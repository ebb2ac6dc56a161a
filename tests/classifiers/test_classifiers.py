"""Classifiers: their architectures, inputs and files, and the shipped one's accuracy."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from support.helpers import bundled_images
from torch import Tensor, nn

from pxfast.classifiers import (
    ARCHITECTURES,
    Classifier,
    ClassifierConfig,
    ResNet,
    ResNet18Config,
    ResNetConfig,
    VGGConfig,
    WideResNetConfig,
    accuracy,
    architecture,
    build,
    load_classifier,
    predict,
    save_classifier,
)
from pxfast.classifiers.architectures import architecture_for
from pxfast.classifiers.classifier import NormActivation, standardise
from pxfast.classifiers.resnet import ResidualUnit
from pxfast.classifiers.weights import FORMAT, SHIPPED, read_notes, runs_in, stored_tensors
from pxfast.classifiers.wide_resnet import WideUnit
from pxfast.data.datasets import DATASETS, load_dataset
from pxfast.evaluation.classifier_needs import ClassifierNeed
from pxfast.pixelcnn.shipped import load
from pxfast.tensors.safetensors import read_safetensors

FASHION = ResNetConfig((28, 28), 1, (4, 8, 16))
CIFAR = ResNetConfig((32, 32), 3, (16, 32, 64))
SMALL = ResNetConfig((28, 28), 1, (4, 8, 16), units=1)


SMALL_ONES = {
    "resnet": SMALL,
    "vgg": VGGConfig((28, 28), 1, ((4, 2), (8, 1)), hidden=8),
    "resnet18": ResNet18Config((28, 28), 1),
    "wide-resnet": WideResNetConfig((28, 28), 1, depth=10, widen=1),
}


def random_classifier(config: ClassifierConfig, seed: int = 0) -> Classifier:
    """In eval mode, with batch normalisation as training would leave it rather than at its start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_var.uniform_(0.5, 1.5)
                    module.weight.uniform_(0.5, 1.5)
                    module.running_mean.normal_(0.0, 0.2)
                    module.bias.normal_(0.0, 0.2)
    return model.eval()


def layer_table(config: ClassifierConfig) -> tuple[list[tuple[str, int, int, int]], int]:
    """Every convolution and linear layer in the order of evaluation: kind, features in and out, height of the result.

    And the number of parameters.

    The 1x1 convolutions of shortcuts are left out. Nothing is computed: 'meta' tensors have a shape alone.
    """
    table = []
    with torch.device("meta"):
        model = build(config)

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            table.append(("linear", module.in_features, module.out_features, 1))
        elif module.kernel_size != (1, 1):
            assert module.kernel_size == (3, 3)
            table.append(("conv", module.in_channels, module.out_channels, output.shape[2]))

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(note)
    H, W = config.image_size
    logits = model(torch.zeros(2, config.channels, H, W, dtype=torch.uint8, device="meta"))
    assert logits.shape == (2, 10)
    assert logits.dtype == torch.float32
    return table, sum(parameter.numel() for parameter in model.parameters())


def convolutions(*rows: tuple[int, int, int], channels: int) -> list[tuple[str, int, int, int]]:
    """A layer table from rows of (how many, feature maps, height)."""
    table = []
    for count, maps, height in rows:
        for _ in range(count):
            table.append(("conv", channels, maps, height))
            channels = maps
    return table


def linear(i: int, o: int) -> tuple[str, int, int, int]:
    return ("linear", i, o, 1)


# Written down from the papers' tables: appendix C.1 and C.2 of PixelDefend, table 1 of He et al. 2016 (with the 3x3
# first convolution for small images) and of Zagoruyko & Komodakis 2016.
TABLES = {
    ("resnet62", "cifar10"): [
        *convolutions((1 + 20, 16, 32), (20, 32, 16), (20, 64, 8), channels=3),
        linear(64, 10),
    ],
    ("resnet62", "fashion-mnist"): [
        *convolutions((1 + 20, 4, 28), (20, 8, 14), (20, 16, 7), channels=1),
        linear(16, 10),
    ],
    ("vgg16", "cifar10"): [
        *convolutions((2, 16, 32), (2, 128, 16), (3, 512, 8), (3, 512, 4), channels=3),
        linear(512 * 2 * 2, 512),
        linear(512, 10),
    ],
    ("vgg16", "fashion-mnist"): [
        *convolutions((2, 4, 28), (2, 32, 14), (3, 128, 7), (3, 128, 3), channels=1),
        linear(128, 128),
        linear(128, 10),
    ],
    ("vgg16-released", "cifar10"): [
        *convolutions((2, 64, 32), (2, 128, 16), (3, 256, 8), (3, 512, 4), (3, 512, 2), channels=3),
        linear(512, 512),
        linear(512, 10),
    ],
    ("vgg16-released", "fashion-mnist"): [
        *convolutions((2, 16, 28), (2, 32, 14), (3, 64, 7), (3, 128, 3), (3, 128, 1), channels=1),
        linear(128, 128),
        linear(128, 10),
    ],
    ("resnet18", "cifar10"): [
        *convolutions((1 + 4, 64, 32), (4, 128, 16), (4, 256, 8), (4, 512, 4), channels=3),
        linear(512, 10),
    ],
    ("resnet18", "fashion-mnist"): [
        *convolutions((1 + 4, 64, 28), (4, 128, 14), (4, 256, 7), (4, 512, 4), channels=1),
        linear(512, 10),
    ],
    ("wrn28-10", "cifar10"): [
        *convolutions((1, 16, 32), (8, 160, 32), (8, 320, 16), (8, 640, 8), channels=3),
        linear(640, 10),
    ],
    ("wrn28-10", "fashion-mnist"): [
        *convolutions((1, 16, 28), (8, 160, 28), (8, 320, 14), (8, 640, 7), channels=1),
        linear(640, 10),
    ],
}

# Published counts: 11,173,962 (ResNet-18 for CIFAR-10) and 36.5 million (WRN-28-10, table 1 of its paper); the others
# follow from the tables: 9 i o per convolution, 2 o per batch normalisation, (i + 1) o per linear layer.
PARAMETERS = {
    ("resnet62", "cifar10"): 950_234,
    ("resnet62", "fashion-mnist"): 60_374,
    ("vgg16", "cifar10"): 13_615_866,
    ("vgg16", "fashion-mnist"): 804_174,
    ("vgg16-released", "cifar10"): 14_986_698,
    ("resnet18", "cifar10"): 11_173_962,
    ("wrn28-10", "cifar10"): 36_479_194,
}


@pytest.mark.parametrize(("name", "dataset"), TABLES)
def test_architecture_is_the_published_one(name: str, dataset: str) -> None:
    table, parameters = layer_table(architecture(name, DATASETS[dataset]))
    assert table == TABLES[name, dataset]
    if (name, dataset) in PARAMETERS:
        assert parameters == PARAMETERS[name, dataset]


def test_every_architecture_is_in_the_tables() -> None:
    assert {name for name, _ in TABLES} == set(ARCHITECTURES)
    with pytest.raises(ValueError, match=r"'vgg19'.*resnet62"):
        architecture("vgg19", (1, 28, 28))


@pytest.mark.parametrize("name", ["vgg16", "vgg16-released"])
def test_parameters_of_vgg_follow_from_the_table(name: str) -> None:
    """Counted from the layers, so that a bias or a missing normalisation would show."""
    table = TABLES[name, "cifar10"]
    counted = sum(9 * i * o + 2 * o if kind == "conv" else (i + 1) * o for kind, i, o, _ in table)
    assert counted == PARAMETERS[name, "cifar10"]


def test_vgg_drops_features_only_in_training_and_before_both_linear_layers() -> None:
    model = random_classifier(SMALL_ONES["vgg"])
    images = bundled_images(1)[:4]
    torch.testing.assert_close(model(images), model(images), rtol=0, atol=0)
    seen = []
    for linear_layer in (model.hidden, model.output):
        linear_layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(images)
    whole = [float((values == 0).double().mean()) for values in seen]
    seen.clear()
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model(images.repeat(16, 1, 1, 1))
    for before, values in zip(whole, seen, strict=True):
        dropped = float((values == 0).double().mean())
        # of what is not zero anyway (by ReLU), half
        assert dropped == pytest.approx(before + 0.5 * (1 - before), abs=0.12)


def test_wider_units_of_a_wide_resnet_project_the_activated_input() -> None:
    unit = WideUnit(4, 8, stride=2, dropout=0.0).eval()
    nn.init.zeros_(unit.conv2.weight)
    x = torch.randn(3, 4, 6, 6)
    expected = F.conv2d(F.relu(x / math.sqrt(1 + 1e-5)), unit.shortcut.weight, stride=2)
    torch.testing.assert_close(unit(x), expected)
    plain = WideUnit(4, 4, stride=1, dropout=0.0).eval()
    nn.init.zeros_(plain.conv2.weight)
    assert torch.equal(plain(x), x)


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


@pytest.mark.parametrize("kind", SMALL_ONES)
def test_uint8_and_floats_in_0_1_give_the_same_logits(kind: str) -> None:
    model, images = random_classifier(SMALL_ONES[kind]), bundled_images(1)[:8]
    assert torch.equal(model(images), model(images.float() / 255))
    torch.testing.assert_close(model(images), model(images.double() / 255))


@pytest.mark.parametrize("kind", SMALL_ONES)
def test_contrast_and_brightness_do_not_matter(kind: str) -> None:
    """Each image is standardised within the model, whatever the architecture."""
    model, images = random_classifier(SMALL_ONES[kind]), bundled_images(1)[:4] // 2
    torch.testing.assert_close(model(images), model(images * 2 + 1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", SMALL_ONES)
def test_gradients_with_respect_to_the_image_are_those_of_finite_differences(kind: str) -> None:
    model = random_classifier(SMALL_ONES[kind])
    model.double()
    generator = torch.Generator().manual_seed(0)
    # through the network alone in fp64, since the model's own door makes fp32 of it; noise, since an even background
    # has ties in every max pooling, where there is no derivative
    x, direction = torch.randn((2, 1, 1, 28, 28), dtype=torch.float64, generator=generator)

    def loss(values: Tensor) -> Tensor:
        features = []
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        handle = last.register_forward_hook(lambda module, inputs, output: features.append(output))
        model.logits(values)
        handle.remove()
        return F.cross_entropy(features[0], torch.tensor([3]))

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    step = 1e-7
    measured = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), measured, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", SMALL_ONES)
def test_there_is_a_gradient_at_the_image(kind: str) -> None:
    model = random_classifier(SMALL_ONES[kind])
    x = (bundled_images(1)[:2].float() / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), torch.tensor([3, 4])), x)
    assert gradient.isfinite().all()
    assert (gradient != 0).double().mean() > 0.5


def test_predictions_do_not_depend_on_the_batch() -> None:
    model, images = random_classifier(FASHION), bundled_images(1)[:16]
    together = model(images)
    torch.testing.assert_close(together[5:6], model(images[5:6]), rtol=1e-4, atol=1e-4)
    assert torch.equal(predict(model, images), together.argmax(1))
    assert predict(model, images[:0]).shape == (0,)


def test_accuracy() -> None:
    model, images = random_classifier(FASHION), bundled_images(1)[:8]
    labels = predict(model, images)
    assert accuracy(model, images, labels) == 1.0
    labels[:2] = (labels[:2] + 1) % 10
    assert accuracy(model, images, labels) == 0.75
    with pytest.raises(ValueError, match=r"expected labels \(8,\), one per image, got \(7,\)"):
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
        ({"units": 10**6}, "units"),
        ({"widths": (10**9, 10**9, 10**9)}, "widths"),
        ({"image_size": (1 << 20, 1 << 20)}, "image_size"),
        ({"classes": 1}, "classes"),
        ({"leakiness": 1.0}, "leakiness"),
    ],
)
def test_bad_configuration(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**{"image_size": (28, 28), "channels": 1, "widths": (4, 8, 16), **changes})


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (VGGConfig, {"blocks": ((4, 0),), "hidden": 8}, "blocks"),
        (VGGConfig, {"blocks": (), "hidden": 8}, "blocks"),
        (VGGConfig, {"blocks": ((4, 1),), "hidden": 0}, "hidden"),
        (VGGConfig, {"blocks": ((4, 1),), "hidden": 8, "dropout": 1.0}, "dropout"),
        (WideResNetConfig, {"depth": 27}, "6 n"),
        (WideResNetConfig, {"widen": 0}, "widen"),
        (ResNet18Config, {"classes": True}, "classes"),
        (ResNet18Config, {"classes": 10**9}, "classes"),
        (VGGConfig, {"blocks": ((4, 10**6),), "hidden": 8}, "blocks"),
        (VGGConfig, {"blocks": ((4, 1),), "hidden": 10**9}, "hidden"),
        (WideResNetConfig, {"depth": 6 * 10**6 + 4}, "6 n"),
        (WideResNetConfig, {"widen": 10**9}, "widen"),
    ],
)
def test_bad_configuration_of_the_others(config: type[ClassifierConfig], changes: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        config((28, 28), 1, **changes)


@pytest.mark.parametrize("kind", SMALL_ONES)
def test_files_of_every_architecture(kind: str, tmp_path) -> None:
    model, images = random_classifier(SMALL_ONES[kind]), bundled_images(1)[:4]
    save_classifier(model, tmp_path / "a.safetensors", notes={"x": 1})
    loaded = load_classifier(tmp_path / "a.safetensors")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    stored = stored_tensors(model)
    for name, value in stored_tensors(loaded).items():
        assert torch.equal(value, stored[name]), name
    torch.testing.assert_close(loaded(images), model(images), rtol=0.1, atol=0.1)
    assert not torch.equal(loaded(images), torch.zeros(4, 10))


def test_files_of_unknown_architectures_are_refused(tmp_path) -> None:
    model = random_classifier(SMALL)
    config = json.dumps(dataclasses.asdict(SMALL))
    metadata = {"format": FORMAT, "architecture": "transformer", "config": config, "notes": "{}"}
    save_file(stored_tensors(model), tmp_path / "odd.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"'transformer'.*resnet18"):
        load_classifier(tmp_path / "odd.safetensors")


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


def test_shipped_classifier_is_the_papers_and_small() -> None:
    model, notes = load_classifier("fashion-mnist"), read_notes("fashion-mnist")
    assert model.config == FASHION
    assert SHIPPED["fashion-mnist"].stat().st_size < 2**20
    assert notes["test_images"] == 10_000
    assert notes["test_accuracy"] >= 0.88
    json.dumps(notes)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_classifiers_file_says_what_it_is(name: str) -> None:
    notes, config = read_notes(name), load_classifier(name).config
    dataset = next(each for each in ("cifar10", "fashion-mnist") if name.startswith(each))
    rest = name.removeprefix(dataset).removeprefix("-")
    architecture, training = rest.split("-", 1) if rest else ("resnet62", "normal")
    assert (notes["dataset"], config) == (dataset, architecture_for(architecture, dataset))
    if training.startswith("cells"):
        assert notes["training"]["behind"].startswith(f"cells:width={training.removeprefix('cells')},guess=midpoints")
    else:
        assert notes["training"].get("defence", "none") == ("none" if training == "normal" else training)
    starts = {run["training"].get("start") for run in runs_in(notes)}
    assert starts <= {None, *SHIPPED}, "names, and no path of the machine that trained it"
    assert ClassifierNeed(dataset, architecture, training).find(Path("nowhere")) == SHIPPED[name]
    assert ClassifierNeed(f"folder/{dataset}", architecture, training).find(Path("nowhere")) is None
    assert SHIPPED.name_for((config.channels, *config.image_size)) == dataset, "the normal ResNet"


def test_a_classifier_of_another_folder_of_the_same_name_is_refused(tmp_path, monkeypatch) -> None:
    """As its file is called the same; notes that leave its data open are accepted."""
    ours, theirs, out = tmp_path / "a" / "photos", tmp_path / "b" / "photos", tmp_path / "c.safetensors"
    ours.mkdir(parents=True)
    (tmp_path / "link").symlink_to(ours)
    monkeypatch.chdir(tmp_path)
    need = ClassifierNeed(str(ours), "resnet62", "normal")
    for noted in (None, 3, "photos", str(ours), str(tmp_path / "link")):
        save_classifier(random_classifier(SMALL), out, notes={} if noted is None else {"dataset": noted}, force=True)
        need.check(out)
        ClassifierNeed("a/photos", "resnet62", "normal").check(out)
    for noted, dataset in ((str(theirs), str(ours)), ("cifar10", str(ours)), ("mnist", "fashion-mnist")):
        save_classifier(random_classifier(SMALL), out, notes={"dataset": noted}, force=True)
        with pytest.raises(ValueError, match=rf"is a classifier of {noted}, expected one of {dataset}: keep"):
            ClassifierNeed(dataset, "resnet62", "normal").check(out)


@pytest.mark.whole  # in the inner loop: test_accuracy.py, on fewer images
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_classifier_reaches_its_recorded_accuracy(name: str, data_root) -> None:
    """On the first 1,000 test images; 3 points are more than three standard errors of that many."""
    notes = read_notes(name)
    images, labels = load_dataset(notes["dataset"], data_root, train=False)
    measured = accuracy(load_classifier(name), images[:1000], labels[:1000])
    assert abs(measured - notes["test_accuracy"]) <= 0.03
