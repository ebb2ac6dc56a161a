"""Data sets: torchvision's by name, and folders of image files."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pxfast import load
from pxfast.classifiers.architectures import architecture_for
from pxfast.cli.main import main
from pxfast.data.datasets import (
    UNLABELLED,
    class_count,
    first_images,
    first_numbers,
    image_names,
    image_shape,
    load_dataset,
)
from pxfast.pixelcnn.training import preset


def write(path: Path, value: int, size: tuple[int, int] = (4, 4), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, 3)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


def values(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_class_folders_give_labels_by_name(tmp_path: Path) -> None:
    write(tmp_path / "shirt" / "b.png", 1)
    write(tmp_path / "shirt" / "deep" / "c.bmp", 2)
    write(tmp_path / "bag" / "z.png", 3)
    write(tmp_path / ".hidden" / "z.png", 4)
    (tmp_path / "bag" / "notes.txt").write_text("no image")
    images, labels = load_dataset(tmp_path, train=None)
    assert images.dtype == torch.uint8
    assert images.shape == (3, 1, 4, 4)
    assert values(images) == [3, 1, 2]
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 1, 1]
    assert image_shape(tmp_path) == (1, 4, 4)


def test_images_in_hidden_folders_are_left_out_at_any_depth(tmp_path: Path) -> None:
    """Such as the copies that notebooks keep, which would come into the test images."""
    data = tmp_path / ".cache" / "data"  # what is hidden above a data set does not matter
    write(data / "shirt" / "a.png", 1)
    write(data / "shirt" / ".ipynb_checkpoints" / "a-checkpoint.png", 2)
    write(data / "shirt" / "deep" / ".hidden" / "deeper" / "b.png", 3)
    write(data / "shirt" / "deep" / "c.png", 4)
    assert values(load_dataset(data, train=None)[0]) == [1, 4]


def test_labels_are_those_of_torchvisions_image_folder(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    for i, name in enumerate(("10", "2", "Bag", "ankle")):
        for k in range(2):
            write(tmp_path / name / f"{k}.png", 10 * i + k)
    images, labels = load_dataset(tmp_path, train=None)
    theirs = ImageFolder(str(tmp_path))
    assert labels.tolist() == theirs.targets
    assert values(images) == [image.getpixel((0, 0))[0] for image, _ in theirs]


def test_a_flat_folder_is_unlabelled_and_every_tenth_image_is_held_out(tmp_path: Path) -> None:
    for i in range(21):
        write(tmp_path / f"{i:02d}.png", i, mode="RGB")
    images, labels = load_dataset(tmp_path, train=None)
    assert images.shape == (21, 3, 4, 4)
    assert set(labels.tolist()) == {UNLABELLED}
    assert values(load_dataset(tmp_path, train=False)[0]) == [0, 10, 20]
    assert values(load_dataset(tmp_path, train=True)[0]) == [i for i in range(21) if i % 10]


def test_train_and_test_folders(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a" / "1.png", 1)
    write(tmp_path / "train" / "b" / "2.png", 2)
    write(tmp_path / "test" / "b" / "3.png", 3)
    images, labels = load_dataset(tmp_path, train=True)
    assert values(images) == [1, 2]
    assert labels.tolist() == [0, 1]
    for train in (False, None):
        images, labels = load_dataset(tmp_path, train=train)
        assert values(images) == [3]
        assert labels.tolist() == [1]  # b is the second class, though test has no a


@pytest.mark.parametrize(
    "files",
    [
        ("train/a/1.png", "val/a/2.png"),
        ("train/1.png", "valid/2.png"),
        ("train/a/1.png",),
        ("test/1.png",),
        ("Train/a/1.png", "Test/a/2.png"),
        ("train/a/1.png", "notes/1.png"),
    ],
)
def test_parts_that_are_not_train_and_test_are_no_classes(tmp_path: Path, files: tuple[str, ...]) -> None:
    for file in files:
        write(tmp_path / file, 1)
    words = r"has (train|test|Test, Train|train, val).*which would be its classes: expected both train and test"
    for call in (lambda: load_dataset(tmp_path, train=True), lambda: class_count(tmp_path)):
        with pytest.raises(ValueError, match=words):
            call()


def test_the_names_of_images_of_several_classes_differ(tmp_path: Path) -> None:
    for file in ("a/1.png", "b/1.png", "b/deep/1.0.png"):
        write(tmp_path / file, 1)
    assert image_names(tmp_path) == ["a/1", "b/1", "b/deep/1.0"]


def test_a_class_may_be_called_as_a_part_is(tmp_path: Path) -> None:
    write(tmp_path / "car" / "1.png", 1)
    write(tmp_path / "train" / "2.png", 2)
    images, labels = load_dataset(tmp_path, train=None)
    assert values(images) == [1, 2]
    assert labels.tolist() == [0, 1]


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'imagenet'.*cifar10, cifar100, fashion-mnist, mnist, svhn.*folder"):
        load_dataset("imagenet", train=True)
    with pytest.raises(ValueError, match=r"cifar10 needs a root"):
        load_dataset("cifar10", train=True)
    with pytest.raises(FileNotFoundError, match="cifar10"):
        load_dataset("cifar10", tmp_path, train=True)
    with pytest.raises(ValueError, match="no image files"):
        load_dataset(tmp_path, train=None)
    write(tmp_path / "a.png", 1)
    with pytest.raises(ValueError, match="nothing is left to train on"):
        load_dataset(tmp_path, train=True)
    write(tmp_path / "b.png", 1, size=(4, 6))
    with pytest.raises(ValueError, match=r"b\.png.*\(1, 4, 6\).*a\.png.*\(1, 4, 4\)"):
        load_dataset(tmp_path, train=None)
    write(tmp_path / "c" / "d.png", 1)
    with pytest.raises(ValueError, match=r"a\.png.*beside the folders"):
        load_dataset(tmp_path, train=None)


def test_shapes_and_classes_of_names() -> None:
    assert image_shape("cifar10") == (3, 32, 32)
    assert image_shape("fashion-mnist") == (1, 28, 28)
    assert class_count("cifar10") == class_count("fashion-mnist") == 10


@given(st.integers(1, 3000), st.data())
def test_the_first_images_of_a_folder_are_of_all_its_classes(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    numbers = first_numbers("folder", total, count)
    assert len(set(numbers)) == count
    assert numbers == first_numbers("folder", total, total)[:count], "fewer are the beginning of more"
    tenths = np.bincount(np.array(numbers) * 10 // total, minlength=10)
    assert tenths.max() - tenths.min() <= 4 + 10 / total * 4, "spread over the folder"
    assert first_numbers("cifar10", total, count) == list(range(count))
    values = torch.arange(total)
    assert first_images("folder", values, total + 5).sort().values.equal(values)


def test_the_first_images_of_a_folder_by_hand() -> None:
    """In the order of the fractions of their numbers times the golden ratio: 0.618, 0.236, 0.854, 0.472, 0.090, ..."""
    assert first_numbers("folder", 10, 10) == [0, 5, 2, 7, 4, 9, 1, 6, 3, 8]
    assert first_numbers("folder", 4, 3) == [0, 2, 1]


def test_networks_for_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / "classes" / name / "1.png", 1, size=(8, 12), mode="RGB")
    write(tmp_path / "flat" / "1.png", 1, size=(8, 12))
    classifier = architecture_for("resnet62", str(tmp_path / "classes"))
    assert (classifier.image_size, classifier.channels, classifier.classes) == ((8, 12), 3, 3)
    with pytest.raises(ValueError, match="no labels"):
        architecture_for("resnet62", str(tmp_path / "flat"))
    write(tmp_path / "one" / "a" / "1.png", 1, size=(8, 12))
    with pytest.raises(ValueError, match="one has the folder of one class alone"):
        architecture_for("resnet62", str(tmp_path / "one"))
    for folder, channels, like in (("classes", 3, "cifar10"), ("flat", 1, "fashion-mnist")):
        config, _ = preset("full", str(tmp_path / folder))
        assert (config.image_size, config.channels) == ((8, 12), channels)
        assert config.filters == preset("full", like)[0].filters
    with pytest.raises(ValueError, match="unknown data set 'imagenet'"):
        preset("full", "imagenet")


def test_a_model_is_trained_on_a_folder(tmp_path: Path, monkeypatch, capfd) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(12):
        Image.fromarray(generator.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "data" / f"{i:02d}.png")
    arguments = [tmp_path / "data", "--out", tmp_path / "model.safetensors", "--filters", 4, "--resnets", 1]
    arguments += ["--batch-size", 5, "--epochs", 1, "--device", "cpu", "--precision", "fp32"]
    monkeypatch.setattr(sys, "argv", ["pxfast", "train", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capfd.readouterr()
    assert not stop.value.code, err
    assert "bits/dim on the test set" in out
    assert load(str(tmp_path / "model.safetensors")).config.image_size == (8, 8)
