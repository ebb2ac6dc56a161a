"""Files of classifiers, and the shipped ones."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.helpers import bundled_images
from support.small_classifiers import FASHION, SMALL, SMALL_ONES, random_classifier

from pxfast.classifiers import accuracy, load_classifier, save_classifier
from pxfast.classifiers.architectures import architecture_for
from pxfast.classifiers.weights import FORMAT, SHIPPED, read_notes, runs_in, stored_tensors
from pxfast.data.datasets import load_dataset
from pxfast.evaluation.classifier_needs import ClassifierNeed
from pxfast.pixelcnn.shipped import load
from pxfast.tensors.safetensors import read_safetensors


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
