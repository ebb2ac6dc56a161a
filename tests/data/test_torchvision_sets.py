"""torchvision's data sets by name: read from small files of the real formats, and fetched where asked alone."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.torchvision_files import (
    COUNTS,
    archive_of,
    images_of,
    labels_of,
    trust_files_of,
    write_cifar100,
    write_mnist,
    write_svhn,
)

import pxfast
from pxfast.adp.training import score_preset
from pxfast.classifiers import ResNetConfig, load_classifier
from pxfast.classifiers.architectures import ARCHITECTURES, architecture_for
from pxfast.data import load_dataset
from pxfast.data.datasets import class_count, fetch_dataset, image_shape
from pxfast.pixelcnn.training import preset

WRITERS = {"mnist": write_mnist, "svhn": write_svhn, "cifar100": write_cifar100}
SHAPES = {"mnist": (1, 28, 28), "svhn": (3, 32, 32), "cifar100": (3, 32, 32)}
CLASSES = {"mnist": 10, "svhn": 10, "cifar100": 100}


@pytest.fixture(params=WRITERS)
def named(request, tmp_path, monkeypatch) -> tuple[str, Path]:
    """A data set's name, and a root with small files of it."""
    if request.param == "svhn":
        pytest.importorskip("scipy", reason="torchvision reads SVHN's files by scipy")
    WRITERS[request.param](tmp_path)
    trust_files_of(tmp_path, monkeypatch)
    return request.param, tmp_path


def test_images_and_labels_are_those_of_the_files(named):
    name, root = named
    channels, side, _ = SHAPES[name]
    for train in (True, False):
        images, labels = load_dataset(name, root, train=train)
        assert torch.equal(images, images_of(channels, side, train))
        assert images.is_contiguous()
        assert labels.dtype == torch.int64
        assert labels.tolist() == labels_of(CLASSES[name], train).tolist()
    assert torch.equal(load_dataset(name, root, train=None)[0], images)
    assert image_shape(name) == SHAPES[name]
    assert class_count(name) == CLASSES[name]


def test_networks_are_made_for_them():
    for name, like in (("mnist", "fashion-mnist"), ("svhn", "cifar10"), ("cifar100", "cifar10")):
        (config, settings), (other, theirs) = preset("small", name), preset("small", like)
        assert config == other
        assert settings.horizontal_flips == (name == "cifar100")
        assert theirs.horizontal_flips == (like == "cifar10")
        assert score_preset("small", name)[0] == score_preset("small", like)[0]
        assert score_preset("small", name)[1].horizontal_flips == (name == "cifar100")
        assert architecture_for("resnet18", name).classes == CLASSES[name]


@pytest.mark.parametrize(
    "named", ["mnist", *(pytest.param(name, marks=pytest.mark.whole) for name in ("svhn", "cifar100"))], indirect=True
)
def test_a_model_and_a_classifier_are_trained_and_attacked(named, run_here, refused, monkeypatch, tmp_path):
    name, root = named
    small = lambda size, channels, classes: ResNetConfig(size, channels, (4, 6, 8), units=1, classes=classes)  # noqa: E731
    monkeypatch.setitem(ARCHITECTURES, "vgg16", small)
    common = ["--root", root, "--device", "cpu", "--batch-size", 4, "--epochs", 0.4, "--precision", "fp32", "--quiet"]
    model, judge = tmp_path / "m.safetensors", tmp_path / "c.safetensors"
    run_here("train", name, "--out", model, "--filters", 2, "--resnets", 1, *common)
    assert pxfast.load(str(model)).config.image_size == SHAPES[name][1:]
    run_here("train-classifier", name, "vgg16", "--out", judge, *common)
    assert load_classifier(judge).config.classes == CLASSES[name]
    words = ["attack", name, "--root", root, "--attack", "fgsm", "--out", tmp_path / "a.npy", "--device", "cpu"]
    out, _ = run_here(*words, "--classifier", judge, "--json", "--quiet")
    assert json.loads(out)["images"] == COUNTS[False]
    assert np.load(tmp_path / "a.npy").shape == (COUNTS[False], *SHAPES[name])
    assert f"no classifier is shipped for {name}" in refused(*words, "--force")


def test_what_is_not_there_is_told_with_what_to_do(refused, tmp_path):
    places = {"mnist": "MNIST/raw", "svhn": "train_32x32.mat", "cifar100": "cifar-100-python", "cifar10": "cifar-10-"}
    for name, place in places.items():
        message = rf"{name} was not found under .*expected .*{place}.*--download \(download=True\)"
        with pytest.raises(FileNotFoundError, match=message):
            load_dataset(name, tmp_path, train=True)
    said = refused("train", "mnist", "--root", tmp_path, "--out", tmp_path / "m.safetensors")
    assert "mnist was not found under" in said
    assert "--download" in said
    with pytest.raises(ValueError, match="mnist needs a root"):
        load_dataset("mnist", train=True)
    with pytest.raises(ValueError, match=r"can't be downloaded; known: cifar10, cifar100, fashion-mnist, mnist, svhn"):
        load_dataset(tmp_path, train=True, download=True)
    with pytest.raises(TypeError, match="download must be True or False, got 'yes'"):
        load_dataset("mnist", tmp_path, train=True, download="yes")
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_told(named):
    name, root = named
    files = sorted(file for file in root.rglob("*") if file.is_file() and "t10k" not in file.name)
    (file,) = [file for file in files if "train" in file.name and "labels" not in file.name]
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"{name} under .* is damaged: .*; remove .* and fetch it again"):
        load_dataset(name, root, train=True)


def test_labels_beyond_the_classes_are_told(tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(ValueError, match=r"mnist under .* is damaged: .* labels in 0\.\.9"):
        load_dataset("mnist", tmp_path, train=True)


@pytest.fixture
def server(tmp_path) -> Iterator[tuple[str, Path, list[str]]]:
    """An address on this machine, the folder whose files it gives, and the paths that were asked of it."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *arguments) -> None:
            """Nothing is said."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}/", folder, asked
        found.shutdown()


def served_mnist(server, monkeypatch) -> None:
    from torchvision import datasets

    address, folder, _ = server
    write_mnist(folder, archives=True)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(datasets.MNIST, "resources", [(name, None) for name, _ in datasets.MNIST.resources])


def test_mnist_is_downloaded_once_and_only_where_asked(server, monkeypatch, tmp_path, capfd):
    served_mnist(server, monkeypatch)
    root = tmp_path / "new" / "root"
    with pytest.raises(FileNotFoundError):
        load_dataset("mnist", root, train=True)
    assert server[2] == []
    images, _ = load_dataset("mnist", root, train=True, download=True)
    assert torch.equal(images, images_of(1, 28, True))
    assert f"downloading MNIST to {root}" in capfd.readouterr().err
    assert [path.name for path in root.iterdir()] == ["MNIST"]
    assert len(set(server[2])) == 4
    server[2].clear()
    load_dataset("mnist", root, train=False, download=True, progress=False)
    assert server[2] == [], "what is there is not downloaded again"
    assert capfd.readouterr().err == ""


def test_cifar100_is_downloaded(server, monkeypatch, tmp_path):
    from torchvision import datasets

    address, folder, _ = server
    write_cifar100(tmp_path)
    trust_files_of(tmp_path, monkeypatch)
    (folder / "c.tar.gz").write_bytes(archive_of(tmp_path / "cifar-100-python"))
    monkeypatch.setattr(datasets.CIFAR100, "url", f"{address}c.tar.gz")
    monkeypatch.setattr(datasets.CIFAR100, "tgz_md5", None)
    root = tmp_path / "root"
    images, _ = load_dataset("cifar100", root, train=True, download=True, progress=False)
    assert torch.equal(images, images_of(3, 32, True))
    assert [path.name for path in root.iterdir()] == ["cifar-100-python"]


def test_a_download_that_fails_leaves_nothing(server, monkeypatch, refused, tmp_path):
    served_mnist(server, monkeypatch)
    for file in server[1].glob("t10k-labels*"):
        file.unlink()
    root = tmp_path / "root"
    words = ["train", "mnist", "--root", root, "--out", tmp_path / "m.safetensors", "--download"]
    assert f"MNIST could not be downloaded to {root}: " in refused(*words)
    assert list(root.iterdir()) == []


def test_two_at_once_download_once(server, monkeypatch, tmp_path):
    served_mnist(server, monkeypatch)
    fetch_dataset("mnist", tmp_path / "alone", progress=False)
    once, root = len(server[2]), tmp_path / "root"
    threads = [
        threading.Thread(target=fetch_dataset, args=("mnist", root), kwargs={"progress": False}) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server[2]) == 2 * once
    assert torch.equal(load_dataset("mnist", root, train=True)[0], images_of(1, 28, True))
